"""What Megatron-Core refuses of experts and of their dispatcher, whatever overlaps.

Facts of megatron-core 0.16.1; the checks of 0.17.1, 0.18.2 and 0.19.0 are the same.
"""

from __future__ import annotations

from megatron.bridge.training.decisions import Dimension, rule
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.rules.context import Context
from megatron.bridge.training.rules.refusal import Refusal

_BIAS = "model.add_bias_linear"
_EXPERT_TP = "model.expert_tensor_parallel_size"
_DISPATCHER = "model.moe_token_dispatcher_type"
_SOURCE = "Megatron-LM megatron/core/transformer/transformer_config.py"

NO_BIAS = (Edit(_BIAS, False),)


def _tp(c: Context) -> int:
    return c.model.tensor_model_parallel_size or 1


def _expert_tp(c: Context) -> int:
    """Tensor-parallel size of the experts; without one of their own, that of the model."""
    return c.of_model("expert_tensor_parallel_size") or _tp(c)


def _biased(c: Context) -> bool:
    """Whether there are experts, and linear layers have a bias."""
    return bool(c.of_model("num_moe_experts") and c.of_model("add_bias_linear"))


def _dense_replicas(c: Context) -> bool:
    """Whether experts have the replicas of a dense layer divided by tensor parallelism."""
    return _tp(c) > 1 and (c.of_model("expert_model_parallel_size") or 1) == 1


def _has_shared(c: Context) -> bool:
    return c.of_model("moe_shared_expert_intermediate_size") is not None


def without_te(c: Context) -> bool:
    """Whether layers are Megatron-Core's own, without Transformer Engine."""
    return c.of_model("transformer_impl") == "local" or not c.software.have_te()


def _added_in_place(c: Context) -> str:
    """What makes the bias be added in place to what an autograd function returned as it came."""
    sequential = _biased(c) and not c.of_model("moe_grouped_gemm") and without_te(c)
    alone = (c.of_model("expert_model_parallel_size") or 1) == 1 and _expert_tp(c) == 1
    if not sequential or not alone or _has_shared(c):
        return ""
    why = "transformer_impl is local" if c.software.have_te() else "there is no Transformer Engine"
    return (
        f"add_bias_linear is on, {why}, and each expert is whole on every rank: the bias is added "
        "in place to a view, and the first forward pass raises a RuntimeError"
    )


def _one_expert(c: Context) -> bool:
    # Megatron-Core asks with and without experts; without, nobody sets it to 1.
    return bool(
        c.of_model("num_moe_experts")
        and c.of_model("moe_router_topk") == 1
        and (c.of_model("moe_router_score_function") or "softmax") == "softmax"
        and not c.of_model("moe_router_pre_softmax")
        and c.of_model("moe_router_load_balancing_type") not in ("sinkhorn", ["sinkhorn"])
    )


LAYER_EXPERT_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        rule(
            "core.expert-bias-splits",
            Dimension.EP,
            claim="Megatron-Core refuses experts with a bias (add_bias_linear) where tensor "
            "parallelism splits them.",
            remedy="set model.expert_tensor_parallel_size=1 (with EP above 1 where TP is), or "
            "model.add_bias_linear=false",
            source=_SOURCE,
            rests_on=(_BIAS, _EXPERT_TP),
        ),
        _EXPERT_TP,
        lambda c: (
            f"add_bias_linear is on and tensor parallelism splits each expert over {_expert_tp(c)} "
            "ranks: an AssertionError when the model is built"
            if _biased(c) and _expert_tp(c) > 1
            else ""
        ),
        # A shared expert has no bias either, and whole experts need expert parallelism
        # (wrong.experts-reduced-as-dense).
        lambda c: NO_BIAS if _has_shared(c) or _dense_replicas(c) else (Edit(_EXPERT_TP, 1),),
    ),
    Refusal(
        rule(
            "core.shared-expert-bias",
            Dimension.EP,
            claim="Megatron-Core refuses a shared expert with a bias (add_bias_linear).",
            remedy="set model.add_bias_linear=false",
            edits=NO_BIAS,
            source="Megatron-LM megatron/core/transformer/moe/shared_experts.py",
            rests_on=(_BIAS,),
        ),
        "model.moe_shared_expert_intermediate_size",
        lambda c: (
            "add_bias_linear is on: an AssertionError when the model is built"
            if _biased(c) and _has_shared(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.expert-bias-in-place",
            Dimension.EP,
            claim="Without Transformer Engine's layers, sequential experts (moe_grouped_gemm off) "
            "with a bias fail in the first forward pass where neither expert nor tensor "
            "parallelism divides them (observed with megatron-core 0.16.1 without Transformer "
            "Engine; with its layers it was not run, and nothing is said).",
            remedy="set model.add_bias_linear=false",
            edits=NO_BIAS,
            source="Megatron-LM megatron/core/transformer/mlp.py",
            rests_on=(_BIAS, "model.moe_grouped_gemm"),
        ),
        "model.num_moe_experts",
        _added_in_place,
    ),
    Refusal(
        rule(
            "core.experts-need-sequence-parallel",
            Dimension.EP,
            claim="Megatron-Core refuses to train experts with tensor parallelism and without "
            "sequence parallelism.",
            remedy="set model.sequence_parallel=true",
            edits=(Edit("model.sequence_parallel", True),),
            source="Megatron-LM megatron/core/model_parallel_config.py and "
            "megatron/core/transformer/moe/moe_layer.py",
            rests_on=("model.sequence_parallel",),
        ),
        "model.sequence_parallel",
        lambda c: (
            f"num_moe_experts is {c.of_model('num_moe_experts')} and tensor_model_parallel_size "
            f"is {_tp(c)}: a ValueError "
            + (
                "when the model is built"
                if (c.of_model("expert_model_parallel_size") or 1) > 1
                else "in the first forward pass"
            )
            if c.of_model("num_moe_experts") and _tp(c) > 1 and not c.of_model("sequence_parallel")
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.one-expert-pre-softmax",
            Dimension.EP,
            claim="Megatron-Core refuses moe_router_topk 1 with softmax scores that are computed "
            "after the choice of the expert: their gradient is zero.",
            remedy="set model.moe_router_pre_softmax=true",
            edits=(Edit("model.moe_router_pre_softmax", True),),
            source=_SOURCE,
            rests_on=("model.moe_router_pre_softmax",),
        ),
        "model.moe_router_pre_softmax",
        lambda c: (
            "moe_router_topk is 1 and moe_router_score_function is softmax: a ValueError when the "
            "model is built"
            if _one_expert(c)
            else ""
        ),
    ),
    Refusal(
        rule(
            "core.variable-lengths-dispatcher",
            Dimension.EP,
            claim="Megatron-Core refuses variable_seq_lengths with moe_token_dispatcher_type "
            "allgather, its default, with and without experts.",
            remedy="set model.moe_token_dispatcher_type=alltoall",
            edits=(Edit(_DISPATCHER, "alltoall"),),
            source=_SOURCE,
            rests_on=(_DISPATCHER,),
        ),
        _DISPATCHER,
        lambda c: (
            "variable_seq_lengths is on: a ValueError when the model is built"
            if c.of_model("variable_seq_lengths")
            and c.of_model("moe_token_dispatcher_type") == "allgather"
            else ""
        ),
    ),
)
"""In the order in which they are reported."""
