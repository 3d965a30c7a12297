"""What `overlapkit plan` prints, and the exit status."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from overlapkit.config.emit.forms import FORMS
from overlapkit.config.run import read_settings
from overlapkit.config.yaml_file import read_yaml
from overlapkit.explain.report import explain
from overlapkit.plan.cluster import plan_assumptions
from overlapkit.plan.estimate.overlap import DIMENSIONS

ROOT = Path(__file__).parents[3]
EXAMPLE = str(ROOT / "examples/llama3_70b_64xh100.yaml")
MIXTURE = str(ROOT / "examples/qwen3_30b_a3b_64xb200.yaml")
SCRIPT = str(ROOT / "tests/data/megatron_lm/llama3_70b_slurm.sh")
CLUSTER = ("--gpu", "h100", "--world-size", "64")
LAYOUT = ("tp=4", "pp=4", "vp=5", "cp=2")
NAMED = ("--model", "llama3_70b", *CLUSTER, *LAYOUT)

Command = Callable[..., Any]


def document(plan: Command, *arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert done.status == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


def test_the_first_lines_answer_at_a_glance(plan: Command) -> None:
    done = plan(EXAMPLE, *CLUSTER)
    assert (done.status, done.err) == (0, "")
    first, second, third, fourth = done.out.splitlines()[:4]
    assert "64 x h100: TP 4, PP 4, VPP 5, CP 2" in first
    assert re.match(r"Estimated step [\d,]+ -> [\d,]+ ms with overlap \(-\d", second)
    assert "tokens/s/GPU" in second and third.startswith("Expect ")
    assert fourth.startswith("Memory ") and "GB" in fourth
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1  #" in done.out
    assert "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192, nearest" in done.out
    assert "\x1b" not in done.out


def test_what_to_set_is_one_line_of_overrides(plan: Command) -> None:
    (line,) = [text for text in plan(*NAMED).out.splitlines() if text.startswith("Set ")]
    words = shlex.split(line.removeprefix("Set ").partition(" (to paste: ")[0])
    settings = document(plan, *NAMED)["settings"]
    assert {key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in words)} == (
        settings
    )


def test_what_is_left_open_is_not_switched_off(plan: Command) -> None:
    form = ("--emit", "megatron-lm")
    flag = "--no-gradient-accumulation-fusion"
    assert flag not in plan(*NAMED, *form).out
    assert flag in plan(*NAMED, "model.gradient_accumulation_fusion=false", *form).out


def test_the_estimate_of_a_mixture_is_called_uncertain(plan: Command) -> None:
    def uncertain(*arguments: str) -> bool:
        return any(
            "concentrate on a few experts" in note for note in document(plan, *arguments)["notes"]
        )

    assert uncertain(MIXTURE, "--gpu", "b200", "--world-size", "64")
    assert not uncertain(*NAMED)


def test_environment_lines_are_shell(plan: Command) -> None:
    lines = [line for line in plan(*NAMED).out.splitlines() if line.startswith("export ")]
    script = "\n".join([*lines, "env"])
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    values = document(plan, *NAMED)["environment"]
    assert {f"{name}={value}" for name, value in values.items()} <= set(done.stdout.splitlines())


def test_the_json_document(plan: Command) -> None:
    shown = document(plan, *NAMED)
    assert shown["schema"] == "overlapkit/plan/v1"
    assert shown["config"] == "llama3_70b"
    assert shown["layout"]["dp"] == 2 and shown["layout"]["chosen"] is None
    assert [d["dimension"] for d in shown["dimensions"]] == list(DIMENSIONS)
    by_name = {d["dimension"]: d for d in shown["dimensions"]}
    assert by_name["TP"]["on"] and by_name["TP"]["gain_ms"] > 0
    assert by_name["EP"]["ranks"] == 1 and by_name["EP"]["gain_ms"] is None
    for side in ("without", "with"):
        parts = [part[side] for part in shown["estimate"]["parts_ms"].values()]
        assert sum(parts) == pytest.approx(shown["estimate"]["step_ms"][side], rel=1e-3)
    assert shown["estimate"]["step_ms"]["with"] < shown["estimate"]["step_ms"]["without"]
    assert shown["work"] is None and shown["sweep"] is None
    assert shown["memory_gb"]["needed"] <= shown["memory_gb"]["usable"]


def test_the_document_is_small(plan: Command) -> None:
    # About 3.5 characters a token: an agent reads it in some 2,500.
    assert len(plan(*NAMED, "--json").out) < 9_000


def test_the_settings_are_overrides_that_explain_agrees_with(plan: Command, tmp_path: Path) -> None:
    shown = document(plan, *NAMED)
    bare = tmp_path / "bare.yaml"
    bare.write_text(
        "model: {num_layers: 80, hidden_size: 8192, ffn_hidden_size: 28672, "
        "num_attention_heads: 64, num_query_groups: 8, gated_linear_unit: true, "
        "add_bias_linear: false, normalization: RMSNorm, position_embedding_type: rope, "
        "share_embeddings_and_output_weights: false, vocab_size: 128256, seq_length: 8192}\n"
        "mixed_precision: bf16_mixed\n"
    )
    overrides = [f"{key}={json.dumps(value)}" for key, value in shown["settings"].items()]
    again = document(plan, str(bare), *CLUSTER, *LAYOUT, *overrides)
    assert again["settings"] == shown["settings"]
    assert again["environment"] == shown["environment"]
    assert again["estimate"] == shown["estimate"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_emitted(plan: Command, form: str) -> None:
    done = plan(*NAMED, "--emit", form)
    assert done.status == 0
    assert "tp" in done.out and "CUDA_DEVICE_MAX_CONNECTIONS=1" in done.out


def test_explain_agrees_with_the_emitted_yaml(plan: Command, tmp_path: Path) -> None:
    shown = document(plan, MIXTURE, "--gpu", "b200", "--world-size", "64")
    file = tmp_path / "run.yaml"
    file.write_text(plan(MIXTURE, "--gpu", "b200", "--world-size", "64", "--emit", "yaml").out)
    report = explain(read_settings(read_yaml(file)), 64, plan_assumptions("b200"))
    assert report.findings == []
    assert {v.name: v.value for v in report.launch_env} == shown["environment"]
    on = {d["dimension"]: d["on"] for d in shown["dimensions"]}
    assert on["EP"] is report.effective["model.overlap_moe_expert_parallel_comm"] is True


def test_a_megatron_lm_script_is_planned(plan: Command) -> None:
    shown = document(plan, "--from-megatron-lm", SCRIPT, "--gpu", "h100")
    assert shown["world_size"] == 64 and shown["layout"]["tp"] == 4
    flags = (
        "--num-layers=32 --hidden-size=4096 --num-attention-heads=32 --seq-length=4096 "
        "--micro-batch-size=1 --global-batch-size=256 --tensor-model-parallel-size=2 "
        "--sequence-parallel --use-distributed-optimizer --bf16 --vocab-size=32000"
    )
    cluster = ("--gpu", "h100", "--world-size", "8")
    done = plan("--from-megatron-lm", *cluster, "--json", "--", *flags.split(" "))
    shown = json.loads(done.out)
    assert shown["layout"]["tp"] == 2
    assert shown["changes"]["model.tp_comm_overlap"] == {"from": False, "to": True}


def test_show_work_derives_every_figure(plan: Command) -> None:
    shown = document(plan, *NAMED, "--show-work")
    for derivation in shown["work"]:
        figures = derivation["figures"]
        for name, figure in figures.items():
            assert set(figure["inputs"]) <= set(figures), name
            assert figure["formula"] or figure["source"], name
    rate = shown["work"][0]["figures"][shown["work"][0]["name"]]["value"]
    assert round(rate) == shown["estimate"]["tokens_per_s_per_gpu"]["with"]
    text = plan(*NAMED, "--show-work").out
    assert "h100 data sheet" in text and "overlapkit/plan/estimate/constants.py" in text


def test_the_network_matters(plan: Command) -> None:
    slow, fast = (
        document(plan, *NAMED, "--network", gbps)["estimate"]["step_ms"]["without"]
        for gbps in ("100", "800")
    )
    assert slow > fast


def test_a_pin_that_the_rules_refuse_is_a_finding(plan: Command) -> None:
    # Two interleaved stages with batched p2p train on wrong gradients.
    pins = ("comm_overlap.overlap_p2p_comm=false", "comm_overlap.batch_p2p_comm=true")
    done = plan("--model", "llama3_8b", *CLUSTER, "tp=2", "pp=2", "vp=2", *pins)
    assert done.status == 1
    assert "batch_p2p_comm" in done.out


def test_what_would_turn_a_dimension_on_states_its_gain(plan: Command) -> None:
    flat = document(plan, *NAMED, "vp=1")
    pipeline = next(d for d in flat["dimensions"] if d["dimension"] == "PP")
    size = re.search(
        r"virtual_pipeline_model_parallel_size=(\d+): .* would save", pipeline["remedy"]
    )
    assert not pipeline["on"] and size is not None
    interleaved = document(plan, *NAMED, f"vp={size[1]}")
    saved = flat["estimate"]["step_ms"]["with"] - interleaved["estimate"]["step_ms"]["with"]
    assert f"{saved:,.0f} ms" in pipeline["remedy"]
    config = ROOT / "examples/pitfalls_16xh100.yaml"
    shown = document(plan, str(config), "--gpu", "h100", "--world-size", "16")
    tensor = shown["dimensions"][0]
    assert not tensor["on"] and "sequence_parallel=true" in tensor["remedy"]


def test_a_layout_that_misses_by_little_is_planned_with_a_warning(plan: Command) -> None:
    # Mixtral 8x7B over 4 stages and 8 expert-parallel ranks, close to what 80 GB hold.
    config = ROOT / "tests/data/bridge_configs/custom_mixtral_8x7b_gptprovider.yaml"
    shown = document(plan, str(config), "--gpu", "h100", "--world-size", "64")
    memory = shown["memory_gb"]
    assert memory["usable"] < memory["needed"] < 1.1 * memory["capacity"]
    assert any("may not fit" in note for note in shown["notes"])
    roomy = document(plan, str(config), "--gpu", "h200", "--world-size", "64")
    assert not any("may not fit" in note for note in roomy["notes"])
    memory_line = plan(str(config), "--gpu", "h100", "--world-size", "64").out.splitlines()[3]
    assert memory_line.startswith("Memory ") and memory_line.endswith("may not fit, see the notes")


def test_adapters_are_not_estimated_as_if_every_weight_were_trained(plan: Command) -> None:
    config = ROOT / "tests/data/bridge_configs/llama3_8b_peft_config.yaml"
    shown = document(plan, str(config), "--gpu", "h100", "--world-size", "8")
    assert shown["estimate"] is None and "adapters" in shown["not_estimated"]
    assert "comm_overlap.bucket_size" not in shown["settings"]


class _Page(HTMLParser):
    """What a page links to, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]


def test_the_page_is_self_contained(plan: Command, tmp_path: Path) -> None:
    out = tmp_path / "plan.html"
    done = plan(*NAMED, "--sweep", "pp,vp", "--html", str(out))
    assert done.status == 0
    page = _Page()
    page.feed(out.read_text(encoding="utf-8"))
    assert page.links == [] and "script" not in page.tags
    shown = document(plan, *NAMED, "--sweep", "pp,vp")
    # A dot for each layout that fits, and the ring around the fastest.
    assert page.tags.count("circle") == shown["sweep"]["fit"] + 1
    text = html.unescape(out.read_text(encoding="utf-8"))
    assert shown["notes"] and all(note in text for note in shown["notes"])


def test_a_name_is_escaped_in_the_page(plan: Command, tmp_path: Path) -> None:
    config = tmp_path / "<b>x&y.yaml"
    config.write_text(Path(EXAMPLE).read_text(encoding="utf-8"), encoding="utf-8")
    plan(str(config), *CLUSTER, "--html", str(tmp_path / "out.html"))
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<b>x" not in page and "&lt;b&gt;x&amp;y.yaml" in page


def test_a_configuration_of_a_hybrid_is_estimated(plan: Command) -> None:
    config = ROOT / "tests/data/bridge_configs/nemotronh_8b_pretrain_config.yaml"
    shown = document(plan, str(config), "--gpu", "h100", "--world-size", "16")
    assert shown["estimate"] is not None and shown["not_estimated"] is None


def test_a_model_that_cannot_be_estimated_still_gets_its_settings(plan: Command) -> None:
    config = ROOT / "tests/data/bridge_configs/nemotronh_8b_pretrain_config.yaml"
    other = "model.hybrid_override_pattern=" + "MGM*" * 13
    shown = document(plan, str(config), other, "--gpu", "h100", "--world-size", "16")
    assert shown["estimate"] is None and "layers 'G' are not known" in shown["not_estimated"]
    assert shown["settings"]["comm_overlap.tp_comm_overlap"] is True
    assert shown["preset"]["match"] == "none"
    text = plan(str(config), other, "--gpu", "h100", "--world-size", "16").out
    assert "No estimate: " in text


EXPERTS = ("model.num_moe_experts=8", "model.moe_token_dispatcher_type=flex", "ep=2")
OFFLOADED = ("optimizer.optimizer_cpu_offload=true",)
BAD_INPUT = [
    (("--model", "llama3_70", *CLUSTER), "did you mean llama3_70b?"),
    (("llama3_70b", *CLUSTER), "write --model llama3_70b"),
    ((EXAMPLE, "--gpu", "h10", "--world-size", "64"), "did you mean h100?"),
    ((EXAMPLE, "--world-size", "64"), "--gpu NAME is missing"),
    ((EXAMPLE, "--gpu", "h100"), "--world-size N is missing"),
    ((*NAMED, "tp=16"), "NVLink domain of 8 GPUs"),
    ((*NAMED, "tp=3"), "does not divide attention heads (model.num_attention_heads=64); choose"),
    ((*NAMED, "tp=4", "pp=3"), "not divisible by TP x PP x CP"),
    ((*NAMED, "pp=8", "vp=3"), "must divide the 80 layers"),
    ((*NAMED, "pp=1"), "needs a pipeline"),
    ((*NAMED, "gbs=511"), "not a multiple of micro-batch 1 x data-parallel size 2; use 510 or 512"),
    ((*NAMED, "gbs=2"), "fewer than the 4 stages"),
    ((*NAMED, "gbs=18"), "set train.global_batch_size to 16 or 24"),
    ((*NAMED, "seq=8190"), "not a multiple of 2 x CP = 4"),
    ((*NAMED, "model.num_attention_heads=66"), "does not divide attention heads"),
    ((*NAMED, "ep=2"), "needs a mixture of experts"),
    ((*NAMED, "cp=1", "vp=1", "pp=1", "tp=1"), "GB more than"),
    ((*NAMED, "--network", "0"), "--network 0"),
    ((*NAMED, "--nodes", "7"), "is not divisible by --nodes 7"),
    ((*NAMED, "--nodes", "2"), "32 GPUs per node; with 8 per node, use --nodes 8"),
    (("NO_SIZES", *CLUSTER), "model.num_layers is not set, and a plan needs"),
    (("--model", "llama3_405b", "--gpu", "h100", "--world-size", "8"), "state alone take"),
    (("--model", "llama3_70b", "--gpu", "h100", "--world-size", "1"), "state alone take"),
    ((*NAMED, "--sweep", "tp,dp"), "unknown dimension 'dp'"),
    ((*NAMED, "--emit", "toml"), "--emit toml: unknown form"),
    ((*NAMED, "--emit", "yaml", "--json"), "give one of them"),
    ((*NAMED, EXAMPLE), "one CONFIG, or --model"),
    (CLUSTER, "one CONFIG, or --model NAME: none is given"),
    ((*NAMED[:2], "--gpu", "a100", "--world-size", "64", "tp=8", "precision=fp8"), "no fp8"),
    ((*NAMED, "precision=fp9"), "not a known recipe"),
    ((*NAMED, "model.hiden_size=3"), "did you mean model.hidden_size?"),
    ((*NAMED, "model.cp_comm_type=5"), "model.cp_comm_type must be a name"),
    ((*NAMED, "mbs=0"), "must be 1 or more"),
    ((*NAMED, "--network", "inf"), "--network inf"),
    ((*NAMED, "--network", "1e-300"), "--network 1e-300"),
    ((*NAMED, *EXPERTS, "model.moe_router_topk=9"), "moe_router_topk=9 must be from 1 to the 8"),
    ((*NAMED, *OFFLOADED, "optimizer.optimizer_offload_fraction=2"), "must be from 0 to 1"),
    ((*NAMED, "model.cpu_offloading=true", "model.cpu_offloading_num_layers=-4"), "0 or more"),
    ((*NAMED, "--html", "/nonexistent/out.html"), "--html /nonexistent/out.html"),
    (("--from-megatron-lm", "--model", "llama3_8b", SCRIPT, "--gpu", "h100"), "not both"),
    (("--from-megatron-lm", "--gpu", "h100"), "takes one launch script"),
]


@pytest.mark.parametrize(
    "override",
    [
        "model.ffn_hidden_size=nan",
        "model.num_query_groups=inf",
        "model.kv_channels=[]",
        "model.window_size=[1,2,3]",
    ],
)
def test_what_cannot_be_estimated_is_planned_without_an_estimate(
    plan: Command, override: str
) -> None:
    shown = document(plan, *NAMED, override)
    key = override.partition("=")[0].partition(".")[2]
    assert shown["estimate"] is None and key in shown["not_estimated"]


@pytest.mark.parametrize(("arguments", "shown"), BAD_INPUT, ids=[shown for _, shown in BAD_INPUT])
def test_bad_input_is_one_line_with_its_remedy(
    plan: Command, arguments: tuple[str, ...], shown: str, tmp_path: Path
) -> None:
    no_sizes = tmp_path / "no_sizes.yaml"
    no_sizes.write_text("model:\n  tensor_model_parallel_size: 2\n", encoding="utf-8")
    done = plan(*(str(no_sizes) if text == "NO_SIZES" else text for text in arguments))
    assert (done.status, done.out) == (2, "")
    assert shown in done.err and done.err.count("\n") == 1


PROBE = """
import atexit, sys
heavy = ("torch", "megatron.core", "transformer_engine", "nemo_run")
atexit.register(lambda: print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr))
from overlapkit.cli import main
main()
"""


@pytest.mark.parametrize("more", [(), ("--json", "--sweep", "pp,vp"), ("--emit", "bridge")])
def test_plan_loads_no_torch(more: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", PROBE, "plan", *NAMED, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
