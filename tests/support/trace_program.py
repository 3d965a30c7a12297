"""What one training step launches, in the order of its launches."""

from __future__ import annotations

from support import trace_names as names
from support.trace_layout import COPY_STREAM, DeviceEvent, Layout


def step(layout: Layout) -> list[list[DeviceEvent]]:
    """Lay out one step and return each rank's device events, in the order of their launches."""
    s = layout.scenario
    layout.backward = False
    layout.copy(names.HOST_TO_DEVICE, 40_000, 1_048_576)
    layout.copy(names.MEMSET, 3_000, 65_536)
    if s.late_rank is not None:
        layout.stall(s.late_ns, s.late_rank)
    gathers = _gather_parameters(layout)
    reduces: list[list[int]] = []
    for microbatch in range(s.microbatches):
        _forward(layout, gathers if microbatch == 0 else [])
        layout.stall(s.idle_ns)
        last = microbatch == s.microbatches - 1
        reduces = _backward(layout, last)
    for ends in reduces:
        layout.wait(ends)
    layout.backward = False
    _optimizer(layout)
    return layout.finish()


def _bucket_of(layout: Layout, layer: int) -> int:
    s = layout.scenario
    return min(s.buckets, s.layers) * layer // s.layers


def _gather_parameters(layout: Layout) -> list[list[int]]:
    """The distributed optimizer's all-gathers; each bucket's ends, in forward order."""
    s = layout.scenario
    if s.dp * s.cp == 1:
        return []
    buckets = min(s.buckets, s.layers)
    gathers = [layout.communicate("DP", "all_gather", 1_600_000 / buckets) for _ in range(buckets)]
    if not s.dp_overlap:
        layout.wait(gathers[-1])
    return gathers


def _forward(layout: Layout, gathers: list[list[int]]) -> None:
    for layer in range(layout.scenario.layers):
        if gathers:
            layout.wait(gathers[_bucket_of(layout, layer)])
        _layer(layout, 1.0, "all_gather", "reduce_scatter")
    _pipeline(layout, "send")
    _pipeline(layout, "recv")


def _backward(layout: Layout, last_microbatch: bool) -> list[list[int]]:
    """The backward of a microbatch; in the last one, gradients are reduced bucket by bucket."""
    s = layout.scenario
    layout.backward = True
    data_parallel = s.dp * s.cp > 1 and last_microbatch
    buckets = min(s.buckets, s.layers)
    reduces = []
    for layer in reversed(range(s.layers)):
        _layer(layout, 2.0, "reduce_scatter", "all_gather")
        bucket_is_full = layer == 0 or _bucket_of(layout, layer - 1) != _bucket_of(layout, layer)
        if data_parallel and s.dp_overlap and bucket_is_full:
            reduces.append(_reduce_gradients(layout, buckets))
    if data_parallel and not s.dp_overlap:
        reduces = [_reduce_gradients(layout, buckets) for _ in range(buckets)]
    layout.backward = False
    return reduces


def _reduce_gradients(layout: Layout, buckets: int) -> list[int]:
    return layout.communicate("DP", "reduce_scatter", 2_400_000 / buckets, dtype="Float")


def _layer(layout: Layout, factor: float, first: str, second: str) -> None:
    """One transformer layer, or its backward with `factor` 2."""
    s = layout.scenario
    layout.compute("layernorm", 9_000 * factor)
    _tensor_parallel(layout, first, 70_000, "qkv", 120_000 * factor)
    if s.cp > 1:
        layout.wait(layout.communicate("CP", "all_gather", 45_000))
    layout.compute("attention", 150_000 * factor)
    _tensor_parallel(layout, second, 60_000, "proj", 80_000 * factor)
    layout.compute("add", 14_000 * factor)
    layout.compute("layernorm", 9_000 * factor)
    if s.ep > 1:
        layout.compute("router", 18_000 * factor)
        _exchange_tokens(layout, "dispatch")
    _tensor_parallel(layout, first, 70_000, "fc1", 240_000 * factor)
    layout.compute("swiglu", 30_000 * factor)
    _tensor_parallel(layout, second, 60_000, "fc2", 210_000 * factor)
    if s.ep > 1:
        _exchange_tokens(layout, "combine")
    layout.compute("add", 14_000 * factor)


def _tensor_parallel(
    layout: Layout, operation: str, duration: float, gemm: str, gemm_duration: float
) -> None:
    """A GEMM with its tensor-parallel collective: before it, or under it with userbuffers."""
    s = layout.scenario
    if s.tp == 1:
        layout.compute(gemm, gemm_duration)
    elif s.tp_comm == "nccl":
        layout.wait(layout.communicate("TP", operation, duration))
        layout.compute(gemm, gemm_duration)
    else:
        name = names.PEER_TO_PEER if s.tp_comm == "copies" else names.USERBUFFERS[operation]
        ends = layout.communicate("TP", operation, duration, stream="userbuffers", name=name)
        layout.compute(gemm, gemm_duration)
        layout.wait(ends)


def _exchange_tokens(layout: Layout, direction: str) -> None:
    s = layout.scenario
    own = {"deepep": names.DEEPEP, "nvshmem": names.NVSHMEM}.get(s.ep_comm, {})
    ends = layout.communicate("EP", "all_to_all", 95_000, name=own.get(direction))
    if s.ep_overlap:
        layout.compute("fc1", 110_000)
    layout.wait(ends)


def _pipeline(layout: Layout, direction: str) -> None:
    """Send to or receive from the next stage; waiting for it is the pipeline's bubble."""
    s = layout.scenario
    if s.pp == 1:
        return
    duration = 400_000 if direction == "recv" else 60_000
    ends = layout.communicate("PP", direction, duration, stream=f"PP {direction}", together=False)
    if s.pp_overlap:
        layout.compute("fc2", 450_000)
    layout.wait(ends)


def _optimizer(layout: Layout) -> None:
    s = layout.scenario
    if s.pp > 1:
        layout.wait(layout.communicate("embedding", "all_reduce", 120_000, dtype="Float"))
    if s.tp * s.pp > 1:
        layout.wait(layout.communicate("other", "all_reduce", 12_000, dtype="Float"))
    layout.copy(names.DEVICE_TO_HOST, 2_500, 4)
    layout.copy(names.DEVICE_TO_DEVICE, 60_000, 33_554_432, stream=COPY_STREAM)
    for _ in range(3):
        layout.compute("adam", 160_000)
