"""Which settings are trained here as they are, which are not, and what that leaves unproven.

A setting in none of these tables is named as not trained: nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from overlapkit.config.provider_defaults import bridge_default
from overlapkit.config.schema import section_fields
from overlapkit.lab.own.reduced import Notes


class Instead(NamedTuple):
    """What a setting becomes here.

    Attributes:
        value: the value here; None: it is not set.
        unproven: what that leaves unproven; empty where it leaves nothing.
    """

    value: Any
    unproven: str


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


TRAINED: Mapping[str, frozenset[str]] = {
    "model": _names(
        "activation_func activation_func_clamp_value add_bias_linear add_qkv_bias "
        "attention_output_gate attention_softmax_in_fp32 batch_p2p_comm batch_p2p_sync "
        "bf16 clone_scatter_output_in_embedding deallocate_pipeline_outputs "
        "distribute_saved_activations fp32_residual_connection gated_linear_unit "
        "glu_linear_offset layernorm_epsilon moe_apply_probs_on_input moe_aux_loss_coeff "
        "moe_expert_capacity_factor moe_input_jitter_eps moe_pad_expert_input_to_capacity "
        "moe_router_bias_update_rate moe_router_dtype moe_router_enable_expert_bias "
        "moe_router_force_load_balancing moe_router_load_balancing_type "
        "moe_router_pre_softmax moe_router_score_function moe_router_topk_scaling_factor "
        "moe_shared_expert_gate moe_token_dispatcher_type moe_token_drop_policy "
        "moe_z_loss_coeff mtp_loss_scaling_factor "
        "normalization overlap_p2p_comm "
        "overlap_p2p_comm_warmup_flush params_dtype pipeline_dtype position_embedding_type "
        "qk_l2_norm qk_layernorm recompute_granularity recompute_method recompute_modules "
        "recompute_num_layers rope_scaling rope_scaling_factor rotary_base "
        "rotary_interleaved rotary_percent "
        "scatter_embedding_sequence_parallel seq_len_interpolation_factor sequence_parallel "
        "share_embeddings_and_output_weights softmax_type"
    ),
    "ddp": _names(
        "align_param_gather average_in_collective check_for_large_grads check_for_nan_in_grad "
        "grad_reduce_in_fp32 overlap_grad_reduce overlap_param_gather "
        "pad_buckets_for_high_nccl_busbw reduce_scatter_with_fp32_accumulation "
        "use_distributed_optimizer"
    ),
    "optimizer": _names(
        "adam_beta1 adam_beta2 adam_eps bf16 clip_grad decoupled_weight_decay lr "
        "overlap_param_gather overlap_param_gather_with_optimizer_step params_dtype sgd_momentum "
        "use_distributed_optimizer weight_decay"
    ),
    "comm_overlap": _names(
        "align_param_gather batch_p2p_comm overlap_grad_reduce overlap_p2p_comm "
        "overlap_param_gather overlap_param_gather_with_optimizer_step tp_comm_overlap"
    ),
}
"""Settings that a rank is given as they are."""

_DEFERRED = (
    "its kernel accumulates weight gradients on a GPU; the gradient is computed at once here"
)
_SPLIT = "it needs Transformer Engine; weight gradients are computed with the others here"
_STREAMS = "it needs CUDA streams; the exchange of tokens is waited for here"
_USERBUFFERS = (
    "Transformer Engine's userbuffers need GPUs, so that no GEMM is overlapped with its exchange; "
    "the exchange itself is trained"
)
_FP8 = "FP8 and FP4 need Transformer Engine; bf16 is trained instead"
_GRAPHS = "CUDA graphs need a GPU"
_OFFLOAD = "it needs a GPU to copy from"
_FSDP = (
    "FSDP needs CUDA; Megatron DDP is trained instead, so that FSDP's sharding, gathers and "
    "prefetching are not"
)

INSTEAD: Mapping[str, Instead] = {
    "model.cpu_offloading": Instead(None, _OFFLOAD),
    "model.cuda_graph_impl": Instead(None, _GRAPHS),
    "model.cuda_graph_scope": Instead(None, _GRAPHS),
    "model.defer_embedding_wgrad_compute": Instead(False, _DEFERRED),
    "model.delay_wgrad_compute": Instead(False, _SPLIT),
    "model.enable_cuda_graph": Instead(None, _GRAPHS),
    "model.external_cuda_graph": Instead(None, _GRAPHS),
    "model.fine_grained_activation_offloading": Instead(None, _OFFLOAD),
    "model.fp4": Instead(None, _FP8),
    "model.fp4_param": Instead(None, _FP8),
    "model.fp8": Instead(None, _FP8),
    "model.fp8_param": Instead(None, _FP8),
    "model.layernorm_zero_centered_gamma": Instead(
        None, "its normalization needs Transformer Engine; gamma is the weight itself here"
    ),
    "model.moe_grouped_gemm": Instead(
        False, "it needs Transformer Engine; experts are computed one after the other here"
    ),
    "model.moe_shared_expert_overlap": Instead(False, _STREAMS),
    "model.multi_latent_attention": Instead(
        False,
        "Megatron-Core builds it of Transformer Engine's modules; attention with as many heads is "
        "trained instead",
    ),
    "model.overlap_moe_expert_parallel_comm": Instead(False, _STREAMS),
    "model.tp_comm_overlap": Instead(False, _USERBUFFERS),
    "model.wgrad_deferral_limit": Instead(None, ""),
    "model.window_size": Instead(
        None, "windows need Transformer Engine's attention; each token sees all before it here"
    ),
    "ddp.delay_wgrad_compute": Instead(False, _SPLIT),
    "ddp.fp4_param_gather": Instead(None, _FP8),
    "ddp.fp8_param_gather": Instead(False, _FP8),
    "ddp.nccl_ub": Instead(False, "NCCL's user buffers need GPUs"),
    "ddp.reuse_grad_buf_for_mxfp8_param_ag": Instead(None, _FP8),
    "ddp.use_custom_fsdp": Instead(None, _FSDP),
    "ddp.use_megatron_fsdp": Instead(None, _FSDP),
    "optimizer.optimizer_cpu_offload": Instead(None, _OFFLOAD),
    "optimizer.reuse_grad_buf_for_mxfp8_param_ag": Instead(None, _FP8),
    "optimizer.use_layer_wise_distributed_optimizer": Instead(None, "Muon is not trained here"),
    "optimizer.use_precision_aware_optimizer": Instead(
        None, "it needs Transformer Engine's Adam; its states are in fp32 here"
    ),
    "comm_overlap.defer_embedding_wgrad_compute": Instead(False, _DEFERRED),
    "comm_overlap.delay_wgrad_compute": Instead(False, _SPLIT),
    "comm_overlap.overlap_moe_expert_parallel_comm": Instead(False, _STREAMS),
    "comm_overlap.tp_comm_overlap": Instead(False, _USERBUFFERS),
    "comm_overlap.wgrad_deferral_limit": Instead(None, ""),
}
"""What a CPU does not run, where it is on."""

_FUSED = _names(
    "apply_rope_fusion attention_backend bias_activation_fusion bias_dropout_add_fusion "
    "bias_dropout_fusion cross_entropy_fusion_impl cross_entropy_loss_fusion "
    "fused_residual_rmsnorm fused_single_qkv_rope gradient_accumulation_fusion "
    "masked_softmax_fusion memory_efficient_layer_norm mla_down_proj_fusion moe_permute_fusion "
    "moe_router_fusion persist_layer_norm transformer_impl transformer_layer_spec "
    "use_fused_weighted_squared_relu use_te_activation_func use_te_rng_tracker "
    "use_transformer_engine_full_layer_spec use_transformer_engine_op_fuser"
)
"""Kernels of the same computation: Megatron-Core's unfused modules compute it here."""

_ELSEWHERE: Mapping[str, frozenset[str]] = {
    "model": _names(
        # Sizes and the layout, which other steps reduce.
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels "
        "q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim num_moe_experts "
        "moe_router_topk moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_layer_freq "
        "moe_router_num_groups moe_router_group_topk no_rope_freq seq_length vocab_size "
        "max_position_embeddings mtp_num_layers pipeline_model_parallel_layout "
        "num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage "
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
        "tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
        "virtual_pipeline_model_parallel_size expert_model_parallel_size "
        "expert_tensor_parallel_size microbatch_group_size_per_vp_stage cp_comm_type "
        "hidden_dropout attention_dropout fp16 make_vocab_size_divisible_by should_pad_vocab "
        # What belongs to a knob that another entry names.
        "tp_comm_overlap_cfg tp_comm_bootstrap_backend moe_flex_dispatcher_backend "
        "moe_enable_deepep fp8_recipe fp8_margin fp8_amax_history_len fp8_amax_compute_algo "
        "fp8_dot_product_attention fp8_multi_head_attention fp8_wgrad fp4_recipe "
        "first_last_layers_bf16 num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 "
        "cpu_offloading_num_layers cuda_graph_modules cuda_graph_warmup_steps offload_modules "
        "mscale mscale_all_dim rope_type rotary_scaling_factor beta_fast beta_slow "
        # Where weights come from, and bookkeeping.
        "init_method init_method_std output_layer_init_method embedding_init_method "
        "embedding_init_method_std perform_initialization use_cpu_initialization "
        "init_model_with_meta_device hf_model_id hf_model_revision generation_config timers "
        "config_logger_dir extra_checkpoint_metadata barrier_with_L1_time deterministic_mode "
        "autocast_dtype enable_autocast parallel_output fp16_lm_cross_entropy mtp_enabled "
        "is_vision_language transformer restore_modelopt_state"
    ),
    "ddp": _names(
        "bucket_size data_parallel_sharding_strategy outer_dp_sharding_strategy "
        "preserve_fp32_weights gradient_reduce_div_fusion keep_fp8_transpose_cache "
        "fsdp_double_buffer num_distributed_optimizer_instances "
        "suggested_communication_unit_size"
    ),
    "optimizer": _names(
        "optimizer min_lr fp16 main_grads_dtype main_params_dtype exp_avg_dtype exp_avg_sq_dtype "
        "loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis timers "
        "barrier_with_L1_time log_num_zeros_in_grad config_logger_dir fp8_recipe "
        "muon_use_nesterov muon_momentum muon_nesterov muon_split_qkv muon_tp_mode"
    ),
    "comm_overlap": _names(
        "tp_comm_overlap_cfg tp_comm_bootstrap_backend bucket_size data_parallel_size"
    ),
}

_ACTIVATIONS = ("silu", "gelu", "relu")


def keep_knobs(section: str, given: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """The keys of a section that are trained here.

    Args:
        section: its name.
        given: its keys as requested.
        notes: where it is written down what became of the others.
    """
    result: dict[str, Any] = {}
    fused: list[str] = []
    others: list[str] = []
    for key, value in given.items():
        instead = INSTEAD.get(f"{section}.{key}")
        if instead is not None and _is_on(value):
            if instead.value is not None:
                result[key] = instead.value
            notes.change(f"{section}.{key}", value, instead.value, "a CPU does not have it")
            if instead.unproven:
                notes.unproven.append(f"{section}.{key}: {instead.unproven}")
        elif instead is not None and instead.value is not None and value is not None:
            result[key] = value
        elif key in TRAINED.get(section, ()):
            if _is_plain(value):
                result[key] = value
            elif value is not None:
                others.append(key)
        elif (
            instead is None
            and key not in _ELSEWHERE.get(section, ())
            and _matters(section, key, value)
        ):
            (fused if key in _FUSED else others).append(key)
    if fused:
        notes.kept.append(
            f"what {', '.join(sorted(fused))} compute, by Megatron-Core's unfused modules"
        )
    notes.unproven += [f"{section}.{key}: the lab does not know it: not trained" for key in others]
    return result


def _is_on(value: Any) -> bool:
    return value not in (None, False, 0, "none", "") and value != []


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(each, bool | int | float | str) for each in value)
    return isinstance(value, bool | int | float | str)


def _matters(section: str, key: str, value: Any) -> bool:
    """Whether a key that is not trained changes anything: it has another value than its default."""
    if not _is_on(value) and key not in section_fields(section):
        return False
    known = section_fields(section).get(key)
    return known is None or (
        value is not None and value != bridge_default(section, key, known.default)
    )


def adapt_model(model: dict[str, Any], run_model: Any, notes: Notes) -> None:
    """Values of section `model` that a CPU does not have, replaced by the nearest that it has."""
    for key in ("hidden_dropout", "attention_dropout"):
        if getattr(run_model, key, 0.0):
            why = "random numbers depend on the layout"
            notes.change(f"model.{key}", getattr(run_model, key), 0.0, why)
        model[key] = 0.0
    chunks = getattr(run_model, "virtual_pipeline_model_parallel_size", None) or 1
    if model.get("deallocate_pipeline_outputs") and chunks > 1:
        model["deallocate_pipeline_outputs"] = False
        why = "the ranks' gloo sends from the memory that it frees (core.sent-then-freed)"
        notes.change("model.deallocate_pipeline_outputs", True, False, why)
        notes.unproven.append(
            "model.deallocate_pipeline_outputs: that a stage's outputs are freed while they are "
            "sent, in Megatron-Core before 0.18"
        )
    function = model.get("activation_func")
    if function is not None:
        name = str(function).rpartition(".")[2]
        near = next((each for each in _ACTIVATIONS if each in name), "gelu")
        model["activation_func"] = f"torch.nn.functional.{near}"
        if near != name:
            notes.change("model.activation_func", name, near, "the lab has no other")
    if model.get("moe_token_dispatcher_type") == "flex":
        model["moe_token_dispatcher_type"] = "alltoall"
        notes.change("model.moe_token_dispatcher_type", "flex", "alltoall", "DeepEP needs GPUs")
        notes.unproven.append(
            "model.moe_token_dispatcher_type: flex's own kernels are not trained; the same tokens "
            "go to the same experts"
        )
    if model.get("position_embedding_type") in ("mrope", "yarn"):
        old, model["position_embedding_type"] = model["position_embedding_type"], "rope"
        notes.change("model.position_embedding_type", old, "rope", "the lab has no other")
    if isinstance(model.get("rotary_base"), list):
        old = model["rotary_base"]
        model["rotary_base"] = old[0]
        notes.change("model.rotary_base", old, old[0], "one for all layers")
