"""A hunt on real ranks, and a hazard that it finds once the rule is bypassed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from overlapkit.config.sources import read_configuration
from overlapkit.lab.hunt.around import case_of
from overlapkit.lab.hunt.batch import Trained, train
from overlapkit.lab.hunt.case import Case
from overlapkit.lab.hunt.generate import Generator, allowed
from overlapkit.lab.hunt.hunt import Hunt
from overlapkit.lab.hunt.judge import Fate
from overlapkit.lab.hunt.laboratory import Laboratory
from overlapkit.lab.measurements import Observations
from overlapkit.lab.own.shrink import shrink
from overlapkit.lab.scenarios.pp import BATCHED
from support.late import needs

pytestmark = [pytest.mark.functional, needs("torch", "megatron.core")]

CONFIG = """
model:
  num_layers: 8
  hidden_size: 512
  num_attention_heads: 8
  seq_length: 1024
  vocab_size: 32000
  pipeline_model_parallel_size: 2
  normalization: RMSNorm
  gated_linear_unit: true
ddp:
  use_distributed_optimizer: true
  overlap_grad_reduce: true
train:
  global_batch_size: 64
  micro_batch_size: 1
"""

PLAIN = Case(pp=2, vpp=2, microbatches=4, p2p="overlapped", steps=1)


def test_a_hunt_tries_cases_and_remembers_them(tmp_path: Path) -> None:
    memory, out = tmp_path / "memory.json", tmp_path / "out"
    # A short budget, so that reducing what may be found takes a moment.
    options = [*("--cases", "4", "--budget", "60s", "--seed", "3", "--memory", str(memory))]
    options += ["--out", str(out), "--json"]
    command = [sys.executable, "-m", "overlapkit.cli", "lab", "hunt", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode in (0, 1), result.stderr
    document = json.loads(result.stdout)
    assert bool(document["findings"]) is (result.returncode == 1)
    assert document["cases"] == 4 == sum(document["fates"].values())
    assert document["fates"]["equal"] > 0
    assert len(json.loads(memory.read_text())["tried"]) == 4
    assert len(list(out.iterdir())) == len(document["findings"])


def test_a_hunt_around_a_configuration_trains_its_neighbours(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    memory = tmp_path / "memory.json"
    options = [*("--from", str(config), "--ranks", "4", "--cases", "3", "--budget", "60s")]
    options += ["--seed", "1", "--memory", str(memory), "--json"]
    command = [sys.executable, "-m", "overlapkit.cli", "lab", "hunt", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode in (0, 1), result.stderr
    document = json.loads(result.stdout)
    assert document["around"] == str(config)
    assert document["cases"] == 3 and document["fates"]["equal"] > 0
    around = case_of(shrink(read_configuration(str(config)), ranks=4))
    assert around.pp == 2 and around.gated and around.rms and around.overlap == "reduce"
    for tried in json.loads(memory.read_text())["tried"]:
        case = msgspec.convert(tried["case"], Case)
        assert case.ranks == 4
        # Up to four features are drawn; one of them may leave others without effect.
        assert len(set(case.features.items()) ^ set(around.features.items())) <= 2 * 6


class Hazard(Generator):
    """Draws a case with many features that has the hazard, and one that does not."""

    def __init__(self) -> None:
        super().__init__(1, Counter())
        extra = {"rms": True, "clip": True, "microbatches": 6, "steps": 2}
        self._left = [
            msgspec.structs.replace(PLAIN, **extra),
            msgspec.structs.replace(PLAIN, vpp=1, p2p="waiting"),
        ]

    def draw(self, ranks: int, known: Sequence[Case] = ()) -> Case | None:
        return self._left.pop() if self._left else None


def test_the_known_hazard_is_found_and_reduced_once_its_rule_is_bypassed(tmp_path: Path) -> None:
    fates: dict[Case, Fate] = {}
    hunt = Hunt(
        laboratory=Laboratory(tmp_path, force=BATCHED),
        generator=Hazard(),
        # Few features, so that few sets of ranks start.
        allowed=lambda case: allowed(case) and case.p2p == "overlapped" and case.pp == 2,
        budget_s=4500.0,
        most=2,
        turns=(2,),
        keep=fates.update,
    )
    hunt.run()
    assert sorted(fate.kind for fate in fates.values()) == ["different", "equal"]
    (finding,) = hunt.findings
    assert finding.kind == "wrong numbers" and finding.shown == 3 and finding.smallest
    assert finding.case == PLAIN, finding.case.words


def test_a_case_that_ends_its_ranks_costs_no_other_case(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path)
    first, second = (
        msgspec.structs.replace(laboratory.variant(PLAIN), name=name)
        for name in ("first", "second")
    )
    # Both modes at once: the schedule raises an error in the first step.
    broken = msgspec.structs.replace(
        first, name="broken", force={"model.batch_p2p_comm": True, "model.overlap_p2p_comm": True}
    )
    found: dict[str, Trained] = {}

    def use(one: Trained, observed: Observations | None) -> None:
        found[one.variant] = one
        assert (observed is None) is (one.trouble in ("crash", "hang"))

    train((first, broken, second), 2, use, scratch=tmp_path)
    assert {name: one.trouble for name, one in found.items()} == {
        "first": None,
        "broken": "crash",
        "second": None,
    }
    assert "batch_p2p_comm" in found["broken"].message
