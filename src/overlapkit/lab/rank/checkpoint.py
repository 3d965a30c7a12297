"""A distributed checkpoint of a trainer's model and optimizer, written and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from overlapkit.lab.rank.build import Built
from overlapkit.lab.rank.trainer import Trainer

_FORMAT = "dp_reshardable"
"""How the distributed optimizer's state is sharded: as it is in memory."""


def written(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint of a trainer has to contain, for `write`. Not collective, but for gathers
    of parameters that are under way.

    Raises:
        Exception: from Megatron-Core, perhaps on some ranks alone.
    """
    # As training loops do: a gather under way ends first.
    trainer.finish()
    return _sharded(trainer, loading=False)


def write(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint of the format torch_dist. Collective.

    Args:
        state: what `written` returned.
        folder: does not exist yet; the ranks share it.

    Raises:
        CheckpointingException, RuntimeError, AssertionError: from Megatron-Core.
    """
    if not filesystem_async.HAVE_PSUTIL:
        # A writing process would end, and this one would wait for it forever. The memory that it
        # reads with psutil is only logged.
        filesystem_async._process_memory = lambda: 0
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder))
    dist.barrier()


def read(trainer: Trainer, folder: Path) -> None:
    """Load a checkpoint into a trainer that was built anew. Collective.

    Raises:
        CheckpointingException, RuntimeError, AssertionError: from Megatron-Core.
    """
    with torch.no_grad():
        for chunk in trainer.built.chunks:
            for parameter in chunk.parameters():
                # What is not read back must not look as if it was.
                parameter.zero_()
    _allocate(trainer.built.optimizer)
    loaded = dist_checkpointing.load(_sharded(trainer, loading=True), str(folder))
    for number, chunk in enumerate(trainer.bare_chunks()):
        chunk.load_state_dict(loaded[f"model{number}"])
    with torch.no_grad():
        # Weights in fp32 are views of the parameters, and are written in place.
        trainer.built.optimizer.load_state_dict(loaded["optimizer"])
    _count_apart(trainer.built.optimizer)


def tensors(built: Built) -> dict[str, torch.Tensor]:
    """Copies of all tensors of a model and its optimizer, by names that a rebuilt one shares."""
    found = {
        f"model chunk {number}: {name}": value.detach().clone()
        for number, chunk in enumerate(built.chunks)
        for name, value in chunk.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    found |= {name: value.detach().clone() for name, value in _state(built.optimizer)}
    return found


def differing(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are only in one, or whose bits differ."""
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before
        or name not in after
        or not torch.equal(before[name], after[name].to(before[name].dtype))
    )


def _allocate(optimizer: Any) -> None:
    """Give an optimizer that has made no step its state, which is then overwritten.

    Without Apex and Transformer Engine, Megatron-Core 0.16's distributed optimizer reads the number
    of steps from that state before it allocates it, and ends in an assertion.
    """
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(one, DistributedOptimizer):
            one._init_optimizer_states_with_dummy_values()


def _count_apart(optimizer: Any) -> None:
    """Give each parameter its own count of steps, with the value that was read.

    Megatron-Core 0.16 lets all parameters share one tensor, which each of them then counts up, so
    that Adam corrects its moments for the wrong step. Only torch's own Adam has that tensor: on
    GPUs, Apex's and Transformer Engine's count for each group.
    """
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(one, DistributedOptimizer):
            for group in one.optimizer.param_groups:
                for parameter in group["params"]:
                    state = one.optimizer.state[parameter]
                    if "step" in state and "step" in group:
                        state["step"] = torch.tensor(group["step"], dtype=torch.float32)


def _sharded(trainer: Trainer, *, loading: bool) -> dict[str, Any]:
    optimizer, config = trainer.built.optimizer, trainer.built.config
    metadata: dict[str, Any] = {
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    if config.ddp.use_distributed_optimizer:
        metadata["distrib_optim_sharding_type"] = _FORMAT
    state: dict[str, Any] = {
        f"model{number}": chunk.sharded_state_dict(metadata=metadata)
        for number, chunk in enumerate(trainer.bare_chunks())
    }
    state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=loading, metadata=metadata)
    return state


def _state(optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's tensors: its moments, and the fp32 weights that it updates."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    for place, one in enumerate(chained):
        inner = getattr(one, "optimizer", None)
        if inner is None:
            continue
        parameters = [p for group in inner.param_groups for p in group["params"]]
        for number, parameter in enumerate(parameters):
            name = f"optimizer {place}, parameter {number}"
            yield f"{name}: weights", parameter
            for key, value in inner.state.get(parameter, {}).items():
                # A step is kept as a number or as a tensor, by version and history.
                yield f"{name}: {key}", torch.as_tensor(value, dtype=torch.float32)
