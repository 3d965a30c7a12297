"""The splits of a userbuffers pipeline, which must divide the rows of its GEMM's weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import Edit, in_words
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.sizes.near import divisors, nearest
from megatron.bridge.training.userbuffers.facts import KNOB
from megatron.bridge.training.userbuffers.remedies import TE_NUM_SPLITS
from megatron.bridge.training.userbuffers.settings import as_te_dict

SPLITS_DIVIDE = rule(
    "tp.splits-divide-rows",
    Dimension.TP,
    claim="num_splits of proj_fprop and fc2_fprop divides the rows of the weight (hidden_size) "
    "into chunks of equal size, rounded down. Transformer Engine does not check it: the rows that "
    "remain are never multiplied, and the last columns of the output are wrong (by its source; "
    "not run here).",
    remedy="set num_splits to a divisor of hidden_size",
    source="Transformer Engine's comm_gemm_overlap.cpp, split_overlap_rs and "
    "atomic_gemm_overlap_rs",
)

_PIPELINED = ("proj_fprop", "fc2_fprop")
"""The GEMMs whose output is scattered; hidden_size is the number of their weight's rows."""
_WITHOUT_SPLITS = ("ring_exchange", "external")


def split_checks(c: Context) -> Iterator[Decision]:
    """Whether the splits of each pipeline divide the rows."""
    rows, given = c.of_model("hidden_size"), c.of_model("tp_comm_overlap_cfg")
    if not rows or not c.of_model("tp_comm_overlap") or given is None or isinstance(given, str):
        return
    try:
        gemms = as_te_dict(given)
    except TypeError:
        # The check of the settings' shape speaks of it.
        return
    for name in _PIPELINED:
        entry = gemms.get(name)
        if isinstance(entry, Mapping) and entry.get("method") not in _WITHOUT_SPLITS:
            yield from _of_gemm(c, name, entry, rows)


def _of_gemm(c: Context, name: str, entry: Mapping[str, Any], rows: int) -> Iterator[Decision]:
    splits = entry.get("num_splits", TE_NUM_SPLITS)
    if isinstance(splits, bool) or not isinstance(splits, int) or splits < 1 or rows % splits == 0:
        return
    near = nearest(splits, divisors(rows))
    chunk = rows // splits
    key = c.key("model.tp_comm_overlap_cfg")
    edits = (Edit(f"{key}.{name}.num_splits", near[0]),)
    others = "".join(f" or {number}" for number in near[1:])
    yield SPLITS_DIVIDE.decide(
        f"{KNOB}.{name}.num_splits",
        requested=splits,
        effective=splits,
        reason=f"{splits} splits of {chunk} rows leave {rows - splits * chunk} of the {rows} rows "
        "(hidden_size) of the weight out, and no check stops the job",
        outcome=Outcome.WRONG_NUMBERS,
        remedy=in_words(edits) + others,
        edits=edits,
    )
