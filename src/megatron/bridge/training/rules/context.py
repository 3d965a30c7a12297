"""What the overlap rules read, and how a user's value compares with a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, Rule, rule
from megatron.bridge.training.job_environment import UNKNOWN, JobEnvironment
from megatron.bridge.training.software import Software
from megatron.bridge.training.userbuffers.settings import TransformerLayerTPOverlapCfg
from megatron.bridge.training.versions import Stack


@dataclass
class _CommOverlapConfig:
    """The resolved knobs. None means unset; for `bucket_size` it is Megatron-Core's own default."""

    tp_comm_overlap: bool | None = None
    tp_comm_overlap_cfg: TransformerLayerTPOverlapCfg | None = None
    tp_comm_bootstrap_backend: str | None = None
    overlap_p2p_comm: bool | None = None
    batch_p2p_comm: bool | None = None
    overlap_grad_reduce: bool | None = None
    overlap_param_gather: bool | None = None
    overlap_param_gather_with_optimizer_step: bool | None = None
    align_param_gather: bool | None = None
    bucket_size: int | Literal["auto"] | None = None
    defer_embedding_wgrad_compute: bool | None = None
    wgrad_deferral_limit: int | None = None
    overlap_moe_expert_parallel_comm: bool | None = None
    delay_wgrad_compute: bool | None = None


@dataclass(frozen=True)
class Gpu:
    """The GPU of a job, as far as rules depend on it.

    Attributes:
        name: its short name.
        capability: its compute capability, such as 9.0.
        nvlink_domain: how many of them NVLink connects; None where that is not known.
        given: whether the user named it; otherwise it is only assumed.
    """

    name: str
    capability: float
    nvlink_domain: int | None = None
    given: bool = True


@dataclass(frozen=True)
class Launcher:
    """How a job is started.

    Attributes:
        name: the program, such as "torchrun".
        processes_per_node: processes on each node; None where that is not known.
        has_mpi: whether it starts an MPI world; None where that is not known.
    """

    name: str
    processes_per_node: int | None = None
    has_mpi: bool | None = None


@dataclass(frozen=True)
class Context:
    """What the rules read: the request, the configurations, the software, the ranks.

    Attributes:
        request: comm_overlap as the user wrote it; nothing is requested without the section.
        model, ddp, optimizer: Megatron-Core's configurations.
        software: what is installed.
        data_parallel_size: world size / (TP x PP x CP).
        dist, rerun_state_machine, dataset: sections of Megatron-Bridge alone; None where there is
            none.
        environment: what is known of the job's environment, with the configuration's env_vars.
        has_comm_overlap: whether the run has that section, whose knobs win over those of model, ddp
            and optimizer.
        sets_data_parallel: whether comm_overlap sets the knobs of ddp and optimizer too: it leaves
            them alone without the distributed optimizer.
        mixed_precision: the section, whose fields win over those of the same name elsewhere; None
            without one.
        gpu: the job's GPU; None where it is not known.
        launcher: how the job is started; None where that is not known.
        train: the steps and what happens between them: train_iters, eval_iters, eval_interval,
            save and save_interval, and how a checkpoint is written: save_optim, ckpt_format and
            dist_ckpt_optim_fully_reshardable; None where that is not known.
        batch: micro_batch_size and global_batch_size, with rampup_batch_size and
            decrease_batch_size_if_needed; None where they are not known.
        backend: torch.distributed's back end for the GPUs.
    """

    request: _CommOverlapConfig
    model: Any
    ddp: Any
    software: Software
    data_parallel_size: int | None = None
    optimizer: Any = None
    dist: Any = None
    environment: JobEnvironment = UNKNOWN
    rerun_state_machine: Any = None
    dataset: Any = None
    has_comm_overlap: bool = False
    sets_data_parallel: bool = False
    mixed_precision: Any = None
    gpu: Gpu | None = None
    launcher: Launcher | None = None
    train: Any = None
    batch: Any = None
    backend: str = "nccl"

    def key(self, dotted: str) -> str:
        """Where a knob that comm_overlap also has is to be set: ``ddp.overlap_param_gather``."""
        section, _, name = dotted.partition(".")
        wins = self.has_comm_overlap if section == "model" else self.sets_data_parallel
        return f"comm_overlap.{name}" if wins else dotted

    @property
    def of_megatron_bridge(self) -> bool:
        """Whether the run has Megatron-Bridge's sections; Megatron-LM has flags instead."""
        return self.has_comm_overlap or self.dist is not None

    @property
    def stack(self) -> Stack:
        """The versions of Megatron-Bridge and Megatron-Core."""
        return self.software.stack

    @property
    def pipeline_size(self) -> int:
        return self.model.pipeline_model_parallel_size or 1

    @property
    def virtual_pipeline_size(self) -> int:
        return getattr(self.model, "virtual_pipeline_model_parallel_size", None) or 1

    @property
    def replicas(self) -> int:
        """Ranks that reduce gradients together: context-parallel ones hold the same parameters."""
        return (self.data_parallel_size or 1) * (self.of_model("context_parallel_size") or 1)

    def of_model(self, name: str, default: Any = None) -> Any:
        """A model field that not every model or Megatron-Core release has."""
        return getattr(self.model, name, default)

    def of_ddp(self, name: str, default: Any = None) -> Any:
        """A field of ddp that not every Megatron-Core release has."""
        return getattr(self.ddp, name, default)

    def of_optimizer(self, name: str, default: Any = None) -> Any:
        """A field of the optimizer that not every Megatron-Core release has."""
        return getattr(self.optimizer, name, default)

    def of_dist(self, name: str, default: Any = None) -> Any:
        """A field of Megatron-Bridge's section dist; Megatron-LM has no such section."""
        return getattr(self.dist, name, default)

    @property
    def checks_for_nan(self) -> bool:
        """Whether Megatron-Bridge looks for NaN in the loss; where that is not known, it does not.

        Megatron-LM has a flag of another meaning for it, and no such section.
        """
        return bool(getattr(self.rerun_state_machine, "check_for_nan_in_loss", False))

    @property
    def is_hybrid(self) -> bool:
        """Whether the model has Mamba layers, or is of the class that may have them."""
        return bool(hybrid_by(self))

    @property
    def fsdp(self) -> str | None:
        """The switch of another data-parallel path than Megatron DDP, as `fsdp_switch`."""
        return fsdp_switch(self.ddp, self.dist)


def hybrid_by(c: Context) -> str:
    """What makes a model a hybrid one, as the start of a reason; empty where it is none."""
    for name in ("hybrid_override_pattern", "hybrid_layer_pattern", "is_hybrid_model"):
        if value := c.of_model(name):
            return f"{name} is {'on' if value is True else value}"
    return ""


def fsdp_switch(ddp: Any, dist: Any = None) -> str | None:
    """The switch that replaces Megatron DDP with another data-parallel path; None where none does.

    Megatron-Core's ddp has no field `use_torch_fsdp2`: it is a flag of Megatron-LM, whose rules set
    it on ddp, and a field of Megatron-Bridge's section dist.
    """
    for name in ("use_megatron_fsdp", "use_custom_fsdp", "use_torch_fsdp2"):
        if getattr(ddp, name, False) or getattr(dist, name, False):
            return name
    return None


OTHER_VERSIONS = rule(
    "any.other-versions",
    Dimension.ANY,
    claim="Where a run's versions are not known, the newest known ones are assumed. What an older "
    "one refuses or does wrongly is reported with its versions.",
    remedy="state the version with --core",
)
USER_WINS = rule(
    "any.user-wins",
    Dimension.ANY,
    claim="A knob of comm_overlap that is not None wins over the default of the rules.",
)


OPT_IN_REASON = "it is on only where comm_overlap requests it"


def choose(chosen_by: Rule, knob: str, default: Any, requested: Any, reason: str) -> Decision:
    """The user's value if there is one, else the default of a rule."""
    if requested is None:
        return chosen_by.decide(
            knob, requested=None, effective=default, reason=reason, outcome=Outcome.DEFAULT
        )
    decided_by = chosen_by
    if requested != default:
        reason = f"set in comm_overlap, which wins over the default {default} ({reason})"
        decided_by = USER_WINS
    return decided_by.decide(
        knob,
        requested=requested,
        effective=requested,
        reason=reason,
        outcome=Outcome.GRANTED,
        dimension=chosen_by.dimension,
    )
