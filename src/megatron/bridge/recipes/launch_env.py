"""The process environment that a run's overlap needs, as a pure function of its settings.

CUDA, Transformer Engine and NCCL read these variables once, when the process starts or the library
is first used. A configuration object is too late to set them: they belong to the launch.
`PerfEnvPlugin` sets what `launch_environment` returns, `explain` and `plan` show it, and
`launch_check` compares it with an existing environment.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.bridge.training.decisions import Dimension, OverlapConfigError, Rule, rule

CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"
LAYERNORM_MARGINS = ("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN")
P2P_CHUNK = "NCCL_P2P_NET_CHUNKSIZE"

CONNECTIONS_RANGE = range(1, 33)
"""The valid values by CUDA's programming guide (environment variables); the default is 8."""

FLEX_BACKENDS = ("deepep", "hybridep")
"""Values of `moe_flex_dispatcher_backend` whose kernels run on communication streams."""

QUEUE_DEFAULT = rule(
    "launch.queue-default",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 8, CUDA's own default, where no other rule needs another number of "
    "hardware queues.",
)
QUEUE_FLEX_DISPATCHER = rule(
    "launch.queue-flex-dispatcher",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 with moe_flex_dispatcher_backend {' or '.join(FLEX_BACKENDS)}, "
    "unless launch.queue-hopper-order applies.",
)
QUEUE_BLACKWELL = rule(
    "launch.queue-blackwell",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 32 on Blackwell or newer with TP or CP > 1 together with DP or PP > "
    "1.",
)
QUEUE_HOPPER_ORDER = rule(
    "launch.queue-hopper-order",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 1 on Hopper or older with TP or CP > 1 and without expert all-to-all "
    "overlap, whatever the dispatcher.",
)
QUEUE_FSDP = rule(
    "launch.queue-fsdp",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is 8 with FSDP, whatever the layout: its gathers and reductions run "
    "beside compute, which one queue would prevent (Megatron-LM refuses 1).",
)
LAYERNORM_MARGIN = rule(
    "launch.layernorm-margin",
    Dimension.LAUNCH,
    claim="NVTE_FWD_LAYERNORM_SM_MARGIN and NVTE_BWD_LAYERNORM_SM_MARGIN keep Transformer Engine's "
    "LayerNorm kernels off 16 SMs (or layernorm_sm_margin), unless enable_layernorm_sm_margin is "
    "off.",
)
NCCL_P2P_CHUNK = rule(
    "launch.nccl-p2p-chunk",
    Dimension.LAUNCH,
    claim=f"{P2P_CHUNK} is nccl_pp_comm_chunksize, in bytes, with PP > 1; otherwise it is not set.",
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
        enable_layernorm_sm_margin: whether to set the LayerNorm margins.
        layernorm_sm_margin: SMs that LayerNorm leaves free.
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
    enable_layernorm_sm_margin: bool = True
    layernorm_sm_margin: int = 16
    nccl_pp_comm_chunksize: int | None = None
    fsdp: bool = False

    def __post_init__(self) -> None:
        for field in ("tp_size", "cp_size", "pp_size", "num_gpus"):
            require_int(field, getattr(self, field), at_least=1)
        require_int("layernorm_sm_margin", self.layernorm_sm_margin, at_least=0)
        if self.nccl_pp_comm_chunksize is not None:
            require_int("nccl_pp_comm_chunksize", self.nccl_pp_comm_chunksize, at_least=2)

    @property
    def model_parallel_size(self) -> int:
        """GPUs of one model replica: TP x CP x PP."""
        return self.tp_size * self.cp_size * self.pp_size

    @property
    def dp_size(self) -> int:
        """Data-parallel size, rounded down; 0 where `num_gpus` are fewer than one replica needs."""
        return self.num_gpus // self.model_parallel_size


@dataclass(frozen=True)
class EnvironmentVariable:
    """One variable to set before the process starts.

    Attributes:
        name: its name.
        value: its value, as text.
        reason: why, in one sentence with the settings that it depends on.
        rule: id of the rule that chose the value.
    """

    name: str
    value: str
    reason: str
    rule: str


def require_int(field: str, value: object, *, at_least: int) -> None:
    """Check one whole-number setting.

    Raises:
        OverlapConfigError: `value` is not an integer, is a bool, or is below `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise OverlapConfigError(
            f"{field}={value!r}: set {field} to an integer of {at_least} or more."
        )


def max_connections(s: LaunchSettings) -> tuple[int, Rule]:
    """CUDA_DEVICE_MAX_CONNECTIONS, the number of hardware queues, and the rule that chose it."""
    splits_layers = s.tp_size > 1 or s.cp_size > 1
    queues, chosen_by = 8, QUEUE_DEFAULT
    if s.moe_flex_dispatcher_backend in FLEX_BACKENDS:
        queues, chosen_by = 32, QUEUE_FLEX_DISPATCHER
    if s.gpu_sm100_or_newer:
        if splits_layers and (s.dp_size > 1 or s.pp_size > 1):
            queues, chosen_by = 32, QUEUE_BLACKWELL
    elif splits_layers and s.fsdp:
        queues, chosen_by = max(queues, 8), QUEUE_FSDP
    elif splits_layers and not s.a2a_overlap:
        queues, chosen_by = 1, QUEUE_HOPPER_ORDER
    return queues, chosen_by


def launch_environment(settings: LaunchSettings) -> tuple[EnvironmentVariable, ...]:
    """The variables that a run with these settings needs, in a fixed order."""
    queues, chosen_by = max_connections(settings)
    variables = [
        EnvironmentVariable(
            CONNECTIONS, str(queues), _queue_reason(settings, chosen_by), chosen_by.id
        )
    ]
    if settings.enable_layernorm_sm_margin:
        margin = settings.layernorm_sm_margin
        reason = (
            f"layernorm_sm_margin={margin}: Transformer Engine's LayerNorm kernels wait until all "
            "the SMs that they claim are free. A kernel that claimed every SM would wait for a "
            "data-parallel collective that uses a few, and all later kernels would wait for it."
        )
        variables += [
            EnvironmentVariable(name, str(margin), reason, LAYERNORM_MARGIN.id)
            for name in LAYERNORM_MARGINS
        ]
    if settings.pp_size > 1 and settings.nccl_pp_comm_chunksize is not None:
        size = settings.nccl_pp_comm_chunksize
        reason = (
            f"pp_size={settings.pp_size} and nccl_pp_comm_chunksize={size}: NCCL sends each "
            f"activation and gradient to another pipeline stage in chunks of {size} bytes."
        )
        variables.append(EnvironmentVariable(P2P_CHUNK, str(size), reason, NCCL_P2P_CHUNK.id))
    return tuple(variables)


def _queue_reason(s: LaunchSettings, chosen_by: Rule) -> str:
    """Why `chosen_by` applies to `s`.

    Megatron-Core's `tensor_parallel/layers.py` documents that tensor-parallel collectives rely on
    launch order.
    """
    sizes = f"tp_size={s.tp_size}, cp_size={s.cp_size}"
    generation = "Blackwell or newer" if s.gpu_sm100_or_newer else "Hopper or older"
    if chosen_by is QUEUE_HOPPER_ORDER:
        return (
            f"{sizes}, a2a_overlap=False on {generation}: with one hardware queue kernels start "
            "in the order of their launch, so a communication kernel launched before a GEMM does "
            "not wait for it."
        )
    if chosen_by is QUEUE_FSDP:
        return (
            f"{sizes} with FSDP on {generation}: its gathers and reductions must run beside "
            "compute, which one queue would prevent."
        )
    if chosen_by is QUEUE_BLACKWELL:
        return (
            f"{sizes}, dp_size={s.dp_size}, pp_size={s.pp_size} on {generation}: launch order is "
            "not needed there, and one queue would serialise the streams of these parallel "
            "dimensions."
        )
    if chosen_by is QUEUE_FLEX_DISPATCHER:
        return (
            f"moe_flex_dispatcher_backend={s.moe_flex_dispatcher_backend!r} with {sizes} on "
            f"{generation}: its dispatch and combine run on communication streams, which need "
            "hardware queues separate from compute's."
        )
    if s.tp_size == s.cp_size == 1:
        return (
            f"{sizes}: there is no collective between a layer's GEMMs, so launch order is not "
            "needed, and separate queues let data- and pipeline-parallel communication run beside "
            "compute."
        )
    if s.gpu_sm100_or_newer:
        return (
            f"{sizes}, dp_size={s.dp_size}, pp_size={s.pp_size} on {generation}: launch order is "
            "not needed there, and no data- or pipeline-parallel streams need more queues."
        )
    return (
        f"{sizes}, a2a_overlap=True on {generation}: the expert all-to-all and another "
        "micro-batch's compute must run at the same time, which one queue would prevent."
    )
