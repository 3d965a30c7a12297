"""The commands as users run them: exit statuses, JSON, pages, annotated traces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from overlapkit.cli import main
from support import tiny_trace as tiny
from support.trace_generator import CHANGES, SCENARIOS, write_kineto, write_nsys

TIME_FIELDS = {
    "overlap_pct",
    "step_us",
    "compute_us",
    "comm_us",
    "exposed_comm_us",
    "hidden_comm_us",
    "memory_us",
    "idle_us",
    "by_dimension",
}
CONFIG = """
model: {tensor_model_parallel_size: 4, sequence_parallel: true, num_layers: 8, hidden_size: 1024,
  num_attention_heads: 8, bf16: true}
ddp: {use_distributed_optimizer: true}
comm_overlap: {tp_comm_overlap: true}
"""


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["overlapkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    return call


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    write_kineto(SCENARIOS["late rank"].but(noise=0, steps=3), folder, gz=True)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    folders = []
    for name, scenario in zip(("base", "new"), CHANGES["overlap lost"][:2], strict=True):
        folders.append(tmp_path_factory.mktemp(name))
        write_kineto(scenario.but(noise=0), folders[-1])
    return folders[0], folders[1]


def test_the_document_of_several_ranks(run, ranks):
    status, out, err = run("trace", ranks, "--json")
    document = json.loads(out)
    assert (status, err) == (0, "")
    assert document["schema"] == "overlapkit/trace/v1"
    assert [r["rank"] for r in document["ranks"]] == [0, 1, 2, 3]
    for rank in document["ranks"]:
        assert len(rank["steps"]) == 3
        for row in (rank["whole"], *rank["steps"]):
            assert row.keys() >= TIME_FIELDS
            total = (
                row["compute_us"]
                + row["exposed_comm_us"]
                + row["exposed_memory_us"]
                + row["idle_us"]
            )
            assert total == pytest.approx(row["step_us"], abs=0.01)
            assert row["by_dimension"].keys() == {"DP"}
            assert row["by_dimension"]["DP"]["exposed_comm_us"] == row["exposed_comm_us"]
        assert rank["median"].keys() >= TIME_FIELDS
    assert document["across_ranks"]["late_rank"] == 2
    assert "late-rank" in {d["id"] for d in document["diagnoses"]}


def test_every_rule_in_the_source_exists():
    # Importing it declares all rules.
    import overlapkit.skill.facts
    from megatron.bridge.training.decisions import RULES
    from overlapkit.trace.diagnose.diagnosis import DIAGNOSES

    folder = Path(overlapkit.trace.__file__).parent
    text = "".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    found = set(re.findall(r'"((?:core|dp|tp|pp|ep|launch)\.[a-z0-9-]+)"', text))
    assert {rule for rules in DIAGNOSES.values() for rule in rules} < found
    assert found <= RULES.keys()


def test_the_terminal_shows_tables_and_the_diagnosis(run, ranks):
    status, out, _ = run("trace", ranks)
    assert status == 0
    assert "rank 2" in out and "Diagnoses" in out
    assert "the late rank is rank 2" in " ".join(out.split())


@pytest.mark.parametrize(
    ("steps", "numbers"), [("all", [5, 6, 7]), ("6", [6]), ("5:7", [5, 6]), ("6:", [6, 7])]
)
def test_steps_are_chosen_by_number(run, ranks, steps, numbers):
    _, out, _ = run("trace", ranks / "rank0.json.gz", "--steps", steps, "--json")
    (rank,) = json.loads(out)["ranks"]
    assert [s["number"] for s in rank["steps"]] == numbers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "9"], "--steps 9: no such step"),
        (["--steps", "x"], "--steps x"),
        (["--html", "/nowhere/out.html"], "does not exist"),
        (["--config", "/nowhere/a.yaml"], "no such file"),
        (["/nowhere/t.json"], "no such file"),
        (["--annotate", "out.json"], "one trace file"),
    ],
)
def test_bad_input_is_one_line(run, ranks, arguments, words):
    status, out, err = run("trace", ranks, *arguments)
    assert (status, out) == (2, "")
    assert words in err and err.count("\n") == 1


def test_an_error_names_the_bad_file_among_many(run, tmp_path, ranks):
    bad = tmp_path / "rank9.json"
    bad.write_text("{}")
    status, _, err = run("trace", ranks / "rank0.json.gz", bad, "--json")
    assert status == 2 and str(bad) in err and err.count("\n") == 1


def test_a_configuration_determines_dimensions_where_the_trace_does_not(run, tmp_path):
    scenario = SCENARIOS["no metadata"].but(noise=0, pp=1, dp=1)
    truth = write_kineto(scenario, tmp_path)[0]
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    (rank,) = json.loads(run("trace", truth.path, "--config", config, "--json")[1])["ranks"]
    assert rank["dimension_confidence"] == {"TP": "likely"}
    config.write_text(CONFIG.replace("size: 4", "size: 3"))
    status, _, err = run("trace", truth.path, "--config", config)
    assert status == 2 and "does not divide" in err


def test_the_page_is_complete_and_safe(run, ranks, tmp_path):
    hostile = '<script>alert(1)</script>"&'
    events = [
        tiny.kernel(hostile, 1000, 100),
        tiny.kernel(f"nccl{hostile}", 1050, 100, stream=20),
    ]
    page = tmp_path / "p.html"
    for source in (tiny.write(tmp_path / "t.json", events), ranks):
        assert run("trace", source, "--html", page)[0] == 0
        text = page.read_text()
        assert "<script" not in text.lower()
        assert not re.search(r"""(?:src|href)\s*=|url\(|https?://|@import""", text)
        assert text.rstrip().endswith("</html>")
    assert "late rank is rank 2" in text


def test_an_annotated_trace_opens_and_measures_the_same(run, ranks, tmp_path):
    source, target = ranks / "rank0.json.gz", tmp_path / "out.json"
    _, before, _ = run("trace", source, "--json", "--annotate", target)
    added = [e for e in json.loads(target.read_text())["traceEvents"] if e["pid"] == 2_000_000_000]
    tracks = {e["args"]["name"] for e in added if e["name"] == "thread_name"}
    assert tracks == {"exposed DP", "exposed communication", "idle"}
    (rank,) = json.loads(before)["ranks"]
    exposed = sum(e["dur"] for e in added if e["ph"] == "X" and e["name"] == "exposed DP")
    assert exposed == pytest.approx(rank["whole"]["exposed_comm_us"], abs=0.01)
    (again,) = json.loads(run("trace", target, "--json", "--rank-from", "json")[1])["ranks"]
    assert again["whole"] == rank["whole"]
    assert again["steps"] == rank["steps"]
    assert run("trace", source, "--annotate", source)[0] == 2


def test_compare_exits_with_1_when_the_new_run_is_slower(run, pair):
    base, new = pair
    status, out, _ = run("compare", base, new, "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (1, "slower")
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
    assert run("compare", new, base, "--json")[0] == 0
    assert run("compare", base, base, "--json")[0] == 0


def test_compare_shows_the_decision_that_explains_it(run, pair, tmp_path):
    for name, off in (("a", ""), ("b", ", overlap_grad_reduce: false")):
        text = CONFIG.replace("tensor_model_parallel_size: 4, sequence_parallel: true, ", "")
        text = text.replace("tp_comm_overlap: true", f"tp_comm_overlap: false{off}")
        (tmp_path / f"{name}.yaml").write_text(text)
    configs = ("--config-base", tmp_path / "a.yaml", "--config-new", tmp_path / "b.yaml")
    status, out, _ = run("compare", *pair, *configs, "--json")
    decision = json.loads(out)["decisions"][0]
    assert status == 1
    assert decision["knob"] == "ddp.overlap_grad_reduce"
    assert (decision["base"], decision["new"]) == (True, False)
    assert decision["causes"] == ["comm_overlap.overlap_grad_reduce"]
    (explained,) = decision["explains"]
    assert (explained["part"], explained["dimension"]) == ("exposed_comm", "DP")
    assert explained["change_us"] > 1000
    page = tmp_path / "p.html"
    run("compare", *pair, *configs, "--html", page)
    assert "overlap_grad_reduce" in page.read_text()
    assert run("compare", *pair, *configs[:2])[0] == 2


def test_compare_refuses_different_runs(run, pair, tmp_path):
    base = pair[0] / "rank0.json"
    text = base.read_text()
    other = tmp_path / "rank0.json"
    for change, words in (
        (("NVIDIA H100", "NVIDIA B200"), "different GPUs"),
        (('"world_size": 8', '"world_size": 16'), "different world sizes"),
    ):
        other.write_text(text.replace(*change))
        status, _, err = run("compare", base, other)
        assert status == 2 and words in err and "--force" in err
        assert run("compare", base, other, "--force")[0] == 0
    few = tiny.write(other, [tiny.kernel(tiny.GEMM, 1000, 10)])
    assert "order of magnitude" in run("compare", base, few)[2]


def test_a_file_can_belong_to_both_runs(run, ranks):
    out = run("compare", ranks, ranks / "rank0.json.gz", "--force", "--json")[1]
    document = json.loads(out)
    assert document["base"]["ranks"] > document["new"]["ranks"] == 1


def test_compare_warns_of_time_between_steps(run, tmp_path):
    def written(name: str, gap: int) -> str:
        events = []
        for number in range(4):
            start = 1000 + number * (100 + gap)
            events += [tiny.kernel(tiny.GEMM, start, 100), tiny.step(number, start, 100)]
        return tiny.write(tmp_path / name, events)

    base, new = written("a.json", 0), written("b.json", 50)
    status, out, _ = run("compare", base, new, "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (0, "same")
    (warning,) = document["warnings"]
    assert "time between steps" in warning and "from 0 to 50 us" in warning
    assert json.loads(run("compare", base, base, "--json")[1])["warnings"] == []


def test_nsys_and_kineto_of_one_run_agree(run, tmp_path):
    scenario = SCENARIOS["ep deepep"].but(noise=0)
    (kineto,), (nsys,) = write_kineto(scenario, tmp_path), write_nsys(scenario, tmp_path)
    status, out, _ = run("compare", kineto.path, nsys.path, "--json")
    document = json.loads(out)
    assert (status, document["change_us"]) == (0, 0)


def test_torch_is_not_loaded(ranks):
    code = (
        "import sys; sys.argv = ['overlapkit', 'trace', sys.argv[1], '--json']\n"
        "from overlapkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'megatron.core', 'pandas'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ranks / "rank0.json.gz")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
