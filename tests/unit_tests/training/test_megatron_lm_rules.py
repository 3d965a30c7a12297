"""Every rule of Megatron-LM's own argument checks, made to speak, be silent, and be mended."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from megatron.bridge.recipes.megatron_lm_environment import environment_refusals
from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.megatron_lm_rules import remedy_in_flags
from megatron.bridge.training.software import AssumedSoftware
from overlapkit.config.effective import make_effective
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from support.megatron_lm_cases import CHOICES, FINDINGS, INTERLEAVED, arguments, every_rule


def decide(
    text: str, *, world_size: int = 32, software: AssumedSoftware | None = None
) -> tuple[Any, list[Decision]]:
    """The effective run and the decisions on arguments."""
    settings = read_megatron_lm_arguments(arguments(text))
    run, update = make_effective(settings, world_size, software or AssumedSoftware())
    return run, update.decisions


def findings(decisions: list[Decision]) -> set[str]:
    return {d.rule for d in decisions if d.is_finding}


def test_every_rule_of_megatron_lm_is_exercised() -> None:
    assert {name for name in RULES if name.startswith("lm.")} == every_rule()


@pytest.mark.parametrize("name", FINDINGS)
def test_a_mistake_is_found_with_its_remedy(name: str) -> None:
    _, decisions = decide(FINDINGS[name][0])
    found = [d for d in decisions if d.rule == name]
    assert found and all(d.is_finding and d.reason and d.remedy for d in found)
    assert all("--" in (d.remedy or "") for d in found)


@pytest.mark.parametrize("name", [name for name, (_, mended) in FINDINGS.items() if mended])
def test_what_mends_it_mends(name: str) -> None:
    broken, mended = FINDINGS[name]
    assert findings(decide(f"{broken} {mended}")[1]) == set()


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_says_why(name: str) -> None:
    told = [d for d in decide(CHOICES[name])[1] if d.rule == name]
    assert told and all(d.outcome is Outcome.DEFAULT and d.reason for d in told)


@pytest.mark.parametrize(
    ("flags", "effective"),
    [
        ("", {"overlap_p2p_comm": False, "batch_p2p_comm": True, "align_param_gather": False}),
        (
            "--pipeline-model-parallel-size 4",
            {"overlap_p2p_comm": False, "batch_p2p_comm": True, "align_param_gather": False},
        ),
        (
            INTERLEAVED,
            {"overlap_p2p_comm": True, "batch_p2p_comm": False, "align_param_gather": True},
        ),
        (
            f"{INTERLEAVED} --no-overlap-p2p-communication --no-align-param-gather",
            {"overlap_p2p_comm": False, "batch_p2p_comm": True, "align_param_gather": False},
        ),
        ("--sequence-parallel", {"sequence_parallel": False}),
        (
            "--sequence-parallel --tensor-model-parallel-size 2",
            {"sequence_parallel": True, "tensor_model_parallel_size": 2},
        ),
        ("", {"grad_reduce_in_fp32": True, "overlap_grad_reduce": False}),
        ("--grad-reduce-in-bf16", {"grad_reduce_in_fp32": False}),
        ("--main-grads-dtype bf16", {"grad_reduce_in_fp32": False}),
    ],
)
def test_what_megatron_lm_derives(flags: str, effective: dict[str, Any]) -> None:
    run, decisions = decide(flags)
    for name, value in effective.items():
        holder = run.model if hasattr(run.model, name) else run.ddp
        assert getattr(holder, name) == value, name
    assert all(d.outcome is not Outcome.ERROR for d in decisions)


def test_gradients_are_reduced_as_asked_without_bf16() -> None:
    words = [word for word in arguments("") if word != "--bf16"]
    for more, expected in (([], False), (["--accumulate-allreduce-grads-in-fp32"], True)):
        settings = read_megatron_lm_arguments(words + more)
        run, _ = make_effective(settings, 8, AssumedSoftware())
        assert run.ddp.grad_reduce_in_fp32 is expected


def test_a_request_for_fp32_reduction_is_refused_where_bf16_wins() -> None:
    _, decisions = decide("--accumulate-allreduce-grads-in-fp32 --grad-reduce-in-bf16")
    assert findings(decisions) == {"lm.grads-in-fp32"}


def test_two_interleaved_stages_need_overlapped_p2p() -> None:
    flags = "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"
    run, decisions = decide(flags)
    assert run.model.overlap_p2p_comm and not findings(decisions)
    _, decisions = decide(f"{flags} --no-overlap-p2p-communication")
    assert findings(decisions) == {"lm.interleaving-needs-stages"}


@pytest.mark.parametrize(
    "missing",
    ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather", "VPP"],
)
def test_each_need_of_the_gather_in_the_step(missing: str) -> None:
    flag = "--overlap-param-gather-with-optimizer-step"
    flags = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
    flags += f"{INTERLEAVED} --ckpt-format torch {flag}"
    assert findings(decide(flags)[1]) == set()
    broken = flags.replace(
        "--num-virtual-stages-per-pipeline-rank 2" if missing == "VPP" else f"{missing} ", ""
    )
    assert findings(decide(broken)[1]) & {
        "lm.param-gather-with-optimizer-step-needs",
        "lm.param-gather-needs",
    }


def test_a_number_of_buckets_becomes_a_size() -> None:
    flags = "--use-distributed-optimizer --overlap-grad-reduce --ddp-num-buckets"
    one, _ = decide(f"{flags} 1", world_size=4)
    eight, decisions = decide(f"{flags} 8", world_size=4)
    assert one.ddp.bucket_size // 8 == eight.ddp.bucket_size
    counted = next(d.reason for d in decisions if d.rule == "core.bucket-count")
    found = re.search(r"in (\d+) buckets", counted)
    # A bucket is closed by whole tensors, so that a few fewer come out.
    assert found and 4 <= int(found[1]) <= 8


@pytest.mark.parametrize("number", [0, -2])
def test_fewer_than_one_bucket_is_refused(number: int) -> None:
    flags = f"--use-distributed-optimizer --overlap-grad-reduce --ddp-num-buckets {number}"
    assert findings(decide(flags, world_size=4)[1]) == {"lm.bucket-number"}


def test_an_fsdp_is_told_and_the_rules_of_ddp_stay_silent() -> None:
    for flag in ("--use-megatron-fsdp", "--use-torch-fsdp2"):
        _, decisions = decide(f"{flag} --overlap-param-gather --fp8-format e4m3 --fp8-param-gather")
        assert "core.fsdp" in {d.rule for d in decisions}
        assert not findings(decisions)


def test_missing_transformer_engine_stops_tensor_overlap() -> None:
    flags = "--tensor-model-parallel-size 2 --sequence-parallel --tp-comm-overlap"
    assert findings(decide(flags, software=AssumedSoftware(te=None))[1]) == {"lm.tp-overlap-needs"}
    assert findings(decide(flags)[1]) == set()


def test_needs_of_expert_overlap_are_megatron_cores() -> None:
    flags = "--num-experts 8 --expert-model-parallel-size 4 --moe-token-dispatcher-type alltoall "
    flags += "--overlap-moe-expert-parallel-comm"
    assert findings(decide(flags)[1]) == set()
    told = findings(decide(f"{flags} --recompute-granularity full")[1])
    assert told == {"ep.no-full-recompute"}


ENVIRONMENTS: list[tuple[str, str | None, bool, bool]] = [
    # flags, CUDA_DEVICE_MAX_CONNECTIONS, Blackwell, whether the job stops at start
    ("--tensor-model-parallel-size 2", "1", False, False),
    ("--tensor-model-parallel-size 2", "8", False, True),
    ("--tensor-model-parallel-size 2", None, False, True),
    ("--tensor-model-parallel-size 2", "8", True, False),
    ("--context-parallel-size 2", "32", False, True),
    ("", "1", False, False),
    ("", "8", False, False),
    ("--use-megatron-fsdp", "1", False, True),
    ("--use-megatron-fsdp --tensor-model-parallel-size 2", "1", False, True),
    ("--use-megatron-fsdp --tensor-model-parallel-size 2", "8", False, False),
    ("--use-torch-fsdp2", "1", True, True),
    (
        "--tensor-model-parallel-size 2 --num-experts 8 --expert-model-parallel-size 2 "
        "--moe-token-dispatcher-type alltoall --overlap-moe-expert-parallel-comm",
        "32",
        False,
        False,
    ),
]


@pytest.mark.parametrize(("flags", "connections", "blackwell", "stops"), ENVIRONMENTS)
def test_megatron_lms_check_of_the_environment(
    flags: str, connections: str | None, blackwell: bool, stops: bool
) -> None:
    run, _ = decide(flags)
    environment = {} if connections is None else {"CUDA_DEVICE_MAX_CONNECTIONS": connections}

    def told(*, complete: bool) -> list[Decision]:
        return environment_refusals(
            run, environment, "job.env", sm100_or_newer=blackwell, complete=complete
        )

    assert {(d.rule, d.outcome) for d in told(complete=True)} == (
        {("lm.env-connections", Outcome.ERROR)} if stops else set()
    )
    if connections is None:
        assert told(complete=False) == []


def test_shared_remedies_are_said_in_flags() -> None:
    """No remedy of a rule that Megatron-LM shares names a section that it does not have."""
    for declared in RULES.values():
        if declared.id.startswith(SHARED) and declared.id not in NEVER_HERE:
            said = remedy_in_flags(declared.id, declared.remedy) or ""
            assert not re.search(r"\b(model|ddp|optimizer)\.\w|\bcomm_overlap\b", said), declared.id


def test_a_preset_that_fits_is_named() -> None:
    remedy = "set comm_overlap.tp_comm_overlap_cfg to userbuffers_bf16_h100_h8192_tp4"
    said = remedy_in_flags("tp.preset-fit", remedy) or ""
    assert said.startswith("pass --tp-comm-overlap-cfg") and said.endswith("_h8192_tp4")


SHARED = ("core.", "ep.", "tp.", "ub.", "any.", "launch.")
# What Megatron-LM decides by itself, or never lets come about.
NEVER_HERE = {
    "core.sequence-parallel",
    "core.p2p-modes-exclude",
    "core.p2p-overlap-needs-interleaving",
    "core.param-gather-needs",
    "core.param-gather-with-optimizer-step-needs",
    "tp.off-unless-asked",
    "tp.needs-tensor-parallel",
    "tp.needs-sequence-parallel",
    "any.no-comm-overlap",
    "any.set-by-hand-overwritten",
}
LAYOUTS = list(itertools.product((1, 2), (1, 2, 4), (1, 2), (False, True)))


@pytest.mark.parametrize(("tp", "pp", "vpp", "overlap"), LAYOUTS)
def test_what_is_effective_is_never_contradictory(
    tp: int, pp: int, vpp: int, overlap: bool
) -> None:
    flags = f"--tensor-model-parallel-size {tp} --pipeline-model-parallel-size {pp} "
    flags += f"--num-virtual-stages-per-pipeline-rank {vpp} --sequence-parallel"
    flags += "" if overlap else " --no-overlap-p2p-communication"
    run, decisions = decide(flags)
    assert run.model.overlap_p2p_comm != run.model.batch_p2p_comm
    assert run.model.sequence_parallel == (tp > 1)
    interleaved = vpp > 1
    stops = interleaved and (pp == 1 or (pp == 2 and not overlap))
    assert ("lm.interleaving-needs-stages" in findings(decisions)) == stops
    if pp > 1:
        assert run.model.overlap_p2p_comm == (interleaved and overlap)
