"""GPUs by name, with the figures of their data sheets."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import msgspec

from megatron.bridge.training.near_names import nearest
from overlapkit.errors import InputError

_GENERATIONS = {"ampere": "8.0", "hopper": "9.0", "blackwell": "10.0", "rubin": "10.0"}
"""The least compute capability of each generation; Rubin's own is not known, and it follows
Blackwell."""

_WORDS = {"vr200": ("vera", "rubin"), "r100": ("rubin",)}
"""GPUs that product names call otherwise, by the words of those: Vera Rubin NVL72."""


class DataSheet(msgspec.Struct, frozen=True):
    """The figures of a GPU whose data sheet is known in full.

    Attributes:
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
        host_link_gbps_per_dir: bandwidth to the host's memory in one direction, in GB/s.
        host_memory_gbps: bandwidth of the host's memory for each GPU, in GB/s.
    """

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
    host_link_gbps_per_dir: float | None = None
    host_memory_gbps: float | None = None

    @property
    def memory_bytes(self) -> float:
        """The memory in bytes: the exact number where it is known, else from round GB."""
        return self.memory_mib * 2.0**20 if self.memory_mib else self.hbm_gb * 1e9


_FIGURES = {
    "sm": "SMs",
    "bf16_tflops": "BF16 rate",
    "bf16_flop_per_clock": "BF16 operations per SM and clock",
    "hbm_gb": "memory",
    "hbm_tbps": "memory bandwidth",
    "nvlink_gbps_per_dir": "NVLink bandwidth",
    "nvlink_domain": "GPUs in an NVLink domain",
    "nic_gbps": "network adapter (give --network)",
    "tdp_watt": "power",
    "exp_per_clock": "exponentials per SM and clock",
}
"""The figures that a data sheet must have, as messages name them."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU type (`data/hardware.json`, which lists the sources).

    The figures are those of `DataSheet`; None where one is not known.

    Attributes:
        arch: its generation, a key of `_GENERATIONS`.
        compute_capability: such as "9.0"; None where it is not known.
    """

    arch: str
    compute_capability: str | None = None
    sm: int | None = None
    bf16_tflops: float | None = None
    bf16_flop_per_clock: int | None = None
    hbm_gb: float | None = None
    hbm_tbps: float | None = None
    nvlink_gbps_per_dir: float | None = None
    nvlink_domain: int | None = None
    nic_gbps: float | None = None
    tdp_watt: float | None = None
    exp_per_clock: int | None = None
    fp8_tflops: float | None = None
    nvfp4_tflops: float | None = None
    memory_mib: int | None = None
    host_link_gbps_per_dir: float | None = None
    host_memory_gbps: float | None = None

    @property
    def least_capability(self) -> str:
        """Its compute capability; the least that its generation can have where it is not known."""
        return self.compute_capability or _GENERATIONS[self.arch]

    @property
    def sm100_or_newer(self) -> bool:
        """Whether it is Blackwell or newer: compute capability 10.0 or above."""
        return float(self.least_capability) >= 10.0


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
    # nvidia-smi writes "NVIDIA H100 80GB HBM3", recipes dgx-h100 or h100_sxm, and clouds H100SXM5.
    words = re.split(r"[^a-z0-9]+", plain)
    for word in words:
        short = re.sub(r"(sxm\d*|pcie|nvl\d*)$", "", word)
        if short in gpus():
            return short, gpus()[short]
    for short, spelled in _WORDS.items():
        if set(spelled) <= set(words):
            return short, gpus()[short]
    near = nearest(plain, gpus())
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f"--gpu {name}: unknown GPU; {hint}known are {', '.join(gpus())}")


def data_sheet(name: str, *, network_gbps: float | None = None) -> DataSheet:
    """The figures of a GPU, all of which an estimate needs.

    Args:
        name: as of `find_gpu`.
        network_gbps: Gbit/s of network per GPU, where the user gave it.

    Raises:
        InputError: the GPU is not known, or a figure of it is not; the message names each.
    """
    short, gpu = find_gpu(name)
    figures = {field: getattr(gpu, field) for field in DataSheet.__struct_fields__}
    figures["nic_gbps"] = network_gbps or figures["nic_gbps"]
    missing = [said for field, said in _FIGURES.items() if figures[field] is None]
    if missing:
        raise InputError(
            f"--gpu {name}: no public data sheet gives these figures of {short}, which an estimate "
            f"needs: {', '.join(missing)}; explain and doctor need none of them"
        )
    return DataSheet(**figures)
