"""Which parallel dimension the description or name of a process group speaks of."""

from __future__ import annotations

import re

_UNDESCRIBED = frozenset(
    {"", "default_pg", "undefined", "default", "world", "mesh_default", "mesh_world", "mesh"}
)

# Megatron-Core's descriptions (parallel_state.py, hyper_comm_grid.py), also as NeMo's and older
# versions' names of groups; the first match counts.
_MEGATRON = (
    ("embedding", re.compile(r"EMBEDDING")),
    (
        "other",
        re.compile(r"TENSOR_AND_(?:DATA|CONTEXT)|TENSOR_MODEL_PIPELINE|^MODEL_PARALLEL|AMAX"),
    ),
    (
        "DP",
        re.compile(
            # Weights of generalized tensor parallelism are sharded over ranks with different data.
            r"DATA_(?:MODULO_EXPERT_)?PARALLEL|DISTRIBUTED_OPTIMIZER_INSTANCE|HYBRID_DP_CP|FSDP|"
            r"FULLY_SHARD|ZERO_PARAM|WEIGHT_GRADIENT_COMM|WEIGHT_REMAT"
        ),
    ),
    ("PP", re.compile(r"PIPELINE|^PP_P2P|\bPIPE_PARALLEL")),
    ("CP", re.compile(r"CONTEXT|SEQUENCE_PARALLEL|ULYSSES|RING_ATT")),
    ("EP", re.compile(r"EXPERT_(?:TENSOR_AND_)?MODEL|EXPERT_PARALLEL|^EXPERT_GROUP")),
    ("TP", re.compile(r"TENSOR|SLICE_PARALLEL")),
)

# Names of the dimensions of device meshes, and short names of groups (vLLM's "tp:0").
_WORDS = {
    "TP": {"tp", "etp", "tensor"},
    "DP": {
        "dp", "edp", "ddp", "fsdp", "efsdp", "hsdp", "zero", "shard", "replicate", "data", "batch",
        "loss",
    },
    "PP": {"pp", "pipe", "pipeline", "stage"},
    "CP": {"cp", "hcp", "dcp", "pcp", "sp", "usp", "ulysses", "ring", "context"},
    "EP": {"ep", "eplb", "expert", "experts"},
}  # fmt: skip
# "dp_shard_mod_ep" is the data-parallel dimension without that of the experts, and "ep_shard" the
# sharding of their parameters. Alone, "dp_shard_in_ep" serves as the group of the experts.
_DATA_OF_EXPERTS = re.compile(r"_mod_ep(?![a-z])|(?<![a-z])ep_(?=shard|replicate|fsdp)")
_IN_EXPERTS = re.compile(r"(?:^|mesh_)dp(?:_shard)?_in_ep$")
_PAIRS = {
    frozenset({"DP", "CP"}): "DP",
    frozenset({"EP", "TP"}): "EP",
    frozenset({"PP", "DP"}): None,
}
"""Dimensions of a mesh that are one group: parameters are sharded over DP x CP; experts are
exchanged over EP x TP."""


def undescribed(description: str | None) -> bool:
    """Whether a description says nothing: PyTorch's defaults, and the group of all ranks."""
    if description is None:
        return True
    plain = description.strip().lower()
    return plain in _UNDESCRIBED or re.fullmatch(r"(?:world|default)[:_]?\d*", plain) is not None


def described(description: str | None) -> str | None:
    """The dimension in the description of a process group; None without one.

    Groups over several dimensions that no single one stands for are "other".
    """
    if description is None or undescribed(description):
        return None
    text = description.upper()
    for dimension, pattern in _MEGATRON:
        if pattern.search(text):
            return dimension
    plain = description.strip().lower()
    if _IN_EXPERTS.search(plain):
        return "EP"
    words = set(re.split(r"[^a-z]+", _DATA_OF_EXPERTS.sub(" dp ", plain)))
    found = [dimension for dimension, known in _WORDS.items() if words & known]
    if len(found) == 1:
        return found[0]
    return _PAIRS.get(frozenset(found), "other") if found else None
