"""A sequence that context- and tensor-parallel ranks must divide, and heads that CP must divide."""

from __future__ import annotations

from collections.abc import Iterator

from megatron.bridge.training.decisions import Decision, Dimension, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.sizes.near import divisors, nearest, would_do

_LENGTH = "model.seq_length"
_KIND = "model.cp_comm_type"

CONTEXT_DIVIDES = rule(
    "core.sequence-divides-cp",
    Dimension.CP,
    claim="Context parallelism divides a sequence into 2 x CP parts, of which each rank has two: a "
    "seq_length that is no multiple stops the job at the first batch.",
    remedy="use a seq_length that is a multiple of 2 x context_parallel_size",
    source="Megatron-Core's get_batch_on_this_cp_rank",
)
TENSOR_DIVIDES = rule(
    "core.sequence-divides-tp",
    Dimension.TP,
    claim="Sequence parallelism divides the tokens of a context-parallel rank among the tensor-"
    "parallel ranks: a length that TP does not divide stops the job at the first batch.",
    remedy="use a seq_length that is a multiple of context_parallel_size x "
    "tensor_model_parallel_size, or set model.sequence_parallel=false",
    source="Megatron-Core's tensor_parallel/mappings.py",
)
HEADS_DIVIDE = rule(
    "core.cp-a2a-divides-heads",
    Dimension.CP,
    claim="cp_comm_type a2a gives each context-parallel rank a part of the heads: Transformer "
    "Engine asserts that CP divides the attention heads, and the heads of keys and values, of a "
    "tensor-parallel rank.",
    remedy="set model.cp_comm_type=p2p, or use a CP that divides the heads",
    source="Transformer Engine's context_parallel.py, AttnFuncWithCPAndQKVOA2A",
)


def sequence_checks(c: Context) -> Iterator[Decision]:
    """Whether the ranks divide the sequence, and with an all-to-all the heads."""
    cp, tp = c.of_model("context_parallel_size") or 1, c.model.tensor_model_parallel_size or 1
    if cp > 1:
        yield from _heads(c, cp, tp)
    length = c.of_model("seq_length")
    packed = c.of_model("variable_seq_lengths") or getattr(c.dataset, "packed_sequence_specs", None)
    if not length or packed:
        return
    splits = tp if tp > 1 and c.of_model("sequence_parallel") else 1
    if cp > 1 and length % (2 * cp):
        yield CONTEXT_DIVIDES.error(
            _LENGTH,
            length,
            f"{length} tokens do not divide into 2 x CP = {2 * cp} parts: the first batch stops "
            "the job",
            *_another_length(c, length, 2 * cp * splits),
        )
    elif splits > 1 and length // cp % splits:
        of_rank = f"the {length // cp} tokens of a rank with CP={cp}" if cp > 1 else f"{length}"
        yield TENSOR_DIVIDES.error(
            _LENGTH,
            length,
            f"{of_rank} {'are' if cp > 1 else 'is'} no multiple of TP={tp}: sequence parallelism "
            "stops the job at the first batch",
            *_another_length(c, length, (2 * cp if cp > 1 else 1) * splits),
        )


def _another_length(c: Context, length: int, unit: int) -> tuple[str, tuple[Edit, ...]]:
    """The remedy, which never lengthens a sequence that could be shortened, and its changes."""
    below = length // unit * unit
    lengths = [n for n in (below, below + unit) if n]
    # Megatron-Bridge asserts that the data has the model's length.
    names = ("seq_length", "sequence_length")
    also = [f"dataset.{n}" for n in names if getattr(c.dataset, n, None) == length]
    edits = tuple(Edit(key, lengths[0]) for key in (_LENGTH, *also))
    other = [f"{_LENGTH}={n}" for n in lengths[1:]]
    return ", or ".join([in_words(edits), *other]), edits


def _heads(c: Context, cp: int, tp: int) -> Iterator[Decision]:
    given = c.of_model("cp_comm_type")
    kinds = given if isinstance(given, (list, tuple)) else [given]
    heads = c.of_model("num_attention_heads")
    if "a2a" not in kinds or not heads:
        return
    groups = heads if c.of_model("multi_latent_attention") else c.of_model("num_query_groups")
    of_rank = {
        "attention heads": heads // tp,
        "heads of keys and values": max(1, (groups or heads) // tp),
    }
    wrong = {what: number for what, number in of_rank.items() if number % cp}
    if not wrong:
        return
    found = " and ".join(f"{number} {what}" for what, number in wrong.items())
    fit = [n for n in divisors(min(of_rank.values())) if not heads // tp % n and n > 1]
    edits = (Edit(_KIND, "p2p"),)
    yield HEADS_DIVIDE.error(
        _KIND,
        given,
        f"CP={cp} does not divide the {found} of a rank with TP={tp}: Transformer Engine stops the "
        f"job at the first attention with a2a{would_do(nearest(cp, fit), 'CP ranks')}",
        edits=edits,
    )
