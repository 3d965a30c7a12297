"""A case of the hunt: one way to build, partition and train a tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from overlapkit.lab.scenario import DESCENT, DISTRIBUTED_OPTIMIZER, TINY, Settings, layered
from overlapkit.lab.scenarios.grid import BUCKETS, OVERLAPS, P2P

EXPERTS = 4

LAYOUT = ("tp", "sp", "pp", "vpp", "dp", "ep", "etp")
"""Features that partition the model."""


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Features of a run. The default of each is its simplest value.

    Attributes:
        tp, sp, pp, vpp, dp, ep, etp: sizes of the layout; sp: sequence parallelism; etp: tensor
            parallelism of the experts, 0 for that of the model.
        stages: how layers are distributed over stages, a key of `STAGES`.
        depth: layers of each model chunk, where all chunks have as many.
        microbatches: of each data-parallel rank in a step.
        micro_batch: samples of a microbatch.
        group: microbatch_group_size_per_vp_stage; 0: not set.
        p2p: a key of `P2P_MODES`.
        deallocate: deallocate_pipeline_outputs.
        variable: variable_seq_lengths.
        distributed: the distributed optimizer.
        instances: num_distributed_optimizer_instances.
        overlap: a key of the grid's `OVERLAPS`.
        bucket: a key of the grid's `BUCKETS`; "default": not set.
        average: average_in_collective.
        padded: pad_buckets_for_high_nccl_busbw.
        clip: whether gradients are clipped.
        decay: whether weights decay.
        recompute: a key of `RECOMPUTE`.
        distribute: distribute_saved_activations.
        tied: whether the output layer shares the embedding's weights.
        gated: gated linear units with SiLU instead of GELU.
        rms: RMSNorm instead of LayerNorm.
        rope: rotary positions instead of learned ones.
        grouped: two query groups instead of one for each head.
        qk_norm: qk_layernorm.
        bias: add_bias_linear.
        post: apply_residual_connection_post_layernorm.
        experts: "none", or the token dispatcher of four experts.
        topk: experts of each token.
        mixed: every second layer is dense.
        shared: a shared expert.
        balance: moe_router_load_balancing_type.
        z_loss: moe_z_loss_coeff is set.
        sigmoid: the router's scores are sigmoids, with an expert bias.
        mtp: layers of multi-token prediction.
        precision: "fp32", "bf16" (gradients in fp32) or "bf16-grads".
        residual: fp32_residual_connection.
        actions: "steps", or what is done between two steps: "evaluate", "checkpoint" or "both".
        steps: optimizer steps.
    """

    tp: int = 1
    sp: bool = False
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 0
    stages: str = "even"
    depth: int = 1
    microbatches: int = 1
    micro_batch: int = 1
    group: int = 0
    p2p: str = "waiting"
    deallocate: bool = False
    variable: bool = False
    distributed: bool = False
    instances: int = 1
    overlap: str = "off"
    bucket: str = "default"
    average: bool = False
    padded: bool = False
    clip: bool = False
    decay: bool = False
    recompute: str = "none"
    distribute: bool = False
    tied: bool = False
    gated: bool = False
    rms: bool = False
    rope: bool = False
    grouped: bool = False
    qk_norm: bool = False
    bias: bool = True
    post: bool = False
    experts: str = "none"
    topk: int = 1
    mixed: bool = False
    shared: bool = False
    balance: str = "none"
    z_loss: bool = False
    sigmoid: bool = False
    mtp: int = 0
    precision: str = "fp32"
    residual: bool = False
    actions: str = "steps"
    steps: int = 1

    @property
    def ranks(self) -> int:
        """Processes that it needs."""
        return self.tp * self.pp * self.dp

    @property
    def name(self) -> str:
        """Part of a file's name: its layout and a hash of all features."""
        sizes = [f"{key}{value}" for key, value in self.features.items() if key in LAYOUT]
        encoded = msgspec.json.encode(self)
        return "-".join([*sizes, hashlib.sha256(encoded).hexdigest()[:10]])

    @property
    def features(self) -> dict[str, Any]:
        """The features that are not the simplest."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @property
    def words(self) -> str:
        """The features that are not the simplest, in one line."""
        return " ".join(f"{key}={value}" for key, value in self.features.items()) or "simplest"

    @property
    def reorders(self) -> bool:
        """Whether it adds numbers in another order than the unpartitioned model does."""
        # The two gradients of a tied embedding, those of an embedding that is also used to predict
        # a further token, and the parts of a norm are added up over the stages.
        over_stages = self.pp > 1 and (self.tied or self.clip or self.mtp > 0)
        return self.tp > 1 or self.dp > 1 or over_stages


CHOICES: Mapping[str, tuple[Any, ...]] = {
    "tp": (1, 2, 4),
    "sp": (False, True),
    "pp": (1, 2, 4, 8),
    "vpp": (1, 2, 3, 4),
    "dp": (1, 2, 4, 8),
    "ep": (1, 2, 4),
    "etp": (0, 1, 2),
    "stages": ("even", "first", "last", "embedding", "loss", "both", "layout"),
    "depth": (1, 2),
    "microbatches": (1, 2, 3, 4, 5, 6, 8),
    "micro_batch": (1, 2),
    "group": (0, 2, 3, 4, 5, 6),
    "p2p": ("waiting", "batched", "overlapped", "flush"),
    "deallocate": (False, True),
    "variable": (False, True),
    "distributed": (False, True),
    "instances": (1, 2),
    "overlap": tuple(OVERLAPS),
    "bucket": ("default", *BUCKETS),
    "average": (False, True),
    "padded": (False, True),
    "clip": (False, True),
    "decay": (False, True),
    "recompute": (
        "none",
        "core_attn",
        "mlp",
        "layernorm",
        "moe_act",
        "moe",
        "shared_experts",
        "uniform",
        "uniform-2",
        "block",
        "full",
    ),
    "distribute": (False, True),
    "tied": (False, True),
    "gated": (False, True),
    "rms": (False, True),
    "rope": (False, True),
    "grouped": (False, True),
    "qk_norm": (False, True),
    "bias": (True, False),
    "post": (False, True),
    "experts": ("none", "allgather", "alltoall"),
    "topk": (1, 2),
    "mixed": (False, True),
    "shared": (False, True),
    "balance": ("none", "aux_loss", "seq_aux_loss"),
    "z_loss": (False, True),
    "sigmoid": (False, True),
    "mtp": (0, 1),
    "precision": ("fp32", "bf16", "bf16-grads"),
    "residual": (False, True),
    "actions": ("steps", "evaluate", "checkpoint", "both"),
    "steps": (1, 2, 3),
}
"""Values of each feature, the simplest first."""

P2P_MODES: Mapping[str, dict[str, bool]] = {
    **P2P,
    "flush": {**P2P["overlapped"], "overlap_p2p_comm_warmup_flush": True},
}

_FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
_SELECTIVE = ("core_attn", "mlp", "layernorm", "moe_act", "moe", "shared_experts")
RECOMPUTE: Mapping[str, dict[str, Any]] = {
    "none": {},
    **{
        module: {"recompute_granularity": "selective", "recompute_modules": [module]}
        for module in _SELECTIVE
    },
    "uniform": {**_FULL, "recompute_method": "uniform"},
    "uniform-2": {**_FULL, "recompute_method": "uniform", "recompute_num_layers": 2},
    "block": {**_FULL, "recompute_method": "block"},
    "full": {**_FULL, "recompute_method": "block", "recompute_num_layers": 2},
}

_BF16 = {"bf16": True, "params_dtype": "bfloat16", "pipeline_dtype": "bfloat16"}
PRECISION: Mapping[str, Settings] = {
    "fp32": {},
    "bf16": {"mixed_precision": {**_BF16, "grad_reduce_in_fp32": True}},
    "bf16-grads": {"mixed_precision": {**_BF16, "grad_reduce_in_fp32": False}},
}
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "steps": (),
    "evaluate": ("evaluate",),
    "checkpoint": ("checkpoint",),
    "both": ("evaluate", "checkpoint", "evaluate"),
}
"""What is done after the first step, and at the end where there is only one."""


def actions(case: Case) -> tuple[str, ...]:
    """What its variant does, in order."""
    return ("step", *ACTIONS[case.actions], *("step",) * (case.steps - 1))


def settings(case: Case, base: Settings | None = None) -> Settings:
    """As in a configuration's YAML.

    Args:
        case: the features.
        base: settings that the features are written over; None: the tiny model's.
    """
    start = layered(TINY, DESCENT) if base is None else base
    ddp: dict[str, Any] = {
        "average_in_collective": case.average,
        "pad_buckets_for_high_nccl_busbw": case.padded,
        "num_distributed_optimizer_instances": case.instances,
    }
    optimizer: dict[str, Any] = {
        "clip_grad": 0.05 if case.clip else 0.0,
        "weight_decay": 1e-5 if case.decay else 0.0,
    }
    overlap: dict[str, Any] = {"tp_comm_overlap": False}
    if case.pp > 1:
        overlap |= P2P_MODES[case.p2p]
    knobs: dict[str, Any] = dict(OVERLAPS[case.overlap])
    if case.bucket != "default":
        knobs["bucket_size"] = BUCKETS[case.bucket]
    if case.distributed:
        overlap |= knobs
    else:
        # Without the distributed optimizer comm_overlap does not apply to data parallelism.
        late = [name for name in knobs if name.endswith("optimizer_step")]
        optimizer |= {name: knobs.pop(name) for name in late}
        ddp |= knobs
    size = case.micro_batch * case.microbatches * case.dp
    parts: list[Mapping[str, Mapping[str, Any]]] = [
        start,
        {"model": {**_partition(case), **_architecture(case), **RECOMPUTE[case.recompute]}},
        DISTRIBUTED_OPTIMIZER if case.distributed else {},
        PRECISION[case.precision],
        {"ddp": {key: value for key, value in ddp.items() if value not in (False, 1)}},
        {"optimizer": optimizer, "comm_overlap": overlap},
        {"train": {"micro_batch_size": case.micro_batch, "global_batch_size": size}},
    ]
    return layered(*parts)


def unpartitioned(case: Case) -> Case:
    """The same model on the same data in one process, without anything that may not matter."""
    single = dict.fromkeys(("tp", "pp", "vpp", "dp", "ep", "instances"), 1)
    kept = {
        name: getattr(case, name) for name in (*_MODEL, "precision", "residual", "actions", "steps")
    }
    return Case(
        **{**single, **kept},
        microbatches=case.microbatches * case.dp,
        stages=f"{layers(case)}",
    )


_MODEL = (
    "micro_batch",
    "clip",
    "decay",
    "tied",
    "gated",
    "rms",
    "rope",
    "grouped",
    "qk_norm",
    "bias",
    "post",
    "experts",
    "topk",
    "mixed",
    "shared",
    "balance",
    "z_loss",
    "sigmoid",
    "mtp",
)
"""Features that an unpartitioned model has as well."""


def layers(case: Case) -> int:
    """Number of the model's decoder layers."""
    if case.stages.isdigit():
        return int(case.stages)
    chunks = case.pp * case.vpp
    more = {
        "first": case.vpp,
        "last": case.vpp,
        "embedding": -1,
        "loss": -1,
        "both": -2,
        # The last chunk has no layer, and the one before it one more.
        "layout": 1 - case.depth,
    }
    return chunks * case.depth + more.get(case.stages, 0)


def _partition(case: Case) -> dict[str, Any]:
    """Keys of the section `model` about layout and schedule."""
    total = layers(case)
    found: dict[str, Any] = {
        "num_layers": total,
        "tensor_model_parallel_size": case.tp,
        "pipeline_model_parallel_size": case.pp,
    }
    if case.vpp > 1:
        found["virtual_pipeline_model_parallel_size"] = case.vpp
    switches = {
        "sequence_parallel": case.sp,
        "deallocate_pipeline_outputs": case.deallocate,
        "variable_seq_lengths": case.variable,
        "distribute_saved_activations": case.distribute,
        "account_for_embedding_in_pipeline_split": case.stages in ("embedding", "both"),
        "account_for_loss_in_pipeline_split": case.stages in ("loss", "both"),
    }
    found |= {key: True for key, value in switches.items() if value}
    if case.group:
        found["microbatch_group_size_per_vp_stage"] = case.group
    if case.stages in ("first", "last"):
        key = f"num_layers_in_{case.stages}_pipeline_stage"
        found[key] = case.vpp * (case.depth + 1)
    if case.stages == "layout":
        found["pipeline_model_parallel_layout"] = layout_text(case)
    if case.ep > 1:
        found["expert_model_parallel_size"] = case.ep
    if case.etp:
        found["expert_tensor_parallel_size"] = case.etp
    return found


def layout_text(case: Case) -> str:
    """A pipeline layout: the last chunk has only the loss, the one before it one layer more."""
    chunks = ["t" * case.depth] * (case.pp * case.vpp - 1)
    chunks[-1] += "t"
    chunks[0] = "E" + chunks[0]
    return "|".join([*chunks, "m" * case.mtp + "L"])


def _architecture(case: Case) -> dict[str, Any]:
    """Keys of the section `model` about what is computed."""
    found: dict[str, Any] = {"share_embeddings_and_output_weights": case.tied}
    if case.gated:
        found |= {"gated_linear_unit": True, "activation_func": "silu", "ffn_hidden_size": 64}
    if case.rms:
        found["normalization"] = "RMSNorm"
    if case.rope:
        found["position_embedding_type"] = "rope"
    if case.grouped:
        found["num_query_groups"] = 2
    switches = {
        "qk_layernorm": case.qk_norm,
        "apply_residual_connection_post_layernorm": case.post,
        "fp32_residual_connection": case.residual,
    }
    found |= {key: True for key, value in switches.items() if value}
    if not case.bias:
        found["add_bias_linear"] = False
    if case.mtp:
        found["mtp_num_layers"] = case.mtp
    if case.experts != "none":
        found |= _of_experts(case)
    return found


def _of_experts(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_moe_experts": EXPERTS,
        "moe_router_topk": case.topk,
        "moe_token_dispatcher_type": case.experts,
        "moe_router_load_balancing_type": case.balance,
        "moe_ffn_hidden_size": 32,
    }
    if case.mixed:
        found["moe_layer_freq"] = 2
    if case.shared:
        found["moe_shared_expert_intermediate_size"] = 32
    if case.balance != "none":
        found["moe_aux_loss_coeff"] = 0.1
    if case.z_loss:
        found["moe_z_loss_coeff"] = 0.01
    if case.topk == 1 and not case.sigmoid:
        # The softmax of a single score is one, and Megatron-Core refuses it.
        found["moe_router_pre_softmax"] = True
    if case.sigmoid:
        found["moe_router_score_function"] = "sigmoid"
        found["moe_router_enable_expert_bias"] = True
    return found
