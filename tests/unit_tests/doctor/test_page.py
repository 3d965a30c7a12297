"""The page of `overlapkit doctor --html`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.pages import Page

ROOT = Path(__file__).parents[3]
PITFALLS = str(ROOT / "examples" / "pitfalls_16xh100.yaml")
TRACES = ROOT / "tests" / "data" / "traces"


@pytest.fixture
def page(doctor, tmp_path: Path) -> Callable[..., Page]:
    """`page(*arguments)`: the page that doctor writes."""

    def write(*arguments: str) -> Page:
        out = tmp_path / "page.html"
        result = doctor(*arguments, "--html", str(out))
        assert result.status in (0, 1), result.err
        return Page(out)

    return write


def test_findings_come_first_in_the_order_of_the_document(page, doctor) -> None:
    written = page(PITFALLS, "--world-size", "16")
    findings = doctor(PITFALLS, "--world-size", "16", "--json").document["findings"]
    assert written.sections[0] == "Findings" and len(findings) > 2
    places = [written.text.index(finding["message"]) for finding in findings]
    assert places == sorted(places)
    for finding in findings:
        assert finding["id"] in written.text
        assert finding["remedy"][1:].rstrip(".") in written.text
        assert all(each["text"] in written.text for each in finding["evidence"])


def test_a_profile_is_drawn(page) -> None:
    traces = [w for f in sorted(TRACES.glob("megatron-no-*")) for w in ("--trace", str(f))]
    written = page(*traces)
    pieces = {a["class"] for tag, a in written.tags if tag == "rect"}
    assert {"compute", "exposed", "idle"} <= pieces
    assert "ms per step" in written.text and "the slowest" in written.text


def test_nothing_given(page) -> None:
    written = page()
    assert written.sections == ["Examined", "Packages"]
    assert "nvidia-smi was not found" in written.text
    assert "To examine more, give the run's configuration" in written.text


def test_names_from_files_are_text(page, config) -> None:
    name = config(Path(PITFALLS).read_text(), "<b onclick=x>&amp;.yaml")
    environment = config("CUDA_DEVICE_MAX_CONNECTIONS=<i>\n", "<u>.env")
    written = page(name, "--world-size", "16", "--env-file", environment)
    assert "<b onclick=x>&amp;.yaml" in written.text
    assert "CUDA_DEVICE_MAX_CONNECTIONS=<i>" in written.text


def test_the_answer_on_standard_output_stays(doctor, tmp_path: Path) -> None:
    for form in ([], ["--json"]):
        arguments = [PITFALLS, "--world-size", "16", *form]
        plain = doctor(*arguments)
        with_page = doctor(*arguments, "--html", str(tmp_path / "p.html"))
        assert (with_page.status, with_page.out) == (plain.status, plain.out)


def test_an_input_is_not_overwritten(doctor, config, tmp_path: Path) -> None:
    name = config(Path(PITFALLS).read_text())
    environment = config("A=1\n", "job.env")
    trace = tmp_path / "t.json.gz"
    trace.write_bytes((TRACES / "megatron-overlap.rank0.json.gz").read_bytes())
    given = [name, "--world-size", "16", "--env-file", environment, "--trace", str(trace)]
    for target in (name, environment, str(trace)):
        before = Path(target).read_bytes()
        result = doctor(*given, "--html", target)
        assert result.status == 2 and "is also an input" in result.err
        assert Path(target).read_bytes() == before
