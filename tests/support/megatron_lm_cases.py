"""Arguments that make each of Megatron-LM's own rules fire."""

from __future__ import annotations

SIZES = "--num-layers 16 --hidden-size 256 --num-attention-heads 8 --seq-length 128 --bf16 "
SIZES += "--vocab-size 1024 --micro-batch-size 1 --global-batch-size 64"
INTERLEAVED = "--pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2"
TWO_STAGES = "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"
DISTRIBUTED = "--use-distributed-optimizer"
GATHER = f"{DISTRIBUTED} --overlap-grad-reduce --overlap-param-gather"
FSDP = "--use-megatron-fsdp --ckpt-format fsdp_dtensor"
TORCH_FSDP2 = (
    "--use-torch-fsdp2 --no-gradient-accumulation-fusion --untie-embeddings-and-output-weights"
)
EXPERTS = (
    "--num-experts 8 --expert-model-parallel-size 4 --moe-token-dispatcher-type alltoall "
    "--overlap-moe-expert-parallel-comm"
)
DELAY = f"{EXPERTS} --delay-wgrad-compute"

FINDINGS: dict[str, tuple[str, str]] = {
    "lm.sequence-parallel-off": ("--sequence-parallel", "--tensor-model-parallel-size 2"),
    "lm.tp-overlap-needs": (
        "--tensor-model-parallel-size 2 --tp-comm-overlap",
        "--sequence-parallel",
    ),
    "lm.one-chunk-no-interleaving": (
        "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 4",
        "--num-layers-per-virtual-pipeline-stage 2",
    ),
    "lm.chunk-layers-divide": (
        "--pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 3",
        "--num-layers-per-virtual-pipeline-stage 2",
    ),
    "lm.interleaving-needs-stages": (
        f"{TWO_STAGES} --no-overlap-p2p-communication",
        "--pipeline-model-parallel-size 4",
    ),
    "lm.param-gather-needs": (
        "--overlap-param-gather",
        "--use-distributed-optimizer --overlap-grad-reduce",
    ),
    "lm.param-gather-legacy-models": (f"{GATHER} --use-legacy-models", ""),
    "lm.param-gather-with-optimizer-step-needs": (
        f"{GATHER} {INTERLEAVED} --overlap-param-gather-with-optimizer-step",
        "--ckpt-format torch",
    ),
    "lm.save-params-excludes-gather": (f"{GATHER} --save here --save-params-interval 10", ""),
    "lm.freeze-all-layers": (f"{GATHER} --freeze-all-layers", ""),
    "lm.muon-no-overlap": (
        "--optimizer dist_muon --overlap-grad-reduce --overlap-param-gather",
        f"--optimizer adam {DISTRIBUTED}",
    ),
    "lm.muon-dist-only": ("--optimizer muon --overlap-grad-reduce", "--optimizer dist_muon"),
    "lm.layer-wise-refuses": (
        "--optimizer muon --ckpt-format torch_dcp",
        "--ckpt-format torch_dist",
    ),
    "lm.torch-fsdp2-needs": (
        "--use-torch-fsdp2",
        "--no-gradient-accumulation-fusion --untie-embeddings-and-output-weights",
    ),
    "lm.torch-fsdp2-fp8-gather": (f"{TORCH_FSDP2} --fp8-format hybrid --fp8-param-gather", ""),
    "lm.fsdp-checkpoint": ("--use-megatron-fsdp", "--ckpt-format fsdp_dtensor"),
    "lm.fsdp-registration-needs": ("--fsdp-manual-registration", f"{FSDP} --use-nccl-ub"),
    "lm.fsdp-optimizer": (f"{FSDP} --optimizer muon", "--optimizer adam"),
    "lm.fsdp-version-2": (
        f"{FSDP} --megatron-fsdp-version 2 {DISTRIBUTED}",
        "--megatron-fsdp-version 1",
    ),
    "lm.fp8-param-gather-needs": (
        "--fp8-format hybrid --fp8-param-gather",
        "--use-distributed-optimizer",
    ),
    "lm.mtp-positions": ("--mtp-num-layers 1", "--position-embedding-type rope"),
    "lm.bucket-number": (
        "--use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 1000000 "
        "--ddp-num-buckets 4",
        "",
    ),
    "lm.delay-wgrad-needs-implementation": (
        f"{DELAY} --transformer-impl local",
        "--transformer-impl transformer_engine",
    ),
    "lm.delay-wgrad-in-graph": (
        f"{DELAY} --overlap-grad-reduce --cuda-graph-impl transformer_engine "
        "--cuda-graph-scope attn",
        "--disable-bias-linear",
    ),
    "lm.graph-scope-excludes-modules": (
        "--cuda-graph-impl transformer_engine --cuda-graph-scope attn --cuda-graph-modules attn",
        "",
    ),
    "lm.full-iteration-graph-needs": (
        "--cuda-graph-impl full_iteration",
        "--no-check-for-nan-in-loss-and-grad",
    ),
}
"""Each rule that finds something: arguments that it finds it in, and what mends it behind them."""

CHOICES: dict[str, str] = {
    "lm.p2p-overlap": INTERLEAVED,
    "lm.align-param-gather": INTERLEAVED,
    "lm.grads-in-fp32": "",
    "lm.as-flags-say": "",
}
"""Each rule that only chooses, with arguments that it is about."""

NOTES: dict[str, str] = {
    "lm.bucket-default": "--overlap-grad-reduce",
    "lm.layer-wise-optimizer": f"{GATHER} --optimizer muon",
    "lm.fsdp-distributed-optimizer": FSDP,
    "lm.fsdp-nccl-ub": f"{FSDP} --use-nccl-ub",
    "lm.fsdp-double-buffer": f"{FSDP} --megatron-fsdp-max-pool-double-buffer",
}
"""Each rule that only notes what follows, with arguments that it follows from."""

ELSEWHERE = frozenset(
    {
        # Fires where a version is given: config/megatron_lm/test_flag_versions.py.
        "lm.flag-versions",
        # Needs an older Transformer Engine: test_megatron_lm_rules.py.
        "lm.delay-wgrad-needs-te",
        # Decided by another function, of the environment and the GPU: test_megatron_lm_rules.py.
        "lm.env-connections",
        "lm.env-connections-every-gpu",
        "lm.env-connections-weighed",
        "lm.graphs-expandable",
        "lm.high-priority-streams",
        "lm.high-priority-streams-shards",
    }
)


def every_rule() -> set[str]:
    """The ids of all rules that are made to fire here, or elsewhere."""
    return set(FINDINGS) | set(CHOICES) | set(NOTES) | ELSEWHERE


def arguments(text: str) -> list[str]:
    """A model's sizes and these arguments."""
    return f"{SIZES} {text}".split()


def without(flag: str, given: list[str]) -> list[str]:
    """Arguments without one flag, which has no value."""
    return [word for word in given if word != flag]
