"""Megatron-LM's flags that determine the overlap or the workload, and what each sets.

Which versions have a flag is in `flag_versions`, with the names of all the others.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any, Literal

from overlapkit.errors import InputError

Kind = Literal["int", "str", "names", "freq", "given", "on", "off"]


@dataclass(frozen=True)
class Flag:
    """What a flag sets.

    Attributes:
        kind: what follows it: a number, a name, names, a pattern of layers, something of which only
            the presence counts ("given"), or nothing ("on" and "off" are switches, by the value
            that they set).
        keys: the dotted keys that it sets.
    """

    kind: Kind
    keys: tuple[str, ...]


def _flags(kind: Kind, names: str, section: str = "model") -> dict[str, Flag]:
    """Flags whose key is the flag's own name."""
    return {
        f"--{name}": Flag(kind, (f"{section}.{name.replace('-', '_')}",)) for name in names.split()
    }


LM = "megatron_lm"
"""The section of flags that are not fields of Megatron-Core's configurations."""

CHUNK_LAYERS = "--num-layers-per-virtual-pipeline-stage"
CHUNKS = "--num-virtual-stages-per-pipeline-rank"

FLAGS: dict[str, Flag] = {
    **_flags(
        "int",
        "tensor-model-parallel-size pipeline-model-parallel-size context-parallel-size "
        "expert-model-parallel-size expert-tensor-parallel-size num-layers hidden-size "
        "ffn-hidden-size num-attention-heads num-query-groups kv-channels seq-length vocab-size "
        "make-vocab-size-divisible-by moe-ffn-hidden-size moe-router-topk "
        "moe-shared-expert-intermediate-size mtp-num-layers recompute-num-layers "
        "wgrad-deferral-limit num-layers-at-start-in-bf16 num-layers-at-end-in-bf16 fp8-margin "
        "fp8-amax-history-len q-lora-rank kv-lora-rank qk-head-dim qk-pos-emb-head-dim v-head-dim "
        "moe-deepep-num-sms moe-hybridep-num-sms moe-flex-dispatcher-num-sms "
        "tensor-parallel-num-weight-shards expert-tensor-parallel-num-weight-shards",
    ),
    **_flags(
        "str",
        "tp-comm-overlap-cfg tp-comm-bootstrap-backend moe-token-dispatcher-type "
        "moe-flex-dispatcher-backend position-embedding-type normalization transformer-impl "
        "recompute-granularity recompute-method fp8-amax-compute-algo fp4-recipe cuda-graph-impl "
        "pipeline-model-parallel-layout moe-router-score-function",
    ),
    **_flags(
        "on",
        "sequence-parallel tp-comm-overlap tp-comm-overlap-rs-dgrad add-qkv-bias qk-layernorm "
        "multi-latent-attention overlap-moe-expert-parallel-comm moe-shared-expert-overlap "
        "moe-grouped-gemm moe-use-legacy-grouped-gemm defer-embedding-wgrad-compute "
        "account-for-embedding-in-pipeline-split account-for-loss-in-pipeline-split "
        "first-last-layers-bf16 enable-cuda-graph external-cuda-graph "
        "overlap-dispatch-backward-with-experts-wgrad ep-overlap-early-attn-memory-release "
        "high-priority-a2a-comm-stream is-hybrid-model moe-router-pre-softmax "
        "distribute-saved-activations",
    ),
    **_flags(
        "names",
        "recompute-modules cuda-graph-scope cuda-graph-modules cp-comm-type "
        "moe-router-load-balancing-type",
    ),
    **_flags("int", "num-distributed-optimizer-instances megatron-fsdp-version", "ddp"),
    **_flags("str", "data-parallel-sharding-strategy outer-dp-sharding-strategy", "ddp"),
    **_flags(
        "on",
        "overlap-grad-reduce use-megatron-fsdp use-custom-fsdp fsdp-double-buffer "
        "fsdp-manual-registration megatron-fsdp-enable-fine-grained-param-gather "
        "megatron-fsdp-max-pool-double-buffer",
        "ddp",
    ),
    **_flags("str", "optimizer muon-tp-mode", "optimizer"),
    **_flags("int", "micro-batch-size global-batch-size manual-gc-interval", "train"),
    **_flags("on", "manual-gc decrease-batch-size-if-needed", "train"),
    **_flags("names", "rampup-batch-size", "train"),
    **_flags(
        "int",
        "ddp-num-buckets save-params-interval save-interval train-iters eval-iters eval-interval",
        LM,
    ),
    **_flags(
        "on",
        "grad-reduce-in-bf16 use-torch-fsdp2 freeze-all-layers use-legacy-models "
        "dist-ckpt-optim-fully-reshardable",
        LM,
    ),
    "--no-save-optim": Flag("off", (f"{LM}.save_optim",)),
    **_flags("str", "main-grads-dtype ckpt-format distributed-backend", LM),
    **_flags("given", "save", LM),
    **_flags("names", "high-priority-stream-groups", LM),
    # The former and the present name of the layers of a hybrid model.
    "--hybrid-override-pattern": Flag("str", ("model.hybrid_layer_pattern",)),
    "--hybrid-layer-pattern": Flag("str", ("model.hybrid_layer_pattern",)),
    CHUNK_LAYERS: Flag("int", (f"{LM}.num_layers_per_virtual_pipeline_stage",)),
    "--microbatch-group-size-per-virtual-pipeline-stage": Flag(
        "int", ("model.microbatch_group_size_per_vp_stage",)
    ),
    CHUNKS: Flag("int", ("model.virtual_pipeline_model_parallel_size",)),
    "--decoder-first-pipeline-num-layers": Flag(
        "int", ("model.num_layers_in_first_pipeline_stage",)
    ),
    "--decoder-last-pipeline-num-layers": Flag("int", ("model.num_layers_in_last_pipeline_stage",)),
    "--use-distributed-optimizer": Flag(
        "on", ("ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer")
    ),
    "--overlap-param-gather": Flag(
        "on", ("ddp.overlap_param_gather", "optimizer.overlap_param_gather")
    ),
    "--overlap-param-gather-with-optimizer-step": Flag(
        "on", ("optimizer.overlap_param_gather_with_optimizer_step",)
    ),
    "--no-align-param-gather": Flag("off", ("ddp.align_param_gather",)),
    "--no-overlap-p2p-communication": Flag("off", ("model.overlap_p2p_comm",)),
    "--overlap-p2p-communication-warmup-flush": Flag(
        "on", ("model.overlap_p2p_comm_warmup_flush",)
    ),
    "--ddp-bucket-size": Flag("int", ("ddp.bucket_size",)),
    "--ddp-average-in-collective": Flag("on", ("ddp.average_in_collective",)),
    "--ddp-pad-buckets-for-high-nccl-busbw": Flag("on", ("ddp.pad_buckets_for_high_nccl_busbw",)),
    "--ddp-reduce-scatter-with-fp32-accumulation": Flag(
        "on", ("ddp.reduce_scatter_with_fp32_accumulation",)
    ),
    "--ddp-param-name-patterns-for-fp32-local-accumulation": Flag(
        "names", ("ddp.param_name_patterns_for_fp32_local_accumulation",)
    ),
    "--use-nccl-ub": Flag("on", ("ddp.nccl_ub",)),
    "--no-gradient-reduce-div-fusion": Flag("off", ("ddp.gradient_reduce_div_fusion",)),
    "--no-check-for-nan-in-loss-and-grad": Flag(
        "off", (f"{LM}.check_for_nan", "ddp.check_for_nan_in_grad")
    ),
    **{
        f"--{off}-tp-comm-{name}": Flag("off", (f"model.tp_comm_{name.replace('-', '_')}",))
        for name in ("overlap-ag", "overlap-rs", "bulk-dgrad", "bulk-wgrad", "split-ag", "split-rs")
        for off in ("disable", "no")
    },
    "--accumulate-allreduce-grads-in-fp32": Flag("on", ("ddp.grad_reduce_in_fp32",)),
    "--bf16": Flag("on", ("model.bf16", "optimizer.bf16")),
    "--fp16": Flag("on", ("model.fp16", "optimizer.fp16")),
    "--fp8-format": Flag("str", ("model.fp8",)),
    "--fp4-param-gather": Flag("on", ("ddp.fp4_param_gather", "model.fp4_param")),
    "--fp8-recipe": Flag("str", ("model.fp8_recipe", "optimizer.fp8_recipe")),
    "--fp8-param-gather": Flag("on", ("ddp.fp8_param_gather", "model.fp8_param")),
    "--no-fp8-wgrad": Flag("off", ("model.fp8_wgrad",)),
    "--fp4-format": Flag("str", ("model.fp4",)),
    "--reuse-grad-buf-for-mxfp8-param-ag": Flag(
        "on",
        (
            "ddp.reuse_grad_buf_for_mxfp8_param_ag",
            "optimizer.reuse_grad_buf_for_mxfp8_param_ag",
        ),
    ),
    "--delay-wgrad-compute": Flag("on", ("model.delay_wgrad_compute", "ddp.delay_wgrad_compute")),
    "--num-experts": Flag("int", ("model.num_moe_experts",)),
    "--moe-layer-freq": Flag("freq", ("model.moe_layer_freq",)),
    "--no-gradient-accumulation-fusion": Flag("off", ("model.gradient_accumulation_fusion",)),
    "--disable-bias-linear": Flag("off", ("model.add_bias_linear",)),
    "--swiglu": Flag("on", ("model.gated_linear_unit",)),
    "--untie-embeddings-and-output-weights": Flag(
        "off", ("model.share_embeddings_and_output_weights",)
    ),
    "--group-query-attention": Flag("on", ()),
    "--recompute-activations": Flag("on", ()),
    "--moe-enable-deepep": Flag("on", ("model.moe_enable_deepep",)),
    "--use-rotary-position-embeddings": Flag("on", ()),
    "--use-checkpoint-args": Flag("on", ()),
    "--use-dist-ckpt": Flag("on", ()),
}
"""What each flag sets."""

MATTERS_LITTLE = frozenset(
    {
        "--optimizer",
        "--muon-tp-mode",
        "--moe-router-score-function",
        "--moe-router-load-balancing-type",
        "--save-params-interval",
        "--high-priority-stream-groups",
        "--moe-deepep-num-sms",
        "--moe-hybridep-num-sms",
        "--moe-flex-dispatcher-num-sms",
        "--ddp-param-name-patterns-for-fp32-local-accumulation",
        "--outer-dp-sharding-strategy",
    }
)
"""Flags that change little, so that a value that is not known is no error."""

DEFAULTS: dict[str, Any] = {
    "model.deallocate_pipeline_outputs": True,
    "model.gradient_accumulation_fusion": True,
    "model.overlap_p2p_comm": True,
    "model.should_pad_vocab": True,
    "ddp.align_param_gather": True,
    "ddp.check_for_nan_in_grad": True,
}
"""Megatron-LM's defaults that are not Megatron-Core's."""

SWITCHED = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""What a switch of a fork may be followed by."""

_WHOLE = re.compile(r"\s*[-+]?\d(?:_?\d){0,999}\s*")
"""What argparse reads with Python's int, the type of these flags; of any size that makes sense."""


def known_flag(argument: str) -> str | None:
    """The flag of the table that an argument begins with, as ``--flag`` or ``--flag=value``.

    Some forks spell all flags with underscores: those are the same flags.
    """
    name = argument.partition("=")[0]
    if name in FLAGS:
        return name
    dashed = name.replace("_", "-")
    return dashed if dashed in FLAGS else None


def flag_value(flag: str, words: list[str], where: str) -> Any:
    """The value in the words after a flag.

    Raises:
        InputError: there are too few or too many words, or they are not of the flag's kind.
    """
    kind = FLAGS[flag].kind
    if kind in ("on", "off"):
        if words and words[0].lower() in SWITCHED:
            raise InputError(
                f"{where}: {flag} {words[0]}: it is a switch, which takes no value; omit "
                f"{words[0]}, or omit the flag to switch it off"
            )
        return kind == "on"
    if kind == "given":
        return True
    if not words or (words[0] == "" and kind != "names"):
        raise InputError(f"{where}: {flag} needs a value")
    if kind == "names":
        return words if len(words) > 1 or flag != "--cp-comm-type" else words[0]
    word = words[0]
    if kind == "int":
        if _WHOLE.fullmatch(word) is None:
            raise InputError(f"{where}: {flag} {word[:40]}: must be a whole number")
        return int(word)
    return layer_pattern(word, where) if kind == "freq" else word


def layer_pattern(text: str, where: str) -> int | list[int]:
    """--moe-layer-freq: a number N, or a list as in Python, such as ``[0]*3+[1]*58``.

    Raises:
        InputError: it is neither.
    """
    # Forks pass -1 for their default; Megatron-Core takes i % -1 == 0 then: every layer.
    if re.fullmatch(r"-?\d{1,6}", text):
        return int(text)
    try:
        pattern = _pattern(ast.parse(text, mode="eval").body) if len(text) < 5000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pattern = None
    if not isinstance(pattern, list):
        raise InputError(
            f"{where}: --moe-layer-freq {text[:40]}: must be a whole number, or lists of 0 and 1 "
            "with + and *"
        )
    return pattern


def _pattern(node: ast.expr) -> int | list[int] | None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List):
        items = [_pattern(item) for item in node.elts]
        return [i for i in items if isinstance(i, int)]
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _pattern(node.left), _pattern(node.right)
    if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
        return left + right
    if isinstance(node.op, ast.Mult):
        if isinstance(left, int) and isinstance(right, list):
            left, right = right, left
        if isinstance(left, list) and isinstance(right, int) and len(left) * right <= 10_000:
            return left * right
    return None
