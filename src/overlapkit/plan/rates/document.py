"""The file of measured rates, `overlapkit/rates/v1`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Positive = Annotated[float, Meta(gt=0)]
Size = Annotated[int, Meta(ge=1)]
Pass = Literal["fprop", "dgrad", "wgrad"]
How = Literal["alone", "training"]
CollectiveKind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "send"]
MemoryKind = Literal["stream", "permutation", "loss"]
"""Kinds of memory-bound kernels: a permutation moves tokens to their experts and back."""

Seconds = Annotated[Positive | None, Meta(description="time of one; or else the rate")]
Count = Annotated[Size, Meta(description="how many were measured; the time is their median")]
Rate = Annotated[str, Meta(description="`bf16`, `fp8`, `mxfp8`, `nvfp4` or `fp32`")]


class RatesGemm(Struct, frozen=True, kw_only=True):
    """`batch` products of an `m x k` and a `k x n` matrix; the operands are read from memory."""

    precision: Rate
    m: Annotated[Size, Meta(description="rows of the result; of a forward: tokens")]
    n: Annotated[Size, Meta(description="columns of the result; of a forward: outputs")]
    k: Annotated[Size, Meta(description="what is summed over; of a forward: inputs")]
    batch: Annotated[Size, Meta(description="experts of a grouped GEMM; 1 for others")] = 1
    which: Annotated[
        Pass | None,
        Meta(
            description="the forward, the gradient of the input, or that of the weight; `null` "
            "where it is not known"
        ),
    ] = None
    seconds: Seconds = None
    tflops: Annotated[
        Positive | None, Meta(description="2 x m x n x k x batch over the time, in TFLOP/s")
    ] = None
    count: Count = 1


class RatesAttention(Struct, frozen=True, kw_only=True):
    """A pass of one layer's attention."""

    phase: Annotated[Literal["forward", "backward"], Meta(description="which pass")]
    precision: Rate
    batch: Annotated[Size, Meta(description="sequences")]
    sequence: Annotated[Size, Meta(description="tokens of a sequence")]
    heads: Annotated[Size, Meta(description="of the queries, on this rank")]
    qk_head: Annotated[Size, Meta(description="size of a query-key head")]
    v_head: Annotated[Size, Meta(description="size of a value head")]
    causal: Annotated[bool, Meta(description="whether later positions are skipped")] = True
    seconds: Seconds = None
    tflops: Annotated[
        Positive | None,
        Meta(
            description="products that are executed over the time, in TFLOP/s: of a causal pass "
            "half of all pairs; of a backward five products for two of the forward"
        ),
    ] = None
    count: Count = 1


class RatesMemory(Struct, frozen=True, kw_only=True):
    """Memory-bound kernels of a kind: bytes over the bandwidth, and a time for each kernel."""

    kind: Annotated[
        MemoryKind,
        Meta(
            description="`permutation` moves tokens to their experts and back, `loss` is the "
            "cross entropy, `stream` all else"
        ),
    ]
    gb_s: Annotated[Positive, Meta(description="10^9 bytes read and written in a second")]
    kernel_us: Annotated[
        float, Meta(ge=0, description="microseconds of each kernel beside its bytes")
    ] = 0.0


class RatesCollective(Struct, frozen=True, kw_only=True):
    """A message that was measured (`bytes`, `seconds`), or a law of its time (`bus_gb_s`)."""

    kind: Annotated[CollectiveKind, Meta(description="what is sent; a `send` is one message")]
    link: Annotated[
        Literal["node", "network"],
        Meta(description="whether the group is within an NVLink domain or spans several"),
    ]
    ranks: Annotated[
        Size | None, Meta(description="members of the group; `null` in a law for any number")
    ] = None
    bytes: Annotated[
        Size | None,
        Meta(
            description="of the gathered tensor, of the one that is reduced, of what a rank has "
            "for all members, or of the message"
        ),
    ] = None
    seconds: Annotated[Positive | None, Meta(description="time of one such message")] = None
    bus_gb_s: Annotated[
        Positive | None, Meta(description="10^9 bytes that each rank sends in a second")
    ] = None
    step_us: Annotated[
        float,
        Meta(
            ge=0,
            description="microseconds of each step of the ring: ranks - 1 steps, of an all-reduce "
            "twice as many, of a message one",
        ),
    ] = 0.0
    fixed_us: Annotated[
        float, Meta(ge=0, description="microseconds that it takes however few ranks and bytes")
    ] = 0.0
    count: Count = 1


class RatesDocument(Struct, frozen=True, kw_only=True):
    """What was measured on one kind of machine."""

    schema: Annotated[
        Literal["overlapkit/rates/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/rates/v1"
    gpu: Annotated[
        str, Meta(description="what was measured, as `--gpu` names it; `cpu` for a processor")
    ]
    measured: Annotated[
        How,
        Meta(
            description="`alone`: each operator by itself, one after the other, with its start by "
            "the host. `training`: kernels within a training step"
        ),
    ]
    source: Annotated[str, Meta(description="where and with what it was measured")]
    gemms: Annotated[
        list[RatesGemm], Meta(description="matrix products, of the shapes that were measured")
    ] = []
    attention: Annotated[list[RatesAttention], Meta(description="attention, likewise")] = []
    memory: Annotated[
        list[RatesMemory], Meta(description="memory-bound kernels, one for each kind at most")
    ] = []
    collectives: Annotated[
        list[RatesCollective],
        Meta(description="messages that were measured, and laws for all others"),
    ] = []
    launch_us: Annotated[
        Positive | None,
        Meta(description="microseconds that the host needs to start a kernel; `null` if unknown"),
    ] = None
    unread: Annotated[
        dict[str, int],
        Meta(description="what a profile contained that could not be read, with how often"),
    ] = {}
