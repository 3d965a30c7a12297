"""GPU names, and what the launch-time environment depends on of them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec

from megatron.bridge.training.near_names import nearest
from overlapkit.errors import InputError


class Gpu(msgspec.Struct, frozen=True):
    """A GPU type by its data sheet (`data/hardware.json`, which names the sources).

    Attributes:
        compute_capability: "9.0" and the like.
        sm: streaming multiprocessors.
        bf16_tflops, fp8_tflops, nvfp4_tflops: dense tensor-core rates; None where there is none.
        exp_per_clock: exponentials per SM and clock, which softmax is made of.
        bf16_flop_per_clock: per SM, which tells the clock that the data sheet's rates are for.
        hbm_gb, hbm_tbps: memory, and its bandwidth.
        nvlink_gbps_per_dir: GB/s of one direction.
        nvlink_domain: GPUs that NVLink connects in the reference system.
        nic_gbps: Gbit/s of the reference system's network adapter per GPU.
        tdp_watt: largest power.
        memory_mib: memory as nvidia-smi shows it; None where that is not known.
    """

    compute_capability: str
    sm: int
    bf16_tflops: float
    bf16_flop_per_clock: int
    hbm_gb: float
    hbm_tbps: float
    nvlink_gbps_per_dir: float
    nvlink_domain: int
    nic_gbps: float
    tdp_watt: float
    exp_per_clock: int
    fp8_tflops: float | None = None
    nvfp4_tflops: float | None = None
    memory_mib: int | None = None

    @property
    def memory_bytes(self) -> float:
        """The memory, as far as it is known in bytes rather than in round GB."""
        return self.memory_mib * 2.0**20 if self.memory_mib else self.hbm_gb * 1e9

    @property
    def sm100_or_newer(self) -> bool:
        """Blackwell or its successors: compute capability 10.0 and above."""
        return float(self.compute_capability) >= 10.0


class _Hardware(msgspec.Struct, frozen=True):
    gpus: dict[str, Gpu]


@cache
def gpus() -> dict[str, Gpu]:
    """Every known GPU by its lower-case name."""
    data = (Path(__file__).with_name("data") / "hardware.json").read_bytes()
    return msgspec.json.decode(data, type=_Hardware).gpus


def find_gpu(name: str) -> tuple[str, Gpu]:
    """The GPU of a name such as h100, DGX-H100 or "NVIDIA H100 80GB HBM3", and its short name.

    Raises:
        InputError: it is not known; lists those that are.
    """
    plain = name.strip().lower()
    # nvidia-smi writes "NVIDIA H100 80GB HBM3", recipes dgx-h100 or h100_sxm.
    for word in re.split(r"[^a-z0-9]+", plain):
        if word in gpus():
            return word, gpus()[word]
    near = nearest(plain, gpus())
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"--gpu {name}: unknown GPU; {hint}known are {', '.join(gpus())}")
