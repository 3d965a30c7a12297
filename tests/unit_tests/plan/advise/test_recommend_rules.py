"""Everything recommended passes the rules: explain on the emitted configuration agrees."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.decisions import STOPS, Outcome
from overlapkit.config.emit.forms import emit
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings, build_run, read_settings
from overlapkit.config.yaml_file import Document, read_yaml
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Assumptions, explain
from overlapkit.plan.advise.dimensions import dimensions
from overlapkit.plan.advise.proposal import Proposal, propose
from overlapkit.plan.inputs import PRECISIONS, read_inputs
from overlapkit.plan.search.candidates import SWEPT, candidates, layout_in, sizes_of, with_layout

MIXTURE = {
    "num_layers": 48,
    "hidden_size": 2048,
    "ffn_hidden_size": 6144,
    "num_attention_heads": 32,
    "num_query_groups": 4,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "vocab_size": 151936,
    "seq_length": 4096,
    "num_moe_experts": 128,
    "moe_ffn_hidden_size": 768,
    "moe_router_topk": 8,
    "moe_token_dispatcher_type": "alltoall",
}
WORLD = 128
ROOT = Path(__file__).parents[4]


def on(gpu: str) -> Assumptions:
    return replace(assume(gpu, "assume", None), environment={})


def planned(*arguments: str, model: str = "llama3_70b", world_size: int = 64) -> Settings:
    return read_inputs(
        arguments,
        model=model,
        world_size=world_size,
    ).settings


def grid() -> list[tuple[str, str, str]]:
    return list(product(("a100", "h100", "b200"), ("llama3_8b", "gpt3_175b"), PRECISIONS))


def emitted(proposal: Proposal, folder: Path) -> Settings:
    file = folder / "run.yaml"
    text = emit(proposal.settings, "yaml").text
    file.write_text(text, encoding="utf-8")
    # A file that a user writes does not show the versions, which its launch environment depends on.
    return replace(read_settings(read_yaml(file)), stacks=proposal.settings.stacks)


def assert_agrees(proposal: Proposal, world_size: int, gpu: str, folder: Path) -> None:
    """What explain says of the emitted configuration is what was claimed."""
    report = explain(emitted(proposal, folder), world_size, on(gpu))
    assert report.findings == []
    assert report.effective == proposal.report.effective
    assert report.launch_env == proposal.report.launch_env
    asked = proposal.settings.values["comm_overlap"] or {}
    for knob, section in (
        ("tp_comm_overlap", "model"),
        ("overlap_moe_expert_parallel_comm", "model"),
        ("overlap_grad_reduce", "ddp"),
        ("overlap_param_gather", "ddp"),
        ("bucket_size", "ddp"),
    ):
        if knob in asked:
            assert report.effective[f"{section}.{knob}"] == asked[knob]


def some_layouts(settings: Settings, swept: tuple[str, ...]) -> list[Settings]:
    run = build_run(settings)
    found = list(candidates(sizes_of(run.model, run.train), WORLD, 8, layout_in(run), swept))
    chosen = found[:: max(len(found) // 12, 1)]
    assert len({choice.tp for choice in chosen}) > 2
    return [with_layout(settings, choice) for choice in chosen]


@pytest.mark.parametrize(("gpu", "model", "precision"), grid())
def test_explain_agrees_for_dense_models(
    gpu: str, model: str, precision: str, tmp_path: Path
) -> None:
    settings = planned(f"precision={precision}", model=model, world_size=WORLD)
    for each in some_layouts(settings, ("tp", "pp", "vp", "cp", "mbs")):
        assert_agrees(propose(each, WORLD, on(gpu)), WORLD, gpu, tmp_path)


@pytest.mark.parametrize("gpu", ["h100", "gb200"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "mxfp8"])
@pytest.mark.parametrize("dispatcher", ["alltoall", "flex", "allgather"])
def test_explain_agrees_for_mixtures(
    gpu: str, precision: str, dispatcher: str, tmp_path: Path
) -> None:
    # DeepEP, Megatron-Core's default, is refused on GB200.
    backend = {"moe_flex_dispatcher_backend": "hybridep"} if gpu == "gb200" else {}
    data = {
        "model": MIXTURE | {"moe_token_dispatcher_type": dispatcher} | backend,
        "mixed_precision": PRECISIONS[precision],
        "train": {"micro_batch_size": 1, "global_batch_size": 1024},
    }
    settings = read_settings(Document("mixture", data))
    seen = set()
    for each in some_layouts(settings, SWEPT):
        proposal = propose(each, WORLD, on(gpu))
        assert_agrees(proposal, WORLD, gpu, tmp_path)
        seen.add(proposal.effective("model.overlap_moe_expert_parallel_comm"))
        refused = {d.outcome for d in proposal.refused}
        assert refused <= {Outcome.ERROR}
    assert seen == ({True, False} if dispatcher != "allgather" else {False})


HAZARDS: dict[str, dict[str, dict[str, Any] | str]] = {
    "none": {},
    "instances": {"ddp": {"num_distributed_optimizer_instances": 2}},
    "mxfp8": {"mixed_precision": "bf16_with_mxfp8_mixed"},
    "fp8": {"mixed_precision": "bf16_with_fp8_delayed_scaling_mixed"},
    "with the step": {
        "mixed_precision": "bf16_with_mxfp8_mixed",
        "comm_overlap": {
            "tp_comm_overlap": False,
            "overlap_param_gather_with_optimizer_step": True,
        },
    },
    "batched": {"comm_overlap": {"tp_comm_overlap": True, "batch_p2p_comm": True}},
    "MTP": {"model": {"mtp_num_layers": 2}},
}
"""Settings that a version has a bug with, or that stop a run with overlap."""


@pytest.mark.parametrize("core", [None, "0.16.1", "0.18.0"])
@pytest.mark.parametrize("hazard", HAZARDS)
def test_no_proposal_stops_a_run_or_gives_wrong_numbers(hazard: str, core: str | None) -> None:
    sizes = {"num_layers": 16, "hidden_size": 2048, "num_attention_heads": 16, "vocab_size": 32000}
    layouts: list[dict[str, Any]] = [
        {},
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2},
        {"tensor_model_parallel_size": 16, "sequence_parallel": True},
        {
            "num_moe_experts": 8,
            "expert_model_parallel_size": 4,
            "moe_token_dispatcher_type": "alltoall",
        },
    ]
    for layout, gpu in product(layouts, ("h100", "a100", "b200")):
        dangerous: dict[str, Any] = {"mixed_precision": "bf16_mixed", **HAZARDS[hazard]}
        data = dangerous | {
            "model": {**sizes, "seq_length": 2048, **layout, **dangerous.get("model", {})},
            "ddp": {"use_distributed_optimizer": True, **dangerous.get("ddp", {})},
            "train": {"micro_batch_size": 1, "global_batch_size": 256},
        }
        settings = read_settings(Document("dangerous", data), reading=Reading(core=core))
        found = propose(settings, 64, on(gpu)).report.findings
        assert [d.rule for d in found if d.outcome in STOPS] == []


def pitfalls(*overrides: str) -> Settings:
    arguments = [str(ROOT / "examples/pitfalls_16xh100.yaml"), *overrides]
    return read_inputs(arguments, world_size=16).settings


def test_own_overlap_settings_are_replaced_and_nothing_is_refused(tmp_path: Path) -> None:
    settings = pitfalls("model.sequence_parallel=true")
    before = explain(settings, 16, on("h100"))
    assert {"ddp.bucket_size", "model.batch_p2p_comm"} <= {d.knob for d in before.findings}
    proposal = propose(settings, 16, on("h100"))
    assert_agrees(proposal, 16, "h100", tmp_path)
    assert proposal.effective("model.tp_comm_overlap") is True
    assert proposal.effective("model.overlap_p2p_comm") is True


def test_a_stated_sequence_parallel_stays_and_the_remedy_is_shown(tmp_path: Path) -> None:
    proposal = propose(pitfalls(), 16, on("h100"))
    assert_agrees(proposal, 16, "h100", tmp_path)
    assert proposal.effective("model.sequence_parallel") is False
    assert proposal.effective("model.tp_comm_overlap") is False
    assert "sequence_parallel=true" in (proposal.tensor.remedy or "")
    # With TP 1 it had to be false, which says nothing about another TP.
    wider = propose(pitfalls("tp=4"), 16, on("h100"))
    assert wider.effective("model.tp_comm_overlap") is True


def test_opt_ins_of_the_configuration_stay_where_the_rules_grant_them(tmp_path: Path) -> None:
    config = ROOT / "tests/data/bridge_configs/gpt3_175b_pretrain_config.yaml"

    def proposal(*overrides: str) -> Proposal:
        settings = read_inputs([str(config), *overrides], world_size=128).settings
        return propose(settings, 128, on("h100"))

    granted = proposal("model.gradient_accumulation_fusion=true")
    assert granted.effective("model.defer_embedding_wgrad_compute") is True
    assert granted.effective("model.wgrad_deferral_limit") == 50
    assert_agrees(granted, 128, "h100", tmp_path)
    refused = proposal()
    assert refused.effective("model.defer_embedding_wgrad_compute") is False
    assert [d.rule for d in refused.refused] == ["core.defer-embedding-wgrad"]
    assert_agrees(refused, 128, "h100", tmp_path)


@pytest.mark.parametrize(
    "script", sorted((ROOT / "tests/data/megatron_lm").glob("[!mt]*.sh")), ids=lambda p: p.stem
)
def test_explain_agrees_for_megatron_lm_scripts(script: Path, tmp_path: Path) -> None:
    inputs = read_inputs([str(script)], from_megatron_lm=True)
    proposal = propose(inputs.settings, inputs.world_size, on("h100"))
    assert_agrees(proposal, inputs.world_size, "h100", tmp_path)
    assert inputs.original is not None
    asked = explain(inputs.original, inputs.world_size, on("h100"))
    # What precision the gradients travel in is not a matter of overlap.
    knob = "ddp.grad_reduce_in_fp32"
    assert proposal.effective(knob) == asked.effective[knob]


def test_a_key_of_comm_overlap_given_on_the_command_line_stays() -> None:
    settings = planned("tp=4", "comm_overlap.tp_comm_overlap=false", "comm_overlap.bucket_size=7")
    proposal = propose(settings, 64, on("h100"))
    assert proposal.effective("model.tp_comm_overlap") is False
    assert proposal.effective("ddp.bucket_size") == 7
    assert proposal.pinned == {"tp_comm_overlap", "bucket_size"}


def test_context_parallel_ranks_reduce_gradients_though_data_parallel_size_is_1() -> None:
    proposal = propose(planned("tp=4", "pp=8", "cp=2"), 64, on("h100"))
    assert proposal.report.data_parallel_size == 1
    assert proposal.effective("ddp.overlap_grad_reduce") is True
    assert proposal.effective("ddp.bucket_size") > 0


def test_bucket_size_is_what_auto_gives(tmp_path: Path) -> None:
    settings = planned("tp=4", "pp=4", "vp=5")
    size = propose(settings, 64, on("h100")).effective("ddp.bucket_size")
    auto = replace(settings, values=settings.values | {
        "comm_overlap": {"tp_comm_overlap": False, "bucket_size": "auto"},
    })  # fmt: skip
    assert size == explain(auto, 64, on("h100")).effective["ddp.bucket_size"]


@pytest.mark.parametrize(
    ("precision", "overlap"),
    [("bf16", True), ("fp8", True), ("mxfp8", True), ("nvfp4", False), ("fp16", True)],
)
def test_userbuffers_carry_what_transformer_engine_takes(precision: str, overlap: bool) -> None:
    proposal = propose(planned("tp=4", f"precision={precision}"), 64, on("gb200"))
    assert proposal.effective("model.tp_comm_overlap") is overlap
    assert (proposal.preset is not None) is overlap
    assert overlap or "NVFP4" in proposal.tensor.reason


def test_a_mixture_leaves_tensor_overlap_off_with_the_reason() -> None:
    config = str(ROOT / "examples/qwen3_30b_a3b_64xb200.yaml")
    settings = read_inputs(
        [config, "tp=2", "etp=1"],
        world_size=64,
    ).settings
    proposal = propose(settings, 64, on("b200"))
    assert proposal.effective("model.tp_comm_overlap") is False
    assert "experts" in proposal.tensor.reason


def test_what_the_rules_refuse_of_the_expert_overlap_is_shown() -> None:
    config = ROOT / "tests/data/bridge_configs/deepseek_v3_pretrain_config.yaml"
    settings = read_settings(read_yaml(config))
    proposal = propose(settings, 2048, on("h100"))
    assert proposal.effective("model.overlap_moe_expert_parallel_comm") is False
    assert [d.rule for d in proposal.refused] == ["ep.needs-virtual-pipeline"]
    assert proposal.report.findings == []


def test_fsdp_has_no_buckets() -> None:
    script = str(ROOT / "tests/data/megatron_lm/llama3_8b_fsdp.sh")
    inputs = read_inputs([script], from_megatron_lm=True)
    proposal = propose(inputs.settings, inputs.world_size, on("h100"))
    assert "bucket_size" not in (proposal.settings.values["comm_overlap"] or {})
    assert proposal.effective("ddp.overlap_grad_reduce") is True
    reasons = {d.name: d.reason for d in dimensions(proposal)}
    assert "FSDP unit" in reasons["DP gradients"]


def test_what_only_megatron_lm_has_is_noted(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    text = (ROOT / "tests/data/megatron_lm/llama3_8b_fsdp.sh").read_text(encoding="utf-8")
    assert "--use-megatron-fsdp" in text
    script.write_text(text.replace("--use-megatron-fsdp", "--use-torch-fsdp2"), encoding="utf-8")
    notes = read_inputs([str(script)], from_megatron_lm=True).assumed
    assert any("fsdp2" in note.lower() for note in notes)
