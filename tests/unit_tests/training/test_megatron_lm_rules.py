"""Every rule of Megatron-LM's own argument checks, made to speak, be silent, and be mended."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest

from megatron.bridge.recipes.megatron_lm_environment import (
    environment_notes,
    environment_refusals,
)
from megatron.bridge.training.decisions import RULES, Decision, Outcome
from megatron.bridge.training.megatron_lm_rules import remedy_in_flags
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, Stack
from overlapkit.config.effective import make_effective
from overlapkit.config.megatron_lm.script import read_megatron_lm_arguments
from overlapkit.config.reading import Reading
from overlapkit.config.run import Settings
from overlapkit.explain.assumptions import assume
from overlapkit.explain.report import Report, explain
from support.megatron_lm_cases import (
    CHOICES,
    DELAY,
    EXPERTS,
    FINDINGS,
    FSDP,
    GATHER,
    INTERLEAVED,
    NOTES,
    TORCH_FSDP2,
    arguments,
    every_rule,
)


def decide(
    text: str,
    *,
    world_size: int = 32,
    software: AssumedSoftware | None = None,
    core: str | None = None,
) -> tuple[Any, list[Decision]]:
    """The effective run and the decisions on arguments, with a version of Megatron-LM."""
    settings = Reading(core=core).dated(read_megatron_lm_arguments(arguments(text)))
    run, update = make_effective(settings, world_size, software or AssumedSoftware())
    return run, update.decisions


def explain_settings(settings: Settings) -> Report:
    """The report on settings, on 32 H100 with an environment that is not known."""
    assumptions = assume("h100", "assume", None)
    return explain(settings, 32, replace(assumptions, environment={}))


def findings(decisions: list[Decision]) -> set[str]:
    return {d.rule for d in decisions if d.is_finding}


def test_every_rule_of_megatron_lm_is_exercised() -> None:
    assert {name for name in RULES if name.startswith("lm.")} == every_rule()


def core_of(name: str, *, holds: bool = True) -> str:
    """The newest known version for which a rule holds, or does not."""
    return next(s.core or "" for s in reversed(KNOWN) if RULES[name].holds(s) is holds)


@pytest.mark.parametrize("name", FINDINGS)
def test_a_mistake_is_found_with_its_remedy(name: str) -> None:
    _, decisions = decide(FINDINGS[name][0], core=core_of(name))
    found = [d for d in decisions if d.rule == name]
    assert found and all(d.is_finding and d.reason and d.remedy for d in found)
    assert all("--" in (d.remedy or "") for d in found)


@pytest.mark.parametrize("name", [name for name, (_, mended) in FINDINGS.items() if mended])
def test_what_mends_it_mends(name: str) -> None:
    broken, mended = FINDINGS[name]
    assert findings(decide(f"{broken} {mended}", core=core_of(name))[1]) == set()


@pytest.mark.parametrize("name", NOTES)
def test_a_note_is_no_finding(name: str) -> None:
    _, decisions = decide(NOTES[name], core=core_of(name))
    assert [d.outcome for d in decisions if d.rule == name] == [Outcome.NOTE]
    assert not findings(decisions)


RANGED = {**{name: text for name, (text, _) in FINDINGS.items()}, **NOTES}


@pytest.mark.parametrize("name", [name for name in RANGED if RULES[name].versions])
def test_a_rule_ends_with_its_versions(name: str) -> None:
    _, decisions = decide(RANGED[name], core=core_of(name, holds=False))
    assert name not in {d.rule for d in decisions}
    assert RULES[name].source


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


@pytest.mark.parametrize(
    "flags", [f"{FSDP} --overlap-grad-reduce --overlap-param-gather", TORCH_FSDP2]
)
def test_an_fsdp_is_told_and_the_rules_of_ddp_stay_silent(flags: str) -> None:
    _, decisions = decide(f"{flags} --fp8-format e4m3")
    assert "core.fsdp" in {d.rule for d in decisions}
    assert not findings(decisions)


@pytest.mark.parametrize(
    "flags",
    [
        "--pipeline-model-parallel-size 2",
        "--num-experts 8 --expert-model-parallel-size 2",
        "--use-distributed-optimizer",
        "--ckpt-format torch",
    ],
)
@pytest.mark.parametrize("core", [stack.core for stack in KNOWN])
def test_what_torchs_fsdp2_excludes(flags: str, core: str) -> None:
    assert findings(decide(TORCH_FSDP2, core=core)[1]) == set()
    assert findings(decide(f"{TORCH_FSDP2} {flags}", core=core)[1]) == {"lm.torch-fsdp2-needs"}


def test_the_parameter_gather_has_no_sense_with_torchs_fsdp2() -> None:
    told = findings(decide(f"{TORCH_FSDP2} --overlap-grad-reduce --overlap-param-gather")[1])
    assert told == {"lm.param-gather-needs"}


def test_fp8_gather_of_torchs_fsdp2_is_turned_off() -> None:
    flags = f"{TORCH_FSDP2} --fp8-format e4m3 --fp8-param-gather"
    run, decisions = decide(flags)
    assert run.ddp.fp8_param_gather is False
    assert findings(decisions) == {"lm.torch-fsdp2-fp8-gather"}
    old = AssumedSoftware(te="1.13")
    assert decide(flags, software=old)[0].ddp.fp8_param_gather is True


@pytest.mark.parametrize(
    ("core", "expected"),
    [("0.16.1", (False, False, False)), ("0.18.2", (True, True, False)), ("0.19.0", (True,) * 3)],
)
def test_what_megatron_fsdp_turns_on(core: str, expected: tuple[bool, bool, bool]) -> None:
    ddp = decide(f"{FSDP} --use-nccl-ub", core=core)[0].ddp
    found = (ddp.use_distributed_optimizer, ddp.fsdp_manual_registration, ddp.fsdp_double_buffer)
    assert found == expected


MUON = "lm.muon-no-overlap", "lm.muon-dist-only"
MUONS: list[tuple[str, list[str | None]]] = [
    # flags, the rule that stops the job with 0.16.1, 0.17.1, and 0.18.2 and later
    ("--optimizer muon", [None, None, None]),
    ("--optimizer muon --overlap-grad-reduce", [*MUON, None]),
    ("--optimizer dist_muon --overlap-grad-reduce", [MUON[0], None, None]),
    ("--optimizer dist_muon --overlap-grad-reduce --overlap-param-gather", [MUON[0], None, None]),
    (f"--optimizer muon {GATHER}", [*MUON, None]),
    ("--optimizer dist_muon --use-distributed-optimizer", [*MUON, None]),
    (f"--optimizer muon {FSDP}", [*MUON, "lm.layer-wise-refuses"]),
]


@pytest.mark.parametrize(("flags", "stops"), MUONS)
def test_muon_by_version(flags: str, stops: list[str | None]) -> None:
    for core, stop in zip(("0.16.1", "0.17.1", "0.18.2"), stops, strict=True):
        told = findings(decide(flags, core=core)[1])
        assert stop in told if stop else not told, (core, told)
    assert findings(decide(flags, core="0.19.0")[1]) == findings(decide(flags, core="0.18.2")[1])


@pytest.mark.parametrize("optimizer", ["muon", "dist_muon", "lion", "soap"])
def test_other_optimizers_divide_whole_layers(optimizer: str) -> None:
    run, decisions = decide(f"--optimizer {optimizer} {GATHER}", core="0.18.2")
    assert run.ddp.use_distributed_optimizer is False
    assert run.ddp.overlap_param_gather is True
    assert not findings(decisions)
    assert decide(f"--optimizer adam {GATHER}")[0].ddp.use_distributed_optimizer is True


def test_a_request_for_whole_layers_is_no_finding() -> None:
    settings = read_megatron_lm_arguments(arguments(f"--optimizer muon {GATHER}"))
    report = explain_settings(settings)
    assert not report.findings
    assert report.effective["ddp.use_distributed_optimizer"] is False


def test_frozen_layers_have_no_gather() -> None:
    run, decisions = decide(f"{GATHER} --freeze-all-layers")
    assert not run.ddp.use_distributed_optimizer and not run.ddp.overlap_param_gather
    refused = {d.knob for d in decisions if d.rule == "lm.freeze-all-layers"}
    assert refused == {"ddp.use_distributed_optimizer", "ddp.overlap_param_gather"}


DELAYS: list[tuple[str, str, bool]] = [
    # flags behind those of delayed gradients, Transformer Engine, whether the job stops
    ("--overlap-grad-reduce", "2.8.0", False),
    ("--overlap-grad-reduce", "2.7.0", True),
    ("--no-gradient-accumulation-fusion", "2.7.0", False),
    ("--no-gradient-accumulation-fusion", "2.6.0", True),
    ("", "2.3.0", False),
    ("", "2.2.0", True),
]


@pytest.mark.parametrize(("flags", "te", "stops"), DELAYS)
@pytest.mark.parametrize("core", [stack.core for stack in KNOWN])
def test_delayed_gradients_need_a_transformer_engine(
    flags: str, te: str, stops: bool, core: str
) -> None:
    _, decisions = decide(f"{DELAY} {flags}", software=AssumedSoftware(te=te), core=core)
    assert findings(decisions) == ({"lm.delay-wgrad-needs-te"} if stops else set())
    assert not any(d.rule.startswith("ep.delay-") for d in decisions)


def test_delayed_gradients_in_a_graph_are_checked_with_overlap_alone() -> None:
    graph = "--cuda-graph-impl transformer_engine --cuda-graph-scope attn"
    assert findings(decide(f"{DELAY} {graph}")[1]) == set()
    told = findings(decide(f"{DELAY} {graph} --overlap-grad-reduce")[1])
    assert told == {"lm.delay-wgrad-in-graph"}
    assert findings(decide(f"{DELAY} {graph} --overlap-grad-reduce", core="0.16.1")[1]) == set()


@pytest.mark.parametrize(("cp", "size"), [(1, 64_000_000), (2, 64_000_000), (4, 64_000_000)])
def test_a_default_bucket_counts_context_parallel_ranks(cp: int, size: int) -> None:
    flags = f"--overlap-grad-reduce --context-parallel-size {cp}"
    _, decisions = decide(flags, world_size=64)
    (note,) = [d for d in decisions if d.rule == "lm.bucket-default"]
    assert note.effective == size
    assert "core.bucket-default" not in {d.rule for d in decisions}


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


ENVIRONMENTS: list[tuple[str, str | None, bool, str | None]] = [
    # flags, CUDA_DEVICE_MAX_CONNECTIONS, Blackwell, the rule that stops the job at start
    ("--tensor-model-parallel-size 2", "1", False, None),
    ("--tensor-model-parallel-size 2", "8", False, "lm.env-connections"),
    ("--tensor-model-parallel-size 2", None, False, "lm.env-connections"),
    ("--tensor-model-parallel-size 2", "8", True, None),
    ("--context-parallel-size 2", "32", False, "lm.env-connections"),
    ("", "1", False, None),
    ("", "8", False, None),
    (FSDP, "1", False, "lm.env-connections"),
    (f"{FSDP} --tensor-model-parallel-size 2", "1", False, "lm.env-connections"),
    (f"{FSDP} --tensor-model-parallel-size 2", "8", False, None),
    (TORCH_FSDP2, "1", True, "lm.env-connections"),
    (f"--tensor-model-parallel-size 2 {EXPERTS}", "32", False, None),
]


@pytest.mark.parametrize(("flags", "connections", "blackwell", "stop"), ENVIRONMENTS)
@pytest.mark.parametrize("stack", KNOWN)
def test_megatron_lms_check_of_the_environment(
    flags: str, connections: str | None, blackwell: bool, stop: str | None, stack: Stack
) -> None:
    run, _ = decide(flags, core=stack.core)
    environment = {} if connections is None else {"CUDA_DEVICE_MAX_CONNECTIONS": connections}

    def told(*, complete: bool) -> list[Decision]:
        return environment_refusals(
            run,
            environment,
            "job.env",
            sm100_or_newer=blackwell,
            complete=complete,
            stack=stack,
        )

    expected = {(stop, Outcome.ERROR)} if stop else set()
    assert {(d.rule, d.outcome) for d in told(complete=True)} == expected
    if connections is None:
        assert told(complete=False) == []
    for edit in [edit for d in told(complete=True) for edit in d.edits]:
        environment[edit.key.removeprefix("env.")] = edit.value
    assert told(complete=True) == []


@pytest.mark.parametrize(("core", "stops"), [("0.11.0", True), ("0.12.0", False)])
def test_old_versions_demand_one_queue_on_every_gpu(core: str, stops: bool) -> None:
    run, _ = decide("--tensor-model-parallel-size 2", core=core)
    told = environment_refusals(
        run,
        {"CUDA_DEVICE_MAX_CONNECTIONS": "32"},
        "job.env",
        sm100_or_newer=True,
        complete=True,
        stack=Stack(core),
    )
    assert [d.rule for d in told] == ["lm.env-connections-every-gpu"] * stops


STREAMS: list[tuple[str, bool, str, list[str] | None]] = [
    # flags, Blackwell, version, the groups with streams of high priority
    ("", True, "0.19.0", None),
    (FSDP, True, "0.16.1", ["dp_cp"]),
    (FSDP, False, "0.16.1", None),
    (TORCH_FSDP2, False, "0.19.0", ["dp_cp"]),
    (f"{FSDP} {EXPERTS}", True, "0.19.0", ["dp_cp", "ep_dp"]),
    (f"{FSDP} --high-priority-stream-groups ep_dp", True, "0.19.0", ["ep_dp", "dp_cp"]),
    (f"{FSDP} --high-priority-stream-groups dp_cp", True, "0.19.0", None),
    ("--tensor-parallel-num-weight-shards 4", True, "0.19.0", ["gtp_remat"]),
    ("--tensor-parallel-num-weight-shards 4", True, "0.18.2", None),
    ("--tensor-parallel-num-weight-shards 4", False, "0.19.0", None),
]


@pytest.mark.parametrize(("flags", "blackwell", "core", "groups"), STREAMS)
def test_streams_of_high_priority(
    flags: str, blackwell: bool, core: str, groups: list[str] | None
) -> None:
    run, _ = decide(flags, core=core)
    passed = read_megatron_lm_arguments(arguments(flags)).values.get("megatron_lm") or {}
    notes = environment_notes(
        run,
        sm100_or_newer=blackwell,
        groups=tuple(passed.get("high_priority_stream_groups", ())),
        stack=Stack(core),
    )
    found = [d for d in notes if "streams" in d.rule]
    assert [d.effective for d in found] == ([groups] if groups else [])
    assert all(d.outcome is Outcome.NOTE for d in found)


def test_queues_that_two_overlaps_want_are_weighed() -> None:
    for flags, expected in (
        (f"--tensor-model-parallel-size 2 {EXPERTS}", 1),
        (f"--context-parallel-size 2 {FSDP}", 1),
        (EXPERTS, 0),
        ("--tensor-model-parallel-size 2", 0),
    ):
        run, _ = decide(flags)
        for blackwell, core in ((False, "0.19.0"), (True, "0.19.0"), (False, "0.11.0")):
            notes = environment_notes(run, sm100_or_newer=blackwell, stack=Stack(core))
            found = [d for d in notes if d.rule == "lm.env-connections-weighed"]
            assert len(found) == (0 if blackwell or core == "0.11.0" else expected)


def test_a_preset_that_fits_is_named() -> None:
    remedy = "set comm_overlap.tp_comm_overlap_cfg to userbuffers_bf16_h100_h8192_tp4"
    said = remedy_in_flags("tp.preset-fit", remedy) or ""
    assert said.startswith("pass --tp-comm-overlap-cfg") and said.endswith("_h8192_tp4")


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
