"""The commands as users run them: exit statuses, JSON, pages, annotated traces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import tiny_trace as tiny
from support.trace_generator import SCENARIOS, write_kineto

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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    write_kineto(SCENARIOS["late rank"].but(noise=0, steps=3), folder, gz=True)
    return folder


def test_the_document_of_several_ranks(overlapkit, ranks):
    result = overlapkit("trace", ranks, "--json")
    document = result.document
    assert (result.status, result.err) == (0, "")
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


def test_the_terminal_shows_tables_and_the_diagnosis(overlapkit, ranks):
    result = overlapkit("trace", ranks)
    assert result.status == 0
    assert "rank 2" in result.out and "Diagnoses" in result.out
    assert "the late rank is rank 2" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("steps", "numbers"), [("all", [5, 6, 7]), ("6", [6]), ("5:7", [5, 6]), ("6:", [6, 7])]
)
def test_steps_are_chosen_by_number(overlapkit, ranks, steps, numbers):
    result = overlapkit("trace", ranks / "rank0.json.gz", "--steps", steps, "--json")
    (rank,) = result.document["ranks"]
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
def test_bad_input_is_one_line(overlapkit, ranks, arguments, words):
    result = overlapkit("trace", ranks, *arguments)
    assert (result.status, result.out) == (2, "")
    assert words in result.err and result.err.count("\n") == 1


def test_an_error_names_the_bad_file_among_many(overlapkit, tmp_path, ranks):
    bad = tmp_path / "rank9.json"
    bad.write_text("{}")
    result = overlapkit("trace", ranks / "rank0.json.gz", bad, "--json")
    assert result.status == 2 and str(bad) in result.err and result.err.count("\n") == 1


def test_a_configuration_determines_dimensions_where_the_trace_does_not(overlapkit, tmp_path):
    scenario = SCENARIOS["no metadata"].but(noise=0, pp=1, dp=1)
    truth = write_kineto(scenario, tmp_path)[0]
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    (rank,) = overlapkit("trace", truth.path, "--config", config, "--json").document["ranks"]
    assert rank["dimension_confidence"] == {"TP": "likely"}
    config.write_text(CONFIG.replace("size: 4", "size: 3"))
    result = overlapkit("trace", truth.path, "--config", config)
    assert result.status == 2 and "does not divide" in result.err


def test_the_page_is_complete_and_safe(overlapkit, ranks, tmp_path):
    hostile = '<script>alert(1)</script>"&'
    events = [
        tiny.kernel(hostile, 1000, 100),
        tiny.kernel(f"nccl{hostile}", 1050, 100, stream=20),
    ]
    page = tmp_path / "p.html"
    for source in (tiny.write(tmp_path / "t.json", events), ranks):
        assert overlapkit("trace", source, "--html", page).status == 0
        text = page.read_text()
        assert "<script" not in text.lower()
        assert not re.search(r"""(?:src|href)\s*=|url\(|https?://|@import""", text)
        assert text.rstrip().endswith("</html>")
    assert "late rank is rank 2" in text


def test_an_annotated_trace_opens_and_measures_the_same(overlapkit, ranks, tmp_path):
    source, target = ranks / "rank0.json.gz", tmp_path / "out.json"
    before = overlapkit("trace", source, "--json", "--annotate", target).document
    added = [e for e in json.loads(target.read_text())["traceEvents"] if e["pid"] == 2_000_000_000]
    tracks = {e["args"]["name"] for e in added if e["name"] == "thread_name"}
    assert tracks == {"exposed DP", "exposed communication", "idle"}
    (rank,) = before["ranks"]
    exposed = sum(e["dur"] for e in added if e["ph"] == "X" and e["name"] == "exposed DP")
    assert exposed == pytest.approx(rank["whole"]["exposed_comm_us"], abs=0.01)
    (again,) = overlapkit("trace", target, "--json", "--rank-from", "json").document["ranks"]
    assert again["whole"] == rank["whole"]
    assert again["steps"] == rank["steps"]
    assert overlapkit("trace", source, "--annotate", source).status == 2


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
