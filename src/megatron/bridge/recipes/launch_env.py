"""The process environment that a run's overlap needs, as a pure function of its settings.

CUDA, Transformer Engine and NCCL read these variables once, when the process starts or the library
is first used. A configuration object is too late to set them: they belong to the launch.
`PerfEnvPlugin` sets what `launch_environment` returns, `explain` and `plan` show it, and
`contradictions` compares it with an existing environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from megatron.bridge.training.decisions import (
    Decision,
    Dimension,
    Outcome,
    OverlapConfigError,
    Rule,
    rule,
)
from megatron.bridge.training.near_names import near_names

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

ORDER_LOST = rule(
    "launch.env-order-lost",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is not 1 where launch.queue-hopper-order needs 1: a tensor- or "
    "context-parallel collective may start after the GEMM that should hide it.",
    remedy=f"Set {CONNECTIONS}=1.",
)
ONE_QUEUE = rule(
    "launch.env-one-queue",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS}=1 where nothing needs launch order, as with TP = CP = 1: overlap "
    "quietly stops working, because collectives and compute start only in launch order.",
    remedy=f"Unset {CONNECTIONS}, or set it to the number of queues that the run needs.",
)
FEWER_QUEUES = rule(
    "launch.env-fewer-queues",
    Dimension.LAUNCH,
    claim=f"{CONNECTIONS} is above 1 but below what the run needs: streams that share a hardware "
    "queue wait for each other.",
    remedy=f"Raise {CONNECTIONS} to the number of queues that the run needs.",
)
SMALLER_MARGIN = rule(
    "launch.env-smaller-margin",
    Dimension.LAUNCH,
    claim="The LayerNorm SM margin is below the requested one: LayerNorm claims SMs that a "
    "data-parallel collective uses, and waits until it has ended.",
    remedy="Set both NVTE_*_LAYERNORM_SM_MARGIN to the requested margin.",
)
ENV_DIFFERS = rule(
    "launch.env-differs",
    Dimension.LAUNCH,
    claim="A variable differs from the value that the run needs. It is a finding where the value "
    "is invalid or replaces a requested one, and a note where no overlap is lost.",
    remedy="Unset the variable, or set it to the value that the run needs.",
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


def contradictions(
    required: Iterable[EnvironmentVariable], actual: Mapping[str, str], source: str
) -> list[Decision]:
    """Each required variable that an environment sets to another value.

    Names are compared exactly, and values as text without surrounding white space. A variable that
    `actual` does not set is not a contradiction.

    Args:
        required: the result of `launch_environment`.
        actual: the environment to check, by name.
        source: where `actual` comes from, for messages: "the current environment", "cluster.env".

    Returns:
        One decision per difference, with knob ``env.NAME``. `requested` is the value that the
        settings need, and `effective` the value in `actual`, which a run started there would use.
        The outcome is REFUSED where overlap or a requested value is lost, and a NOTE where the
        difference costs no overlap.
    """
    return [
        _contradiction(variable, actual[variable.name].strip(), source)
        for variable in required
        if variable.name in actual and actual[variable.name].strip() != variable.value
    ]


_DEFAULTS = {CONNECTIONS: "8", **dict.fromkeys(LAYERNORM_MARGINS, "0")}
"""The values where a variable is not set: CUDA's and Transformer Engine's own defaults."""


def omissions(
    required: Iterable[EnvironmentVariable], actual: Mapping[str, str], source: str
) -> list[Decision]:
    """Each required variable that a job's environment does not set, and whose default differs.

    Only for an environment that is known to be the job's: on another machine a missing variable
    means nothing.

    Args:
        required, actual, source: as for `contradictions`.

    Returns:
        One decision per omission, with knob and values as of `contradictions`. A missing LayerNorm
        margin is a NOTE, since launch plugins commonly set it.
    """
    decisions = []
    for variable in required:
        default = _DEFAULTS.get(variable.name)
        if variable.name in actual or default is None or default == variable.value:
            continue
        of_default = _contradiction(variable, default, source)
        queues = variable.name == CONNECTIONS
        harm = of_default.reason.partition(" is needed: ")[2]
        decisions.append(
            replace(
                of_default,
                outcome=of_default.outcome if queues else Outcome.NOTE,
                reason=f"{source} does not set {variable.name}{_meant(variable.name, actual)}, so "
                f"the default of {default} applies where {variable.value} is needed: {harm}",
            )
        )
    return decisions


def _meant(name: str, actual: Mapping[str, str]) -> str:
    """A variable in `actual` that is probably a misspelling of `name`."""
    near = near_names(name, actual, most=1, cutoff=0.85)
    known = {*_DEFAULTS, P2P_CHUNK}
    return f" (it sets {near[0]}, which nothing reads)" if near and near[0] not in known else ""


def _contradiction(variable: EnvironmentVariable, found: str, source: str) -> Decision:
    """What setting `variable` to `found` does to a run, as a decision."""
    if variable.name == CONNECTIONS:
        decided_by, outcome, harm = _queue_harm(variable, found)
    elif variable.name in LAYERNORM_MARGINS:
        decided_by, outcome, harm = _margin_harm(variable, found)
    else:
        decided_by, outcome = ENV_DIFFERS, Outcome.REFUSED
        harm = f"it replaces the requested {variable.value}"
    return decided_by.decide(
        f"env.{variable.name}",
        requested=variable.value,
        effective=found,
        reason=f"{source} sets {variable.name}={found} where {variable.value} is needed: {harm}.",
        outcome=outcome,
        remedy=None
        if outcome is Outcome.NOTE
        else f"Set {variable.name}={variable.value} in {source}, before the process starts.",
    )


def _queue_harm(variable: EnvironmentVariable, found: str) -> tuple[Rule, Outcome, str]:
    """What `found` hardware queues break: the rule, the outcome, the clause of the reason."""
    queues, needed = _whole_number(found), int(variable.value)
    if queues is None or queues not in CONNECTIONS_RANGE:
        return ENV_DIFFERS, Outcome.REFUSED, "CUDA takes a whole number from 1 to 32"
    if queues == needed:
        return ENV_DIFFERS, Outcome.NOTE, "it is the same number, written differently"
    if needed == 1:
        return (
            ORDER_LOST,
            Outcome.REFUSED,
            f"with {queues} hardware queues kernels need not start in launch order, so a tensor- "
            "or context-parallel collective that was launched before a GEMM can start after it, "
            "when the GEMM occupies the SMs, and is then exposed",
        )
    if queues == 1:
        return (
            ONE_QUEUE,
            Outcome.REFUSED,
            "with one hardware queue kernels start only in launch order: a collective waits for "
            "compute launched before it, a collective that waits for an earlier one delays all "
            "compute launched after it, and data-parallel and pipeline overlap quietly stops "
            "working",
        )
    if queues < needed:
        return (
            FEWER_QUEUES,
            Outcome.REFUSED,
            f"streams beyond {queues} share a hardware queue with others, so communication can "
            "wait for compute that it does not depend on",
        )
    return ENV_DIFFERS, Outcome.NOTE, "more hardware queues than needed cost no overlap"


def _margin_harm(variable: EnvironmentVariable, found: str) -> tuple[Rule, Outcome, str]:
    """What a LayerNorm margin of `found` SMs breaks, as `_queue_harm` does."""
    margin, needed = _whole_number(found), int(variable.value)
    if margin is None:
        return ENV_DIFFERS, Outcome.REFUSED, "Transformer Engine takes a whole number of SMs"
    if margin == needed:
        return ENV_DIFFERS, Outcome.NOTE, "it is the same number, written differently"
    if margin < needed:
        return (
            SMALLER_MARGIN,
            Outcome.REFUSED,
            f"LayerNorm claims {needed - margin} more SMs, waits while a data-parallel collective "
            "uses any of them, and delays every kernel after it",
        )
    return (
        ENV_DIFFERS,
        Outcome.NOTE,
        f"LayerNorm leaves {margin - needed} more SMs idle, which costs its own speed but no "
        "overlap",
    )


def _whole_number(text: str) -> int | None:
    """`text` as a non-negative integer; None where it is not one."""
    # No valid value has ten digits, and Python refuses to convert thousands of them.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
