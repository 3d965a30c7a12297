"""Complete weights and gradients, read from the buckets of Megatron-Core's data parallelism.

The distributed optimizer leaves each data-parallel rank with a shard of every bucket. The shards
are gathered into copies here: the buckets themselves, and gathers under way, stay as they are. So
reading them does not change what the next step finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist

Content = Literal["param_data", "grad_data"]
"""Which of a bucket's tensors: its weights, or its gradients."""


def gathered(chunk: Any, content: Content) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Copies of all weights or gradients of a model chunk, by parameter. Collective.

    Args:
        chunk: wrapped by Megatron-Core's DistributedDataParallel.
        content: "grad_data": after the gradients were reduced and before the optimizer's step;
            "param_data": at any time between steps.
    """
    places = {
        parameter: (start, end)
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        for parameter, (start, end, _) in buffer.param_index_map.items()
    }
    found: dict[torch.nn.Parameter, torch.Tensor] = {}
    for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
        for bucket in group.buckets:
            whole = _whole(group, getattr(bucket, content))
            for parameter in bucket.params_list:
                if whole is None:
                    # Without the distributed optimizer there is no buffer of weights.
                    found[parameter] = parameter.detach().clone()
                    continue
                start, end = (place - bucket.offset for place in places[parameter])
                found[parameter] = whole[start:end].view(parameter.shape)
    return found


def _whole(group: Any, local: torch.Tensor | None) -> torch.Tensor | None:
    """A copy of a bucket's tensor with every rank's shard in its place."""
    if local is None:
        return None
    if not group.ddp_config.use_distributed_optimizer:
        return local.detach().clone()
    members = group.intra_distributed_optimizer_instance_group
    shard = local.chunk(members.size())[members.rank()]
    whole = torch.empty_like(local)
    dist.all_gather_into_tensor(whole, shard.contiguous(), group=members)
    return whole


def by_name(
    chunks: Iterable[Any], values: Mapping[torch.nn.Parameter, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The values of each parameter by "chunk:parameter", for unwrapped model chunks."""
    return {
        f"{number}:{name}": values[parameter]
        for number, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
        if parameter in values
    }
