"""GPUs by name, with the figures of their data sheets."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec

from megatron.bridge.training.near_names import nearest
from overlapkit.errors import InputError


class Gpu(msgspec.Struct, frozen=True):
    """A GPU type by its data sheet (`data/hardware.json`, which lists the sources).

    Attributes:
        compute_capability: such as "9.0".
        sm: streaming multiprocessors.
        bf16_tflops, fp8_tflops, nvfp4_tflops: dense tensor-core rates, in TFLOP/s; None where the
            GPU does not have the format.
        exp_per_clock: exponentials per SM and clock; softmax consists of them.
        bf16_flop_per_clock: BF16 operations per SM and clock; with the rate it gives the clock.
        hbm_gb: memory, in GB.
        hbm_tbps: memory bandwidth, in TB/s.
        nvlink_gbps_per_dir: NVLink bandwidth of one direction, in GB/s.
        nvlink_domain: GPUs that NVLink connects in the reference system.
        nic_gbps: bandwidth of the reference system's network adapter per GPU, in Gbit/s.
        tdp_watt: maximum power.
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
        """The memory in bytes: the exact number where it is known, else from round GB."""
        return self.memory_mib * 2.0**20 if self.memory_mib else self.hbm_gb * 1e9

    @property
    def sm100_or_newer(self) -> bool:
        """Whether it is Blackwell or newer: compute capability 10.0 or above."""
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
        InputError: it is not known; the message lists the known names.
    """
    plain = name.strip().lower()
    # nvidia-smi writes "NVIDIA H100 80GB HBM3", recipes dgx-h100 or h100_sxm.
    for word in re.split(r"[^a-z0-9]+", plain):
        if word in gpus():
            return word, gpus()[word]
    near = nearest(plain, gpus())
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"--gpu {name}: unknown GPU; {hint}known are {', '.join(gpus())}")
