"""Configurations that property tests draw: mostly sound, now and then anything."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from megatron.bridge.models.model_fields import DEFAULTS, MLA_DEFAULTS, PROVIDER_DEFAULTS
from overlapkit.config.schema import known_keys, section_fields

# Keys that rules look at are drawn far more often than the hundreds that none does.
LOOKED_AT = {
    "model": [
        *DEFAULTS,
        *MLA_DEFAULTS,
        *PROVIDER_DEFAULTS,
        "sequence_parallel",
        "moe_token_dispatcher_type",
        "moe_flex_dispatcher_backend",
        "moe_shared_expert_overlap",
        "overlap_moe_expert_parallel_comm",
        "delay_wgrad_compute",
        "recompute_granularity",
        "recompute_modules",
        "mtp_num_layers",
        "cuda_graph_impl",
        "cuda_graph_scope",
        "gradient_accumulation_fusion",
        "defer_embedding_wgrad_compute",
        "wgrad_deferral_limit",
        "tp_comm_overlap",
        "tp_comm_overlap_cfg",
        "overlap_p2p_comm",
        "batch_p2p_comm",
        "overlap_p2p_comm_warmup_flush",
        "bf16",
    ],
    "ddp": [*section_fields("ddp")],
    "optimizer": ["use_distributed_optimizer", "overlap_param_gather_with_optimizer_step", "bf16"],
    "comm_overlap": [*section_fields("comm_overlap")],
    "mixed_precision": [*section_fields("mixed_precision")],
    "train": [*section_fields("train")],
    "tokenizer": ["vocab_size"],
}

sizes = st.sampled_from([1, 1, 1, 2, 2, 4, 8, 3, 16])
words = st.sampled_from(
    ["alltoall", "flex", "full", "selective", "hybrid", "mxfp8", "auto", "attn", "local", "moe", ""]
)
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def values(section: str, key: str) -> st.SearchStrategy[Any]:
    """Values of the kind that a key has, and now and then of any other."""
    known = section_fields(section).get(key)
    kind = known.kind.partition("|")[0] if known else "other"
    right = {
        "bool": st.booleans(),
        "int": sizes | st.integers(-2, 200),
        "float": st.floats(),
        "str": words,
    }.get(kind, odd)
    fitting = right | right | right | st.none()
    return fitting if known is None else st.one_of(fitting, fitting, fitting, fitting, odd)


def section(name: str) -> st.SearchStrategy[dict[str, Any]]:
    keys = st.sampled_from(LOOKED_AT[name]) | st.sampled_from(sorted(known_keys(name)))
    return st.lists(keys, unique=True, max_size=12).flatmap(
        lambda drawn: st.fixed_dictionaries({key: values(name, key) for key in drawn})
    )


SOUND = {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 512}

models = section("model").map(lambda drawn: SOUND | drawn)
requests = section("comm_overlap").map(lambda drawn: {"tp_comm_overlap": True} | drawn)
precisions = section("mixed_precision") | st.sampled_from(
    ["bf16_mixed", "bf16-mixed", "bf16_with_mxfp8_mixed", "bf16_with_nvfp4_mixed", "fp16_mixed"]
)
configurations = st.fixed_dictionaries(
    {"model": models},
    optional={
        "ddp": section("ddp") | st.none(),
        "optimizer": section("optimizer"),
        "comm_overlap": requests | requests | st.none(),
        "mixed_precision": precisions | st.none(),
        "train": section("train"),
        "tokenizer": section("tokenizer"),
    },
)
