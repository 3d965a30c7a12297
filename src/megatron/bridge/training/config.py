"""A run's configurations in one container, and the order in which they become effective.

Construction validates nothing: users set fields one by one
(`cfg.model.tensor_model_parallel_size = 4`), so Megatron-Core's own checks run in `finalize()`.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from typing import Any

from megatron.core.distributed import (
    DistributedDataParallelConfig as CoreDistributedDataParallelConfig,
)
from megatron.core.optimizer import OptimizerConfig as CoreOptimizerConfig

from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import Decision, OverlapConfigError
from megatron.bridge.training.job_environment import this_process
from megatron.bridge.training.mixed_precision import (
    MixedPrecisionConfig,
    get_mixed_precision_config,
)
from megatron.bridge.training.runtime_update import (
    data_parallel_size,
    sync_distributed_optimizer,
    update_runtime,
)
from megatron.bridge.training.software import foreign_megatron_bridge

if (_conflict := foreign_megatron_bridge()) is not None:
    warnings.warn(_conflict, stacklevel=2)


@dataclass
class DistributedDataParallelConfig(CoreDistributedDataParallelConfig):  # type: ignore[misc]
    """Megatron-Core's, checked in `finalize()`."""

    def __post_init__(self) -> None:
        """Does nothing: fields can still be set one by one."""

    def finalize(self) -> None:
        """Run Megatron-Core's checks.

        Raises:
            AssertionError, ValueError: Megatron-Core's own.
        """
        super().__post_init__()


@dataclass
class OptimizerConfig(CoreOptimizerConfig):  # type: ignore[misc]
    """Megatron-Core's, checked in `finalize()`."""

    def __post_init__(self) -> None:
        """Does nothing: fields can still be set one by one."""

    def finalize(self) -> None:
        """Run Megatron-Core's checks.

        Raises:
            AssertionError, RuntimeError: Megatron-Core's own.
        """
        super().__post_init__()


@dataclass(kw_only=True)
class TrainingConfig:
    """The training loop's sizes.

    Attributes:
        micro_batch_size: samples per rank and forward pass.
        global_batch_size: samples per optimizer step, over all data-parallel ranks.
        train_iters: optimizer steps.
        manual_gc: collect garbage on all ranks at the same fixed steps, so that no rank waits for
            another's collection.
        manual_gc_interval: steps between collections; 0 for never.
    """

    micro_batch_size: int | None = None
    global_batch_size: int | None = None
    train_iters: int | None = None
    manual_gc: bool = False
    manual_gc_interval: int = 0

    def num_microbatches(self, data_parallel_size: int) -> int:
        """Microbatches per step and rank.

        Raises:
            OverlapConfigError: a batch size is not set, or the global batch size is not a multiple
                of the micro-batch size times the data-parallel size.
        """
        if not self.micro_batch_size or not self.global_batch_size:
            raise OverlapConfigError(
                "train.micro_batch_size and train.global_batch_size must be set; they are "
                f"{self.micro_batch_size} and {self.global_batch_size}"
            )
        samples = self.micro_batch_size * data_parallel_size
        if self.global_batch_size % samples:
            raise OverlapConfigError(
                f"train.global_batch_size={self.global_batch_size} is not a multiple of "
                f"micro_batch_size={self.micro_batch_size} x data-parallel size "
                f"{data_parallel_size}"
            )
        return self.global_batch_size // samples


@dataclass(kw_only=True)
class ProfilingConfig:
    """Which steps and ranks a profiler records; `overlapkit trace` reads what it writes.

    Attributes:
        use_nsys_profiler: mark the steps for Nsight Systems.
        use_pytorch_profiler: record with torch.profiler.
        profile_step_start: first recorded step, from 0.
        profile_step_end: step before which recording ends.
        profile_ranks: global ranks that record.
        record_memory_history: record allocations too.
        memory_snapshot_path: file for that record.
        record_shapes: record the operators' input shapes.
    """

    use_nsys_profiler: bool = False
    use_pytorch_profiler: bool = False
    profile_step_start: int = 10
    profile_step_end: int = 12
    profile_ranks: list[int] = field(default_factory=lambda: [0])
    record_memory_history: bool = False
    memory_snapshot_path: str = "snapshot.pickle"
    record_shapes: bool = False


@dataclass(kw_only=True)
class ConfigContainer:
    """A run's configurations.

    Attributes:
        model: a provider such as GPTModelProvider, or a TransformerConfig.
        train: batch sizes and steps.
        optimizer: Megatron-Core's optimizer configuration.
        ddp: Megatron-Core's data-parallel configuration.
        mixed_precision: a configuration or a recipe's name; overwrites model, optimizer and ddp.
        comm_overlap: the requested overlap; overwrites model, optimizer and ddp.
        profiling: what to record.
        dist, dataset, rerun_state_machine: read for what they say about FSDP, packing and checks
            for NaN.
        scheduler, logger, tokenizer, checkpoint, rng, peft: for the training loop; nothing here
            reads them.
        env_vars: environment variables by name, set where the process has no value of its own; as
            in Megatron-Bridge 0.6.0 and newer.
    """

    model: Any
    train: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: CoreOptimizerConfig = field(default_factory=OptimizerConfig)
    ddp: CoreDistributedDataParallelConfig = field(default_factory=DistributedDataParallelConfig)
    mixed_precision: MixedPrecisionConfig | str | None = None
    comm_overlap: CommOverlapConfig | None = None
    profiling: ProfilingConfig | None = None
    scheduler: Any = None
    dataset: Any = None
    logger: Any = None
    tokenizer: Any = None
    checkpoint: Any = None
    dist: Any = None
    rng: Any = None
    rerun_state_machine: Any = None
    peft: Any = None
    env_vars: dict[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Not fields: they depend on the number of ranks.
        self.data_parallel_size: int | None = None
        self.decisions: list[Decision] = []

    def get_data_parallel_size(self, world_size: int) -> int:
        """World size / (TP x PP x CP).

        Raises:
            OverlapConfigError: the layout does not divide the world size.
        """
        return data_parallel_size(self.model, world_size)

    def set_data_parallel_size(self, world_size: int | None = None) -> None:
        """Compute the data-parallel size and hand it to comm_overlap.

        Args:
            world_size: ranks of the job; None takes torch.distributed's, else the WORLD_SIZE that
                torchrun sets, else 1.

        Raises:
            OverlapConfigError: the layout does not divide the ranks.
        """
        self.data_parallel_size = self.get_data_parallel_size(_world_size(world_size))
        if self.comm_overlap is not None:
            self.comm_overlap.data_parallel_size = self.data_parallel_size

    def apply_runtime_config(self, world_size: int | None = None) -> None:
        """Make everything effective, in order, and validate: call it once, before training.

        The environment, mixed precision, the data-parallel size, comm_overlap, then Megatron-Core's
        own validation. `decisions` then contains the decision about every overlap knob.

        Args:
            world_size: see `set_data_parallel_size`.

        Raises:
            OverlapConfigError: the run would fail, hang or train incorrectly.
            AssertionError, ValueError: Megatron-Core's own checks.
        """
        if isinstance(self.mixed_precision, str):
            self.mixed_precision = get_mixed_precision_config(self.mixed_precision)
        self.set_data_parallel_size(world_size)
        update = update_runtime(self, _world_size(world_size), environment=this_process())
        for name in update.environment.origins:
            os.environ[name] = update.environment.variables[name]
        self.decisions = update.decisions
        self.validate()

    def validate(self) -> None:
        """Synchronize the distributed optimizer's switch, and run Megatron-Core's own checks."""
        sync_distributed_optimizer(self)
        for config in (self.model, self.ddp, self.optimizer):
            if (finalize := getattr(config, "finalize", None)) is not None:
                finalize()


def _world_size(given: int | None) -> int:
    if given is not None:
        return given
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_world_size())
    return int(os.environ.get("WORLD_SIZE", "1"))


def runtime_config_update(cfg: ConfigContainer, world_size: int | None = None) -> None:
    """`cfg.apply_runtime_config(world_size)`, under the name of Megatron-Bridge's function."""
    cfg.apply_runtime_config(world_size)
