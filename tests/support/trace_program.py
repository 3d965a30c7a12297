"""What one training step launches, in the order of its launches."""

from __future__ import annotations

from collections.abc import Callable

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
    if s.dp * s.cp > 1 and not s.dp_overlap:
        for _ in range(min(s.buckets, s.layers)):
            layout.wait(_gather_parameters(layout))
    reduces: list[list[int]] = []
    for microbatch in range(s.microbatches):
        _forward(layout, microbatch == 0)
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


def _gather_parameters(layout: Layout) -> list[int]:
    """The distributed optimizer's all-gather of one bucket."""
    s = layout.scenario
    return layout.communicate("DP", "all_gather", s.gather_ns / min(s.buckets, s.layers))


def _forward(layout: Layout, first_microbatch: bool) -> None:
    """The forward of a microbatch; in the first one, parameters are gathered bucket by bucket.

    As in Megatron-Core, waiting for a bucket launches the gather of the next one.
    """
    s = layout.scenario
    buckets = min(s.buckets, s.layers)
    overlapped = first_microbatch and s.dp * s.cp > 1 and s.dp_overlap
    gathered = _gather_parameters(layout) if overlapped else []
    for layer in range(s.layers):
        bucket = _bucket_of(layout, layer)
        if overlapped and (layer == 0 or bucket != _bucket_of(layout, layer - 1)):
            layout.wait(gathered)
            if bucket + 1 < buckets:
                gathered = _gather_parameters(layout)
        _layer(layout, backward=False)
    _pipeline(layout, "send")
    _pipeline(layout, "recv")


def _backward(layout: Layout, last_microbatch: bool) -> list[list[int]]:
    """The backward of a microbatch; in the last one, gradients are reduced bucket by bucket."""
    s = layout.scenario
    layout.backward = True
    data_parallel = s.dp * s.cp > 1 and last_microbatch
    buckets = min(s.buckets, s.layers)
    reduces: list[list[int]] = []
    for layer in reversed(range(s.layers)):
        _layer(layout, backward=True)
        bucket_is_full = layer == 0 or _bucket_of(layout, layer - 1) != _bucket_of(layout, layer)
        if data_parallel and s.dp_overlap and bucket_is_full:
            reduces.append(_reduce_gradients(layout, len(reduces)))
    if data_parallel and not s.dp_overlap:
        reduces = [_reduce_gradients(layout, index) for index in range(buckets)]
    layout.backward = False
    return reduces


def _reduce_gradients(layout: Layout, index: int) -> list[int]:
    """The reduce-scatter of one bucket, counted from that of the last layer."""
    s = layout.scenario
    others = min(s.buckets, s.layers) - 1
    duration = s.reduce_ns / (others + s.reduce_skew) * (1.0 if index else s.reduce_skew)
    return layout.communicate("DP", "reduce_scatter", duration, dtype="Float")


def _layer(layout: Layout, *, backward: bool) -> None:
    """One transformer layer; its backward takes twice the time, in the opposite order."""
    s = layout.scenario
    factor = 2.0 if backward else 1.0
    to_input, from_output = "all_gather", "reduce_scatter"
    if backward:
        to_input, from_output = from_output, to_input

    def kernel(role: str, duration: float) -> Callable[[], None]:
        return lambda: layout.compute(role, duration * factor)

    def gemm(role: str, duration: float, operation: str, moved: float) -> Callable[[], None]:
        return lambda: _tensor_parallel(layout, operation, moved, role, duration * factor)

    parts = [
        kernel("layernorm", 9_000),
        gemm("qkv", 120_000, to_input, 70_000),
        lambda: _exchange_context(layout),
        kernel("attention", 150_000),
        gemm("proj", 80_000, from_output, 60_000),
        kernel("add", 14_000),
        kernel("layernorm", 9_000),
    ]
    if s.ep > 1:
        parts += [kernel("router", 18_000), lambda: _exchange_tokens(layout, "dispatch")]
    parts += [
        gemm("fc1", 240_000, to_input, 70_000),
        kernel("swiglu", 30_000),
        gemm("fc2", 210_000, from_output, 60_000),
    ]
    if s.ep > 1:
        parts.append(lambda: _exchange_tokens(layout, "combine"))
    parts.append(kernel("add", 14_000))
    for part in reversed(parts) if backward else parts:
        part()


def _exchange_context(layout: Layout) -> None:
    if layout.scenario.cp > 1:
        layout.wait(layout.communicate("CP", "all_gather", 45_000))


def _tensor_parallel(
    layout: Layout, operation: str, duration: float, gemm: str, gemm_duration: float
) -> None:
    """A GEMM with its tensor-parallel collective: before it, or beside it with userbuffers."""
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
