"""explain as a linter: the order of the answer, the user's places, and forms for other programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from megatron.bridge.training.decisions import FINDINGS, RULES

ROOT = Path(__file__).parents[3]
PITFALLS = "examples/pitfalls_16xh100.yaml"
SOUND = "examples/gpt_1b_8xh100.yaml"
SARIF = json.loads((ROOT / "tests/data/sarif/sarif-2.1.0.json").read_text())
RULE_PLACE = re.compile(r"\[[\w.-]+, [\w/]+\.py:\d+\]")

SCRIPT = """\
export CUDA_DEVICE_MAX_CONNECTIONS=8
torchrun --nproc-per-node 8 pretrain_gpt.py \\
  --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 \\
  --max-position-embeddings 64 --micro-batch-size 1 --global-batch-size 8 --bf16 --vocab-size 512 \\
  --tensor-model-parallel-size 2 --sequence-parallel \\
  --overlap-grad-reduce --tp-comm-overlap
"""


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def key_at(place: dict[str, Any]) -> str:
    """The word at a place of a file."""
    line = Path(place["file"]).read_text().splitlines()[place["line"] - 1]
    return re.split(r"[:=\s]", line[place["column"] - 1 :])[0]


class TestTheOrder:
    def test_the_verdict_then_the_findings_then_the_rest(self, overlapkit) -> None:
        lines = overlapkit("explain", PITFALLS, "--world-size", "16").out.splitlines()
        assert lines[0].startswith(PITFALLS) and lines[1].startswith("4 findings: WRONG NUMBERS")
        labels = [re.sub(r"^\S+:\d+:\d+: ", "", line).split(" model")[0] for line in lines[3:5]]
        assert labels == ["WRONG NUMBERS", "REFUSED"]
        rest = lines.index("Tensor parallel")
        led = lines.index("", 3)
        assert all(RULE_PLACE.search(line) for line in lines[3:led]) and led >= 7
        assert not any(RULE_PLACE.search(line) for line in lines[led:rest])
        titles = ["Data parallel", "Pipeline parallel", "Mixed precision", "Launch environment"]
        assert [line for line in lines[rest:] if line in titles] == titles

    def test_where_all_is_well_it_is_short_and_else_complete(self, overlapkit) -> None:
        def report(name: str) -> tuple[str, dict[str, Any]]:
            given = ("explain", name, "--world-size", "16", "--gpu", "h100")
            return overlapkit(*given).out, overlapkit(*given, "--json").document

        text, document = report(SOUND)
        assert document["findings"] == 0 and not RULE_PLACE.search(text)
        (needs,) = [line for line in text.splitlines() if line.startswith("needs ")]
        assert all(f"{n}={value}" in needs for n, value in document["launch_env"].items())
        assert "launch.nccl-high-priority" in needs and "hardware queue" not in text
        assert text.splitlines()[-1].startswith("default  opt-in, not requested: ")
        assert text.count("opt-in, not requested") == 1
        # Every decision is still there, and every rule that decided.
        for d in document["decisions"]:
            assert d["knob"] in text and (RULES[d["rule"]].opt_in or d["rule"] in text)

        text, document = report(PITFALLS)
        assert document["findings"] and RULE_PLACE.search(text.partition("Launch environment")[2])
        assert "with one hardware queue kernels start in the order of their launch" in text
        assert text.count("opt-in, not requested") > 1

    def test_a_finding_begins_with_its_place(self, overlapkit) -> None:
        out = overlapkit("explain", PITFALLS, "--world-size", "16").out
        document = overlapkit("explain", PITFALLS, "--world-size", "16", "--json").document
        for d in document["decisions"]:
            if d["outcome"] in FINDINGS:
                where = d["where"]
                lead = f"{where['file']}:{where['line']}:{where['column']}: "
                line = next(line for line in out.splitlines() if line.startswith(lead))
                assert d["knob"] in line and RULE_PLACE.search(line), line

    @pytest.mark.parametrize("name", [PITFALLS, SOUND, "examples/llama3_405b_256xgb200.yaml"])
    def test_a_reason_is_said_once(self, name: str, overlapkit) -> None:
        out = overlapkit("explain", name, "--world-size", "256").out
        reasons = re.findall(r": ([^:\n]{25,}) \[[\w.-]+[],]", out)
        assert len(reasons) > 2 and len(set(reasons)) == len(reasons)

    def test_notes_with_advice_lead_too(self, overlapkit) -> None:
        name = "examples/llama3_70b_64xh100.yaml"
        lines = overlapkit("explain", name, "--world-size", "64").out.splitlines()
        named = re.search(r"notes? with advice: (.*)", lines[1])
        assert named is not None
        led = lines[3 : lines.index("", 3)]
        assert all(line.startswith("note ") and " -> " in line for line in led)
        assert all(any(knob in line for line in led) for knob in named[1].split(", "))


class TestBrief:
    def test_nothing_is_wrong(self, overlapkit) -> None:
        lines = overlapkit("explain", SOUND, "--world-size", "8", "--brief").out.splitlines()
        assert len(lines) <= 4 and len(" ".join(lines)) < 4 * 400
        assert lines[1] == "Everything that was requested is in effect."
        assert "assumed: see --gpu" in lines[0] and "assumed: see --core" in lines[2]

    def test_the_findings(self, overlapkit) -> None:
        whole = overlapkit("explain", PITFALLS, "--world-size", "16")
        short = overlapkit("explain", PITFALLS, "--world-size", "16", "--brief")
        assert short.status == whole.status == 1
        lines = short.out.splitlines()
        assert len(lines) == 7 and set(lines[:6]) <= set(whole.out.splitlines())

    def test_what_was_not_read_is_named(self, overlapkit, config) -> None:
        text = "model: {brand_new_switch: true}\nddp: {}\n"
        out = overlapkit("explain", config(text), "--world-size", "8", "--brief").out
        assert "requested and read is in effect" in out and "brand_new_switch" in out

    @pytest.mark.parametrize("others", [["--json"], ["--buckets"], [SOUND], ["--format", "sarif"]])
    def test_what_it_does_not_go_with(self, others: list[str], overlapkit) -> None:
        result = overlapkit("explain", SOUND, *others, "--world-size", "8", "--brief")
        assert result.status == 2 and "--brief" in result.err and result.err.count("\n") == 1


class TestTheEnvironment:
    def test_the_shells_own(self, overlapkit) -> None:
        first = overlapkit("explain", SOUND, "--world-size", "8").out.splitlines()[0]
        assert "the shell's own environment was looked at" in first

    def test_a_file(self, overlapkit, config) -> None:
        file = config("CUDA_DEVICE_MAX_CONNECTIONS=32\n", "job.env")
        result = overlapkit("explain", SOUND, "--world-size", "8", "--env-file", file)
        assert f"environment: {file}" in result.out.splitlines()[0]

    def test_a_script(self, overlapkit, config) -> None:
        script = config(SCRIPT, "run.sh")
        out = overlapkit("explain", "--from-megatron-lm", script).out
        assert f"environment: {script}" in out.splitlines()[0]


class TestPlaces:
    def test_every_place_is_that_of_a_key(self, overlapkit) -> None:
        document = overlapkit("explain", PITFALLS, "--world-size", "16", "--json").document
        places = [(d["knob"], d["where"]) for d in document["decisions"] if d["where"]]
        assert len(places) > 5
        assert all(knob.endswith(key_at(place)) for knob, place in places)

    def test_the_section_that_decides(self, overlapkit, config) -> None:
        text = (
            "model: {tp_comm_overlap: false, tensor_model_parallel_size: 2}\nddp: {}\n"
            "comm_overlap:\n  tp_comm_overlap: true\n"
        )
        document = overlapkit("explain", config(text), "--world-size", "8", "--json").document
        refused = next(
            d for d in document["decisions"] if d["rule"] == "tp.needs-sequence-parallel"
        )
        assert (refused["where"]["line"], refused["where"]["column"]) == (4, 3)

    def test_an_override(self, overlapkit) -> None:
        override = "ddp.bucket_size=5"
        result = overlapkit("explain", SOUND, override, "--world-size", "8", "--json")
        refused = next(d for d in result.document["decisions"] if d["outcome"] == "refused")
        nothing = {"file": None, "line": None, "column": None}
        assert refused["where"] == {**nothing, "override": override}
        lines = overlapkit("explain", SOUND, override, "--world-size", "8").out.splitlines()
        assert lines[3].startswith(f"{override}: REFUSED ddp.bucket_size")

    def test_what_nobody_set_has_none(self, overlapkit, config) -> None:
        text = "model: {}\nddp: {}\ncomm_overlap: {tp_comm_overlap: false}\n"
        document = overlapkit("explain", config(text), "--world-size", "8", "--json").document
        where = {d["knob"]: d["where"] for d in document["decisions"]}
        assert where["ddp.overlap_grad_reduce"] is None
        assert where["model.tp_comm_overlap"]["line"] == 3

    def test_flags_and_exports_of_a_script(self, overlapkit, config) -> None:
        script = config(SCRIPT, "run.sh")
        document = overlapkit("explain", "--from-megatron-lm", script, "--json").document
        where = {d["knob"]: d["where"] for d in document["decisions"] if d["where"]}
        assert key_at(where["env.CUDA_DEVICE_MAX_CONNECTIONS"]).startswith(
            ("export", "CUDA_DEVICE_MAX_CONNECTIONS")
        )
        assert key_at(where["ddp.overlap_grad_reduce"]) == "--overlap-grad-reduce"

    def test_env_vars(self, overlapkit, config) -> None:
        text = (
            "model: {tensor_model_parallel_size: 2, sequence_parallel: true}\nddp: {}\n"
            "comm_overlap: {tp_comm_overlap: true}\nenv_vars:\n  CUDA_DEVICE_MAX_CONNECTIONS: 8\n"
        )
        document = overlapkit("explain", config(text), "--world-size", "8", "--json").document
        lost = next(d for d in document["decisions"] if d["rule"] == "launch.env-order-lost")
        assert (lost["where"]["line"], lost["where"]["column"]) == (5, 3)


class TestGitHub:
    def test_a_command_for_each_finding_with_its_place(self, overlapkit) -> None:
        result = overlapkit("explain", PITFALLS, "--world-size", "16", "--format", "github")
        assert result.status == 1
        pattern = r"::(error|warning) file=([^,:]+),line=(\d+),col=(\d+),title=([^,:]+)::(.+)"
        lines = [line for line in result.out.splitlines() if not line.startswith("::notice ")]
        found = [re.fullmatch(pattern, line) for line in lines]
        assert len(found) == 4 and all(found)
        levels = [match[1] for match in found if match]
        assert levels == ["error", "warning", "warning", "warning"]

    def test_a_sound_run_has_none(self, overlapkit) -> None:
        result = overlapkit("explain", SOUND, "--world-size", "8", "--format", "github")
        assert (result.status, result.out) == (0, "")

    def test_no_text_ends_a_command_early(self, overlapkit, config) -> None:
        name = config(Path(PITFALLS).read_text(), "a,b:c%d.yaml")
        override = "comm_overlap.tp_comm_bootstrap_backend=a%0A::error::b"
        result = overlapkit("explain", name, override, "--world-size", "16", "--format", "github")
        assert result.out.count("\n") >= 4
        for line in result.out.splitlines():
            assert re.match(r"::(error|warning|notice) ", line), line
            assert "a%2Cb%3Ac%25d.yaml" in line


class TestSarif:
    def log(self, result: Any) -> dict[str, Any]:
        log = json.loads(result.out)
        problems = list(Draft202012Validator(SARIF).iter_errors(log))
        assert problems == [], problems
        return log["runs"][0]

    @pytest.mark.parametrize(
        "arguments",
        [
            [PITFALLS, "--world-size", "16"],
            [SOUND, "--world-size", "8"],
            [SOUND, "ddp.bucket_size=5", "--world-size", "8"],
        ],
        ids=["findings", "none", "an override"],
    )
    def test_it_matches_the_schema_and_the_document(self, arguments: list[str], overlapkit) -> None:
        result = overlapkit("explain", *arguments, "--format", "sarif")
        document = overlapkit("explain", *arguments, "--json").document
        run = self.log(result)
        findings = [r for r in run["results"] if r["level"] != "note"]
        assert len(findings) == document["findings"]
        assert result.status == (1 if findings else 0)
        rules = run["tool"]["driver"]["rules"]
        for each in run["results"]:
            assert rules[each["ruleIndex"]]["id"] == each["ruleId"]
            assert (
                rules[each["ruleIndex"]]["shortDescription"]["text"] == RULES[each["ruleId"]].claim
            )
            location = each["locations"][0]["physicalLocation"]
            assert location["artifactLocation"]["uri"] == arguments[0]

    def test_the_place(self, overlapkit) -> None:
        run = self.log(overlapkit("explain", PITFALLS, "--world-size", "16", "--format", "sarif"))
        first = run["results"][0]
        assert (first["ruleId"], first["level"]) == ("pp.same-peer-hazard", "error")
        region = first["locations"][0]["physicalLocation"]["region"]
        assert key_at({"file": PITFALLS, "line": region["startLine"],
                       "column": region["startColumn"]}) == "batch_p2p_comm"  # fmt: skip

    def test_a_fingerprint_stays_where_lines_move(self, overlapkit, config) -> None:
        prints = []
        for text in (Path(PITFALLS).read_text(), "# moved\n" + Path(PITFALLS).read_text()):
            result = overlapkit("explain", config(text), "--world-size", "16", "--format", "sarif")
            prints.append([r["partialFingerprints"] for r in self.log(result)["results"]])
        distinct = {str(each) for each in prints[0]}
        assert prints[0] == prints[1] and len(distinct) == len(prints[0]) > 3

    def test_a_name_that_is_no_uri(self, overlapkit, config, tmp_path: Path, monkeypatch) -> None:
        config(Path(PITFALLS).read_text(), "a b%c#d.yaml")
        monkeypatch.chdir(tmp_path)
        result = overlapkit("explain", "a b%c#d.yaml", "--world-size", "16", "--format", "sarif")
        places = [r["locations"][0]["physicalLocation"] for r in self.log(result)["results"]]
        assert {place["artifactLocation"]["uri"] for place in places} == {"a%20b%25c%23d.yaml"}

    def test_arguments_are_in_no_file(self, overlapkit) -> None:
        words = SCRIPT.split("pretrain_gpt.py")[1].replace("\\\n", " ").split()
        result = overlapkit(
            "explain", "--from-megatron-lm", "--world-size", "8", "--format", "sarif", "--",
            *words, "--allow-unknown-flag-of-a-fork",
        )  # fmt: skip
        found = self.log(result)["results"]
        assert found and all("locations" not in each for each in found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--json", "--format", "sarif"], "--json is --format json"),
        (["--format", "xml"], "xml"),
        (["--buckets", "--format", "github"], "--buckets"),
        (["--format", "sarif", SOUND], "one configuration"),
    ],
)
def test_forms_that_there_are_not(options: list[str], told: str, overlapkit) -> None:
    result = overlapkit("explain", SOUND, "--world-size", "8", *options)
    assert result.status == 2 and told in result.err and result.err.count("\n") == 1


def test_json_is_the_short_form_of_format_json(overlapkit) -> None:
    outs = [
        overlapkit("explain", SOUND, "--world-size", "8", *form).out
        for form in (["--json"], ["--format", "json"], ["--json", "--format", "json"])
    ]
    assert outs[0] == outs[1] == outs[2]
