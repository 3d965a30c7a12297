"""One change to an ordinary run, on five stacks: accepted or refused, and which values it gets.

What each stack does was observed with Megatron-Bridge's own configuration update (v0.3.1, v0.4.2,
v0.5.1, v0.6.0 and main of 2026-08-22, each with the Megatron-Core that it pins), with Transformer
Engine 2.14.0 and torch 2.15.0 unless a probe says otherwise, on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from megatron.bridge.training.decisions import STOPS, Outcome
from megatron.bridge.training.job_environment import JobEnvironment
from megatron.bridge.training.rules.context import Gpu
from megatron.bridge.training.runtime_update import Update
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, MAIN
from overlapkit.config.effective import knob_value, make_effective
from overlapkit.config.run import Run, read_settings
from overlapkit.config.yaml_file import Document

SHAPE = {"num_layers": 8, "hidden_size": 256, "num_attention_heads": 8, "vocab_size": 1024}
SWITCHES = {"use_distributed_optimizer": True}
STOCK: dict[str, Any] = {
    "model": SHAPE,
    "mixed_precision": "bf16_mixed",
    "ddp": {**SWITCHES, "overlap_grad_reduce": True},
    "optimizer": SWITCHES,
    "comm_overlap": {"tp_comm_overlap": False},
}
EP = {"tp_comm_overlap": False, "overlap_moe_expert_parallel_comm": True}
DELAY = {**EP, "delay_wgrad_compute": True}
MOE = {
    **STOCK,
    "model": {
        **SHAPE,
        "num_moe_experts": 8,
        "expert_model_parallel_size": 4,
        "expert_tensor_parallel_size": 1,
        "moe_token_dispatcher_type": "alltoall",
        "add_bias_linear": False,
    },
    "comm_overlap": EP,
}
ONE_QUEUE = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
BY_HAND = {
    **STOCK,
    "comm_overlap": None,
    "optimizer": {**SWITCHES, "overlap_param_gather": False},
}
STEP = {
    "pipeline_model_parallel_size": 4,
    "virtual_pipeline_model_parallel_size": 2,
}
GRAPH = {"cuda_graph_impl": "transformer_engine", "cuda_graph_scope": ["attn"]}
NEVER = "AAAAA"
ALWAYS = "XXXXX"


def base(of: dict[str, Any], **sections: dict[str, Any] | str | None) -> dict[str, Any]:
    """A configuration with other values in some sections."""
    data = dict(of)
    for section, content in sections.items():
        former = data.get(section)
        merge = isinstance(content, dict) and isinstance(former, dict)
        data[section] = {**former, **content} if merge else content  # type: ignore[dict-item]
    return data


@dataclass(frozen=True)
class Probe:
    """One change.

    Attributes:
        data: the configuration.
        seen: for each of `KNOWN`, A where Megatron-Bridge accepted it and X where it refused.
        values: knob to its value on each of `KNOWN`, where it was accepted; None: no such field.
        software, environment: what is not as stated above.
        ours: rules by which we refuse what Megatron-Bridge's update lets pass.
    """

    data: dict[str, Any]
    seen: str
    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    te: str = "2.14.0"
    environment: dict[str, str] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()


PROBES: dict[str, Probe] = {
    "stock": Probe(STOCK, NEVER),
    "num_buckets with comm_overlap": Probe(base(STOCK, ddp={"num_buckets": 4}), "AAXXX"),
    "num_buckets without comm_overlap": Probe(
        base(STOCK, ddp={"num_buckets": 4}, comm_overlap=None),
        NEVER,
        {"ddp.bucket_size": (None,) * 5, "ddp.num_buckets": (None, None, 4, 4, 4)},
    ),
    "comm_overlap=None, ddp.overlap_param_gather only": Probe(
        base(BY_HAND, ddp={"overlap_param_gather": True}),
        NEVER,
        {"optimizer.overlap_param_gather": (False, False, True, True, True)},
    ),
    "comm_overlap=None, optimizer.overlap_param_gather only": Probe(
        base(
            BY_HAND,
            ddp={"overlap_param_gather": False},
            optimizer={"overlap_param_gather": True},
        ),
        NEVER,
        {"ddp.overlap_param_gather": (False, False, True, True, True)},
    ),
    "use_distributed_optimizer only on optimizer": Probe(
        base(STOCK, ddp={"use_distributed_optimizer": False, "overlap_grad_reduce": False}),
        NEVER,
        {
            "ddp.overlap_grad_reduce": (False,) * 5,
            "ddp.bucket_size": (None,) * 5,
            "ddp.use_distributed_optimizer": (True,) * 5,
        },
    ),
    "dist.use_megatron_fsdp": Probe(
        base(
            STOCK,
            dist={"use_megatron_fsdp": True},
            model={"gradient_accumulation_fusion": True},
            ddp={"average_in_collective": True},
        ),
        NEVER,
        {
            "model.gradient_accumulation_fusion": (False, True, True, True, True),
            "ddp.use_megatron_fsdp": (True,) * 5,
            "ddp.average_in_collective": (False,) * 5,
        },
    ),
    "dist.use_megatron_fsdp, CUDA_DEVICE_MAX_CONNECTIONS=1": Probe(
        base(STOCK, dist={"use_megatron_fsdp": True}), "AAXXX", environment=ONE_QUEUE
    ),
    "dist.use_megatron_fsdp, nccl_ub": Probe(
        base(STOCK, dist={"use_megatron_fsdp": True}, ddp={"nccl_ub": True}),
        NEVER,
        {"ddp.fsdp_manual_registration": (False, False, True, True, True)},
    ),
    "dist.use_torch_fsdp2": Probe(base(STOCK, dist={"use_torch_fsdp2": True}), NEVER),
    "dist.use_torch_fsdp2, CUDA_DEVICE_MAX_CONNECTIONS=1": Probe(
        base(STOCK, dist={"use_torch_fsdp2": True}), NEVER, environment=ONE_QUEUE
    ),
    "both FSDPs": Probe(
        base(STOCK, dist={"use_torch_fsdp2": True, "use_megatron_fsdp": True}), ALWAYS
    ),
    "nccl_ub, expandable_segments": Probe(
        base(STOCK, ddp={"nccl_ub": True}), "XXAAA", environment=EXPANDABLE
    ),
    "mxfp8 gather without reuse": Probe(
        base(
            STOCK,
            mixed_precision={
                "bf16": True,
                "fp8": "e4m3",
                "fp8_recipe": "mxfp8",
                "fp8_param_gather": True,
            },
        ),
        ALWAYS,
    ),
    "mxfp8 gather without reuse, megatron fsdp": Probe(
        base(
            STOCK,
            dist={"use_megatron_fsdp": True},
            mixed_precision={
                "bf16": True,
                "fp8": "e4m3",
                "fp8_recipe": "mxfp8",
                "fp8_param_gather": True,
            },
        ),
        "XXAAA",
    ),
    "mxfp8, gather with optimizer step": Probe(
        base(
            STOCK,
            model=STEP,
            mixed_precision="bf16_with_mxfp8_mixed",
            comm_overlap={"overlap_param_gather_with_optimizer_step": True},
        ),
        "AAAXX",
    ),
    "nvfp4": Probe(
        base(STOCK, mixed_precision="bf16_with_nvfp4_mixed"),
        NEVER,
        {"ddp.fp4_param_gather": (None, True, True, True, True)},
    ),
    "EP overlap": Probe(MOE, NEVER),
    "EP overlap, MTP 1, PP 1": Probe(base(MOE, model={"mtp_num_layers": 1}), "XXAAA"),
    "EP overlap, MTP 0": Probe(base(MOE, model={"mtp_num_layers": 0}), "XXXAA"),
    "EP overlap, moe in recompute_modules": Probe(
        base(MOE, model={"recompute_granularity": "selective", "recompute_modules": ["moe"]}),
        "AXXXX",
    ),
    "EP overlap, cuda_graph_impl local": Probe(
        base(MOE, model={"cuda_graph_impl": "local"}), "XXAXX"
    ),
    "EP overlap, cuda graph full iteration": Probe(
        base(
            MOE,
            model={"cuda_graph_impl": "local", "cuda_graph_scope": ["full_iteration"]},
            rerun_state_machine={"check_for_nan_in_loss": False},
        ),
        "XXAAA",
        {"model.cuda_graph_impl": (None, None, *["full_iteration"] * 3)},
    ),
    "EP overlap, TE graph attn, delay wgrad": Probe(
        base(MOE, model=GRAPH, comm_overlap=DELAY), NEVER
    ),
    "EP overlap, TE graph attn, delay wgrad, no fusion": Probe(
        base(MOE, model={**GRAPH, "gradient_accumulation_fusion": False}, comm_overlap=DELAY),
        "AAXXX",
    ),
    "delay wgrad without EP overlap": Probe(
        base(
            MOE,
            comm_overlap={
                "overlap_moe_expert_parallel_comm": False,
                "delay_wgrad_compute": True,
            },
        ),
        ALWAYS,
    ),
    "ep_overlap_early_attn_memory_release without EP overlap": Probe(
        base(
            MOE,
            model={"ep_overlap_early_attn_memory_release": True},
            comm_overlap={"overlap_moe_expert_parallel_comm": False},
        ),
        ALWAYS,
    ),
    "overlap_dispatch_backward_with_experts_wgrad with EP overlap": Probe(
        base(MOE, model={"overlap_dispatch_backward_with_experts_wgrad": True}), "AAXXX"
    ),
    "flex, backend None": Probe(
        base(
            MOE,
            model={"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": None},
            comm_overlap={"overlap_moe_expert_parallel_comm": False},
        ),
        NEVER,
        {"model.moe_token_dispatcher_type": (*["flex"] * 4, "alltoall")},
        # Megatron-Core stops later, when it builds the model.
        ours=frozenset({"bridge.flex-needs-backend"}),
    ),
    "PP=2 VPP, overlap_p2p off, batch on": Probe(
        base(
            STOCK,
            model={
                "pipeline_model_parallel_size": 2,
                "virtual_pipeline_model_parallel_size": 2,
            },
            comm_overlap={"overlap_p2p_comm": False, "batch_p2p_comm": True},
        ),
        NEVER,
        ours=frozenset({"pp.same-peer-hazard"}),
    ),
    "env_vars": Probe(
        base(STOCK, env_vars={"CUDA_DEVICE_MAX_CONNECTIONS": 8, "X_OWN": True}), NEVER
    ),
    "TE 2.6, overlap_grad_reduce, delay wgrad": Probe(
        base(MOE, comm_overlap=DELAY), ALWAYS, te="2.6.0"
    ),
    "TE 2.9, TE graph attn, delay wgrad": Probe(
        base(MOE, model=GRAPH, comm_overlap=DELAY), ALWAYS, te="2.9.0"
    ),
}


def run_on(probe: Probe, stack: int) -> tuple[Run, Update]:
    settings = read_settings(Document("probe", probe.data))
    settings = replace(settings, stacks=(KNOWN[stack],))
    software = AssumedSoftware(te=probe.te, torch="2.15.0")
    environment = JobEnvironment(probe.environment)
    return make_effective(settings, 16, software, environment, Gpu("h100", 9.0))


CASES = [(name, stack) for name in PROBES for stack in range(len(KNOWN))]


@pytest.mark.parametrize(
    ("name", "stack"), CASES, ids=lambda v: v if isinstance(v, str) else KNOWN[v].bridge
)
def test_a_stack_accepts_and_refuses_what_it_was_seen_to(name: str, stack: int) -> None:
    probe = PROBES[name]
    run, update = run_on(probe, stack)
    refused = {d.rule for d in update.decisions if d.outcome is Outcome.ERROR}
    assert bool(refused - probe.ours) is (probe.seen[stack] == "X"), refused
    for knob, values in probe.values.items():
        if probe.seen[stack] == "A":
            assert knob_value(run, knob) == values[stack], knob


def test_what_we_refuse_beyond_megatron_bridge_is_refused() -> None:
    for probe in PROBES.values():
        for rule in probe.ours:
            _, update = run_on(probe, 0)
            assert rule in {d.rule for d in update.decisions if d.outcome in STOPS}


def test_env_vars_reach_the_job_since_0_6_0() -> None:
    known = [run_on(PROBES["env_vars"], stack)[1].environment.get("X_OWN") for stack in range(5)]
    assert known == [None, None, None, "True", "True"]


def test_there_are_33_probes_and_five_stacks() -> None:
    assert len(PROBES) == 33
    assert [stack.bridge for stack in KNOWN] == ["0.3.1", "0.4.2", "0.5.1", "0.6.0", MAIN]
