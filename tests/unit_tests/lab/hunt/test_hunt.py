"""The hunt with a laboratory that only looks at features, and what it shows of its findings."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from overlapkit.errors import InputError
from overlapkit.lab.hunt.around import case_of
from overlapkit.lab.hunt.case import Case, settings
from overlapkit.lab.hunt.command import HuntRequest, budget_s, run
from overlapkit.lab.hunt.document import HuntDocument, counts, covered, hunt_finding
from overlapkit.lab.hunt.finding import Finding, command, configuration, covers, file_name
from overlapkit.lab.hunt.generate import Generator, allowed
from overlapkit.lab.hunt.hunt import Hunt
from overlapkit.lab.hunt.judge import Fate
from overlapkit.lab.hunt.tables import show_hunt
from overlapkit.lab.launch.failure import LabError
from overlapkit.lab.own.reduced import Reduced
from overlapkit.lab.scenario import TOLERANCE

ASSERT = Fate("refused", "AssertionError: 3 is not 2", lines=('File "megatron/core/x.py"',))


class Laboratory:
    """Says that some cases are bad, perhaps on one part of the data alone, and counts."""

    def __init__(self, fate_of: Callable[[Case], Fate], *, once: bool = False) -> None:
        self.fate_of, self.once, self.asked = fate_of, once, 0

    def fates(self, cases: Sequence[Case], data: int = 0) -> dict[Case, Fate]:
        self.asked += len(cases)
        if data and self.once:
            return dict.fromkeys(cases, Fate("equal"))
        return {case: self.fate_of(case) for case in cases}


def hunted(
    fate_of: Callable[[Case], Fate], most: int = 60, budget: float = 600.0, *, once: bool = False
) -> Hunt:
    hunt = Hunt(
        laboratory=Laboratory(fate_of, once=once),
        generator=Generator(1, Counter()),
        allowed=allowed,
        budget_s=budget,
        most=most,
    )
    hunt.run()
    return hunt


def wrong(case: Case) -> Fate:
    if case.clip and case.pp > 1:
        return Fate("different", "1 of 17 tensors differs", 0.5)
    return ASSERT if case.rope and case.tied else Fate("equal")


def test_each_finding_is_reduced_and_repeated_and_others_are_added_to_it() -> None:
    hunt = hunted(wrong)
    assert len(hunt.fates) == 60
    smallest = {finding.case: finding for finding in hunt.findings}
    assert set(smallest) == {Case(pp=2, clip=True), Case(rope=True, tied=True)}
    assert all(one.shown == 3 and one.smallest for one in hunt.findings)
    bad = sum(fate.bad for fate in hunt.fates.values())
    assert bad == sum(1 + len(one.others) for one in hunt.findings)
    kinds = {one.case: one.kind for one in hunt.findings}
    assert kinds[Case(pp=2, clip=True)] == "wrong numbers"
    assert kinds[Case(rope=True, tied=True)] == "refused with a reason"


def test_a_difference_on_one_part_of_the_data_alone_is_counted_and_is_no_finding() -> None:
    hunt = hunted(wrong, once=True)
    assert hunt.once and all(hunt.fates[case].kind == "different" for case in hunt.once)
    assert [one.kind for one in hunt.findings] == ["refused with a reason"]


@pytest.mark.parametrize(("relative", "found"), [(1.5 * TOLERANCE, 0), (0.5, 1)])
def test_a_difference_of_rounding_that_repetitions_do_not_show_is_no_finding(
    relative: float, found: int
) -> None:
    class Seldom(Laboratory):
        repeated = 0

        def fates(self, cases: Sequence[Case], data: int = 0) -> dict[Case, Fate]:
            # The first repetition on other data shows it again, the later ones do not.
            self.repeated += data > 0
            if self.repeated > 1:
                return dict.fromkeys(cases, Fate("equal"))
            return {case: Fate("different", "rounding", relative) for case in cases}

    laboratory = Seldom(lambda case: Fate("equal"))
    hunt = Hunt(laboratory, Generator(1, Counter()), allowed, 600.0, most=1, batch=1)
    hunt.run()
    assert len(hunt.findings) == found and len(hunt.once) == 1 - found


def test_what_a_finding_shows_is_not_drawn_again() -> None:
    hunt = hunted(wrong, most=100)
    for finding in hunt.findings:
        later = [case for case in hunt.fates if covers(finding.case, case)]
        # Of the batch in which it was found.
        assert len(later) <= hunt.batch


def test_the_number_of_cases_and_the_time_end_a_hunt() -> None:
    assert len(hunted(wrong, most=7).fates) == 7
    assert hunted(wrong, budget=-1.0).fates == {}


def test_an_error_that_nothing_explains_is_a_crash() -> None:
    of = Case(pp=2)
    assert Finding(of, Fate("crash", "RuntimeError: shape"), of).kind == "crash"
    elsewhere = Fate("crash", "ValueError: shape", lines=('File "torch/nn/module.py"',))
    assert Finding(of, elsewhere, of).kind == "crash"
    assert Finding(of, Fate("hang", "silent"), of).kind == "hang"


def document(hunt: Hunt) -> HuntDocument:
    return HuntDocument(
        versions={"torch": "2.15.0", "megatron-core": "0.16.1"},
        seed=1,
        around=None,
        seconds=12.3,
        cases=len(hunt.fates),
        fates=counts(hunt.fates),
        once=len(hunt.once),
        largest=4.2e-7,
        pairs=len(covered(list(hunt.fates))),
        new_pairs=3,
        memory="/cache/memory.json",
        findings=[
            hunt_finding(one, configuration(one.case), None, command(file_name(one), one.case))
            for one in hunt.findings
        ],
    )


def test_the_terminal_shows_what_was_tried_and_how_to_repeat_what_was_found() -> None:
    written = io.StringIO()
    show_hunt(document(hunted(wrong)), Console(file=written, width=80, no_color=True))
    text = written.getvalue()
    assert "60 cases" in text and "2 findings" in text and "4.2e-07" in text
    assert "pp=2, clip=True" in text and "--world-size 2" in text
    assert "proposed rule" in text and "pipeline_model_parallel_size: 2" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_hunt_without_a_finding_says_so() -> None:
    written = io.StringIO()
    show_hunt(document(hunted(lambda case: Fate("equal"))), Console(file=written, width=80))
    assert "0 findings" in written.getvalue()


def test_a_reproduction_is_a_configuration_of_a_few_lines() -> None:
    case = Case(pp=2, vpp=2, microbatches=4, p2p="overlapped", steps=2)
    text = configuration(case)
    assert yaml.safe_load(text) == {k: v for k, v in settings(case).items() if v}
    assert len(text.splitlines()) < 40


def test_a_case_of_one_rank_is_repeated_on_two_replicas() -> None:
    case = Case(recompute="uniform-2", microbatches=3)
    sections = yaml.safe_load(configuration(case))
    assert sections["train"]["global_batch_size"] == 6
    assert command("x.yaml", case).endswith("--world-size 2 --ranks 2")
    assert command("x.yaml", Case(tp=2, dp=2)).endswith("--world-size 4 --ranks 4")


def test_a_configuration_is_read_as_a_case() -> None:
    case = Case(
        tp=2,
        sp=True,
        pp=2,
        vpp=2,
        dp=2,
        microbatches=4,
        micro_batch=2,
        p2p="overlapped",
        distributed=True,
        overlap="gather",
        bucket="several",
        rms=True,
        rope=True,
        bias=False,
        recompute="mlp",
        precision="bf16-grads",
        experts="alltoall",
        balance="aux_loss",
        shared=True,
        topk=2,
        steps=2,
    )
    assert case_of(Reduced(settings(case), case.ranks)) == case


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert budget_s(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "-1m", "1 h"])
def test_another_budget_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        budget_s(text)


def test_no_cases_are_refused() -> None:
    with pytest.raises(InputError, match="--cases 0"):
        run(HuntRequest(cases=0))


def test_a_single_rank_is_refused() -> None:
    with pytest.raises(InputError, match="--ranks 1"):
        run(HuntRequest(ranks=1))


def test_all_cases_of_a_hunt_have_the_ranks_that_are_asked_for() -> None:
    hunt = Hunt(Laboratory(wrong), Generator(1, Counter()), allowed, 600.0, most=10, turns=(8,))
    hunt.run()
    assert len(hunt.fates) == 10 and {case.ranks for case in hunt.fates} == {8}


@pytest.mark.parametrize("end", [KeyboardInterrupt(), LabError("rank 0 has ended", None)])
def test_a_hunt_that_is_ended_shows_what_was_tried(
    end: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    class Ends(Laboratory):
        def fates(self, cases: Sequence[Case], data: int = 0) -> dict[Case, Fate]:
            if self.asked:
                raise end
            return super().fates(cases, data)

    monkeypatch.setattr("overlapkit.lab.hunt.command.need_megatron", lambda: None)
    monkeypatch.setattr(
        "overlapkit.lab.hunt.command.Laboratory",
        lambda scratch, base: Ends(lambda case: Fate("equal")),
    )
    request = HuntRequest(seed=1, memory=str(tmp_path / "memory.json"), as_json=True)
    with pytest.raises(type(end)):
        run(request)
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == found["fates"]["equal"] > 0
