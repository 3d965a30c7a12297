"""Which flags are known by name, for which versions, and what becomes of those that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN
from overlapkit.config.effective import make_effective
from overlapkit.config.megatron_lm.arguments import read_arguments
from overlapkit.config.megatron_lm.flag_versions import all_flags, versions_of
from overlapkit.config.megatron_lm.flags import FLAGS, known_flag
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.config.shell.values import Field, Piece, Unknown
from overlapkit.errors import InputError
from support.megatron_lm_cases import arguments

FACTS = Path(__file__).parents[4] / "scripts/version_facts"
CORES = [stack.core or "" for stack in KNOWN]


def options(index: int) -> set[str]:
    """The flags that decide on communication in a known version, from the facts themselves."""
    known: dict[str, Any] = {}
    facts = json.loads((FACTS / "megatron_lm_flags.json").read_bytes())["versions"]
    for changes in list(facts.values())[: index + 1]:
        for gone in changes.get("removed", ()):
            known.pop(gone)
        known |= changes.get("base", changes.get("added", {}))
    return {name for forms in known.values() for form in forms for name in form["flags"]}


@pytest.mark.parametrize("index", range(len(CORES)))
def test_each_version_has_its_flags(index: int) -> None:
    every = set().union(*map(options, range(len(CORES))))
    for flag in every:
        known = versions_of(flag)
        assert known is not None
        assert known.versions.contains(CORES[index]) == (flag in options(index)), flag


def test_every_flag_that_is_read_is_a_flag_of_some_version() -> None:
    assert set(FLAGS) <= set(all_flags())
    for name, flag in FLAGS.items():
        assert all_flags()[name].is_switch == (flag.kind in ("on", "off")), name
        if flag.kind == "names":
            assert all_flags()[name].words in ("*", "+", "3"), name


def read(text: str) -> Settings:
    return read_megatron_lm_arguments(arguments(text))


def notes(settings: Settings) -> str:
    assert settings.launch is not None
    return "\n".join(settings.launch.notes)


def decisions(settings: Settings, core: str | None = None) -> list[Decision]:
    dated = Reading(core=core).dated(settings)
    found = make_effective(dated, 32, AssumedSoftware())[1].decisions
    return [d for d in found if d.rule == "lm.flag-versions"]


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("", []),
        ("--cuda-graph-modules attn", CORES[2:]),
        ("--freeze-all-layers", CORES[3:]),
        ("--muon-use-nesterov", CORES[:2]),
        ("--use-legacy-models --cpu-offloading-retain-pinned-cpu-buffers", CORES[1:2]),
        ("--moe-ncclep-static-shape", CORES[3:4]),
        ("--optimizer soap", CORES[2:]),
        ("--optimizer adam", []),
        # No version has both.
        ("--muon-use-nesterov --freeze-all-layers", []),
    ],
)
def test_flags_tell_the_versions(text: str, cores: list[str]) -> None:
    settings = read(text)
    assert [stack.core for stack in settings.stacks] == cores
    assert not settings.stack_given


def test_a_flag_that_the_given_version_lacks_stops_the_job() -> None:
    settings = read("--cuda-graph-modules attn --optimizer lion")
    assert not decisions(settings)
    assert not decisions(settings, "0.18.2")
    found = decisions(settings, "0.16.1")
    assert [d.knob for d in found] == ["model.cuda_graph_modules", "optimizer.optimizer"]
    for decision in found:
        assert decision.outcome is Outcome.ERROR
        assert "Megatron-LM 0.16.1 stops at it" in decision.reason
    assert "--cuda-graph-modules is known from 0.18.2" in found[0].reason
    assert "--optimizer lion is known from 0.17.1" in found[1].reason


def test_a_flag_that_is_gone_stops_the_job() -> None:
    (found,) = decisions(read("--use-custom-fsdp"), "main")
    assert found.outcome is Outcome.ERROR
    assert "no longer known from 0.16.1" in found.reason
    assert not decisions(read("--use-custom-fsdp"), "0.12.0")


def test_flags_of_no_one_version_are_a_note_where_the_version_is_not_known() -> None:
    (found,) = decisions(read("--muon-use-nesterov --freeze-all-layers"))
    assert found.outcome is Outcome.NOTE
    assert "--muon-use-nesterov is no longer known from 0.18.2" in found.reason
    assert "fork" in found.reason


FORKS = [
    "--use-llama2-rotary-position-embeddings",
    "--disable-bias-linear-fc",
    "--gemm-gradient-accumulation-fusion",
    "--o-lora-rank 8",
    "--pipeline-model-parallel-method x",
    "--overlap-p2p-communication",
    "--target-tensor-model-parallel-size 4",
    "--decoder",
    "--recompute",
]


@pytest.mark.parametrize("text", FORKS)
def test_a_forks_flag_is_passed_over_with_a_note(text: str) -> None:
    settings = read(text)
    assert f"such flags in any version that is known here: {text.split()[0]}" in notes(settings)
    assert settings.values == read("").values


def test_many_unknown_flags_are_one_short_note() -> None:
    told = notes(read(" ".join(f"--made-up-comm-{n}" for n in range(30))))
    assert "--made-up-comm-7 and 22 more" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_flag_that_is_near_one_that_is_there_too_is_a_flag_of_a_fork(first: bool) -> None:
    whole, own = ["--tensor-model-parallel-size", "2"], ["--ytensor-model-parallel-size", "1"]
    flags = [*whole, *own] if first else [*own, *whole]
    settings = read_megatron_lm_arguments([*arguments(""), *flags])
    assert "--ytensor-model-parallel-size" in notes(settings)
    with pytest.raises(InputError, match="did you mean --tensor-model-parallel-size"):
        read_megatron_lm_arguments([*arguments(""), *own])


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("--overlap-param-gahter", "--overlap-param-gather"),
        ("--sequence-paralel", "--sequence-parallel"),
        ("--tensor-model-parallel-sise", "--tensor-model-parallel-size"),
        ("--use-distributed-optimiser", "--use-distributed-optimizer"),
    ],
)
def test_a_typing_error_is_refused_until_it_is_allowed(typo: str, meant: str) -> None:
    words = [*arguments(""), typo]
    with pytest.raises(InputError, match=f"did you mean {meant}.*--allow-unknown"):
        read_megatron_lm_arguments(words)
    settings = read_megatron_lm_arguments(words, allow_unknown=True)
    assert typo in notes(settings)


@pytest.mark.parametrize(
    "text",
    [
        "--data-path 0.3 a 0.7 b",
        "--rampup-batch-size 8 8 1000",
        "--lr 1e-4 --log-interval=10",
        "--fp4-param-gather",
        "--moe-shared-expert-glu-interleave-size 8",
        "--save $NOT_KNOWN",
    ],
)
def test_flags_of_any_version_pass_without_a_remark(text: str) -> None:
    assert notes(read(text)) == ""


def test_words_that_a_flag_does_not_take_are_told() -> None:
    assert "'2' after --lr is not an argument" in notes(read("--lr 1 2"))
    assert "'true' after --async-save is not an argument" in notes(read("--async-save true"))


@pytest.mark.parametrize("off", ["no", "disable"])
@pytest.mark.parametrize("name", ["overlap-ag", "overlap-rs", "bulk-dgrad", "split-rs"])
def test_either_name_of_a_switch_is_read(off: str, name: str) -> None:
    settings = read(f"--{off}-tp-comm-{name}")
    assert settings.flat()[f"model.tp_comm_{name.replace('-', '_')}"] is False


def test_a_forks_underscores_are_the_same_flags() -> None:
    settings = read("--tensor_model_parallel_size 4 --sequence_parallel true --bf16")
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert settings.flat()["model.sequence_parallel"] is True
    said = "--tensor_model_parallel_size is read as --tensor-model-parallel-size, and so is 1 more"
    assert said in notes(settings)
    off = read("--sequence_parallel false --overlap_grad_reduce")
    assert off.flat()["model.sequence_parallel"] is False
    assert off.flat()["ddp.overlap_grad_reduce"] is True
    assert known_flag("--sequence_parallel=1") == "--sequence-parallel"


def test_old_switches_of_graphs_are_kinds_of_graphs() -> None:
    for text, kind in (
        ("--enable-cuda-graph", "local"),
        ("--external-cuda-graph", "transformer_engine"),
        ("--enable-cuda-graph --cuda-graph-impl none", "none"),
    ):
        assert read(text).flat()["model.cuda_graph_impl"] == kind


def test_what_changes_little_is_not_asked_for() -> None:
    unknown = Field((Piece("", 3, unknown=Unknown("OPTIMIZER", "it is not set", 3)),))
    result = read_arguments([Field((Piece("--optimizer", 3),)), unknown], "train.sh")
    assert "optimizer.optimizer" not in result.values
    assert "train.sh:3: --optimizer has no known value" in result.notes[0]
