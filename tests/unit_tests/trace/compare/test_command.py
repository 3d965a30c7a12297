"""The command as users run it: exit statuses, JSON, decisions, warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import tiny_trace as tiny
from support.documents import check_document
from support.trace_generator import CHANGES, SCENARIOS, write_kineto, write_nsys

CONFIG = """
model: {num_layers: 8, hidden_size: 1024, num_attention_heads: 8, bf16: true}
ddp: {use_distributed_optimizer: true}
comm_overlap: {%s}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    folders = []
    for name, scenario in zip(("base", "new"), CHANGES["overlap lost"][:2], strict=True):
        folders.append(tmp_path_factory.mktemp(name))
        write_kineto(scenario.but(noise=0), folders[-1])
    return folders[0], folders[1]


def test_the_document(overlapkit, pair, config):
    document = overlapkit("compare", *pair, "--json").document
    check_document(document)
    assert not document.keys() & {"decisions", "keys"}
    base = config(CONFIG % "tp_comm_overlap: false", "a.yaml")
    new = config(CONFIG % "tp_comm_overlap: false, overlap_grad_reduce: false", "b.yaml")
    configs = ("--config-base", base, "--config-new", new)
    document = overlapkit("compare", *pair, *configs, "--json").document
    check_document(document)
    assert document["decisions"] and document["keys"]
    same = ("--config-base", base, "--config-new", base)
    document = overlapkit("compare", *pair, *same, "--json").document
    check_document(document)
    assert (document["decisions"], document["keys"]) == ([], [])


def test_the_status_is_1_when_the_new_run_is_slower(overlapkit, pair):
    base, new = pair
    result = overlapkit("compare", base, new, "--json")
    document = result.document
    assert (result.status, document["verdict"]) == (1, "slower")
    assert document["schema"] == "overlapkit/compare/v1"
    changes = {p["part"]: p["change_us"] for p in document["parts"]}
    assert sum(changes.values()) == pytest.approx(document["change_us"], abs=0.01)
    for part in document["parts"]:
        assert part["new_us"] - part["base_us"] == pytest.approx(part["change_us"], abs=0.01)
    assert document["new"]["step_us"] - document["base"]["step_us"] == pytest.approx(
        document["change_us"], abs=0.01
    )
    assert max(changes, key=lambda p: changes[p]) == "exposed_comm"
    assert "DP reduce_scatter" in document["parts"][1]["moved"][0]["name"]
    assert overlapkit("compare", new, base, "--json").status == 0
    assert overlapkit("compare", base, base, "--json").status == 0


def test_the_decision_that_explains_the_change_is_shown(overlapkit, pair, tmp_path):
    for name, off in (("a", ""), ("b", ", overlap_grad_reduce: false")):
        (tmp_path / f"{name}.yaml").write_text(CONFIG % f"tp_comm_overlap: false{off}")
    configs = ("--config-base", tmp_path / "a.yaml", "--config-new", tmp_path / "b.yaml")
    result = overlapkit("compare", *pair, *configs, "--json")
    decision = result.document["decisions"][0]
    assert result.status == 1
    assert decision["knob"] == "ddp.overlap_grad_reduce"
    assert (decision["base"], decision["new"]) == (True, False)
    assert decision["causes"] == ["comm_overlap.overlap_grad_reduce"]
    (explained,) = decision["explains"]
    assert (explained["part"], explained["dimension"]) == ("exposed_comm", "DP")
    assert explained["change_us"] > 1000
    page = tmp_path / "p.html"
    overlapkit("compare", *pair, *configs, "--html", page)
    assert "overlap_grad_reduce" in page.read_text()
    assert overlapkit("compare", *pair, *configs[:2]).status == 2


def test_different_runs_are_refused(overlapkit, pair, tmp_path):
    base = pair[0] / "rank0.json"
    text = base.read_text()
    other = tmp_path / "rank0.json"
    for change, words in (
        (("NVIDIA H100", "NVIDIA B200"), "different GPUs"),
        (('"world_size": 8', '"world_size": 16'), "different world sizes"),
    ):
        other.write_text(text.replace(*change))
        result = overlapkit("compare", base, other)
        assert result.status == 2 and words in result.err and "--force" in result.err
        assert overlapkit("compare", base, other, "--force").status == 0
    few = tiny.write(other, [tiny.kernel(tiny.GEMM, 1000, 10), tiny.step(1, 1000, 10)])
    assert "order of magnitude" in overlapkit("compare", base, few).err
    unmarked = tiny.write(other, [tiny.kernel(tiny.GEMM, 1000, 10)])
    assert "rank0.json has steps" in overlapkit("compare", base, unmarked).err


def test_a_file_can_belong_to_both_runs(overlapkit, tmp_path):
    write_kineto(SCENARIOS["late rank"].but(noise=0, steps=3), tmp_path)
    document = overlapkit(
        "compare", tmp_path, tmp_path / "rank0.json", "--force", "--json"
    ).document
    assert document["base"]["ranks"] > document["new"]["ranks"] == 1


def test_time_between_steps_causes_a_warning(overlapkit, tmp_path):
    def written(name: str, gap: int) -> str:
        events = []
        for number in range(4):
            start = 1000 + number * (100 + gap)
            events += [tiny.kernel(tiny.GEMM, start, 100), tiny.step(number, start, 100)]
        return tiny.write(tmp_path / name, events)

    base, new = written("a.json", 0), written("b.json", 50)
    result = overlapkit("compare", base, new, "--json")
    document = result.document
    assert (result.status, document["verdict"]) == (0, "same")
    (warning,) = document["warnings"]
    assert "time between steps" in warning and "from 0 to 50 us" in warning
    assert overlapkit("compare", base, base, "--json").document["warnings"] == []


def test_nsys_and_kineto_of_one_run_agree(overlapkit, tmp_path):
    scenario = SCENARIOS["ep deepep"].but(noise=0)
    (kineto,), (nsys,) = write_kineto(scenario, tmp_path), write_nsys(scenario, tmp_path)
    result = overlapkit("compare", kineto.path, nsys.path, "--json")
    document = result.document
    assert (result.status, document["change_us"]) == (0, 0)


def test_decisions_of_one_cause_explain_a_change_once(overlapkit, pair, config):
    base = config(CONFIG % "tp_comm_overlap: false", "a.yaml")
    text = CONFIG.replace("use_distributed_optimizer: true", "use_distributed_optimizer: false")
    new = config(text % "tp_comm_overlap: false", "b.yaml")
    configs = ("--config-base", base, "--config-new", new)
    document = overlapkit("compare", *pair, *configs, "--json").document
    (cause,) = document["causes"]
    assert cause["causes"] == ["ddp.use_distributed_optimizer"] == cause["decisions"][:1]
    assert len(cause["decisions"]) == len(document["decisions"]) > 3
    (explained,) = cause["explains"]
    assert (explained["part"], explained["dimension"]) == ("exposed_comm", "DP")
    out = overlapkit("compare", *pair, *configs).out
    assert out.count("explains:") == 1
    # The profile of the new run shows what its configuration does not make.
    (contradiction,) = document["contradictions"]
    assert contradiction.startswith("New: ") and "reduce_scatter" in contradiction
    sizes = [document[side]["data_parallel_size"] for side in ("base", "new")]
    assert sizes == [8, 8] and "Data-parallel size" not in out


def test_two_scripts_are_compared_in_flags(overlapkit, pair, config):
    sizes = (
        "--num-layers 8 --hidden-size 1024 --num-attention-heads 8 --seq-length 1024 --bf16 "
        "--vocab-size 32000 --micro-batch-size 1 --global-batch-size 64"
    )
    start = f"torchrun --nproc-per-node 8 pretrain_gpt.py {sizes} --use-distributed-optimizer"
    base = config(f"{start} --overlap-grad-reduce --overlap-param-gather\n", "a.sh")
    new = config(f"{start}\n", "b.sh")
    given = (*pair, "--config-base", base, "--config-new", new)
    told = overlapkit("compare", *given).out
    assert "--overlap-grad-reduce: on -> off" in told
    assert "--overlap-param-gather: on -> off" in told
    assert "ddp." not in told and "model." not in told
    document = overlapkit("compare", *given, "--json").document
    check_document(document)
    (decision,) = [d for d in document["decisions"] if d["knob"] == "ddp.overlap_grad_reduce"]
    assert (decision["name"], decision["change"]) == ("--overlap-grad-reduce", "on -> off")
    assert (decision["base"], decision["new"]) == (True, False)
