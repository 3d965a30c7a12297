"""The settings of a run that its launch environment depends on."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.bridge.training.decisions import OverlapConfigError

HYBRIDEP = "hybridep"
FLEX_BACKENDS = ("deepep", HYBRIDEP)
"""Values of `moe_flex_dispatcher_backend` whose kernels run on communication streams."""


def require_int(field: str, value: object, *, at_least: int) -> None:
    """Check one whole-number setting.

    Raises:
        OverlapConfigError: `value` is not an integer, is a bool, or is below `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise OverlapConfigError(
            f"{field}={value!r}: set {field} to an integer of {at_least} or more."
        )


@dataclass(frozen=True)
class LaunchSettings:
    """The settings that the launch-time environment depends on.

    Attributes:
        gpu_sm100_or_newer: compute capability 10.0 or above: Blackwell and its successors.
        tp_size: tensor-parallel size.
        cp_size: context-parallel size.
        pp_size: pipeline-parallel size.
        num_gpus: GPUs in the whole job.
        moe_flex_dispatcher_backend: the backend where moe_token_dispatcher_type is "flex", else
            None. Megatron-Core's field of this name defaults to "deepep" whatever the dispatcher,
            so its value alone means nothing.
        a2a_overlap: whether the expert all-to-all runs beside another micro-batch's compute.
        fsdp: whether FSDP shards the model, instead of Megatron DDP.
        overlaps: whether any communication of the run is meant to run beside compute.
        userbuffers: whether tensor-parallel communication is overlapped through userbuffers.
        multicast: whether the GPUs have NVLink multicast.
        enable_layernorm_sm_margin: whether to set the LayerNorm margins.
        layernorm_sm_margin: SMs that LayerNorm leaves free; None takes what the version's rule
            gives.
        nccl_pp_comm_chunksize: bytes per chunk of a pipeline send; None leaves it to NCCL.

    Raises:
        OverlapConfigError: a size is not a positive integer, the margin is negative, or the chunk
            size is not an integer above 1.
    """

    gpu_sm100_or_newer: bool
    tp_size: int = 1
    cp_size: int = 1
    pp_size: int = 1
    num_gpus: int = 8
    moe_flex_dispatcher_backend: str | None = None
    a2a_overlap: bool = False
    userbuffers: bool = False
    multicast: bool = True
    enable_layernorm_sm_margin: bool = True
    layernorm_sm_margin: int | None = None
    nccl_pp_comm_chunksize: int | None = None
    fsdp: bool = False
    overlaps: bool = True

    def __post_init__(self) -> None:
        for field in ("tp_size", "cp_size", "pp_size", "num_gpus"):
            require_int(field, getattr(self, field), at_least=1)
        if self.layernorm_sm_margin is not None:
            require_int("layernorm_sm_margin", self.layernorm_sm_margin, at_least=0)
        if self.nccl_pp_comm_chunksize is not None:
            require_int("nccl_pp_comm_chunksize", self.nccl_pp_comm_chunksize, at_least=2)

    @property
    def splits_layers(self) -> bool:
        """Whether a layer's GEMMs have collectives between them: TP or CP > 1."""
        return self.tp_size > 1 or self.cp_size > 1

    @property
    def flex(self) -> bool:
        """Whether a dispatcher is in use that runs on communication streams of its own."""
        return self.moe_flex_dispatcher_backend in FLEX_BACKENDS

    @property
    def model_parallel_size(self) -> int:
        """GPUs of one model replica: TP x CP x PP."""
        return self.tp_size * self.cp_size * self.pp_size

    @property
    def dp_size(self) -> int:
        """Data-parallel size, rounded down; 0 where `num_gpus` are fewer than one replica needs."""
        return self.num_gpus // self.model_parallel_size
