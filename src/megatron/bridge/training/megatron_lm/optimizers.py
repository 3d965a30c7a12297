"""Megatron-LM's checks of the optimizer and of the parameter gather, by version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from megatron.bridge.training.decisions import Decision, Dimension, Outcome, rule
from megatron.bridge.training.edits import REMOVED, Edit, either, in_words
from megatron.bridge.training.megatron_lm.mended import (
    DISTRIBUTED,
    GATHER_OFF,
    STEP_OFF,
    distributed,
    not_distributed,
    together,
    without_fsdp,
)
from megatron.bridge.training.megatron_lm.request import MegatronLmRequest, stops
from megatron.bridge.training.remedies import overlapped_reduction
from megatron.bridge.training.rules.context import Context, fsdp_switch
from megatron.bridge.training.versions import Range

PARAM_GATHER = rule(
    "lm.param-gather-needs",
    Dimension.DP,
    claim="--overlap-param-gather stops a Megatron-LM job at start without --overlap-grad-reduce, "
    "and without one of --use-distributed-optimizer, --use-megatron-fsdp and --optimizer "
    "dist_muon.",
    remedy="pass --use-distributed-optimizer and --overlap-grad-reduce",
    source="Megatron-LM a2381d8007",
)
LEGACY_MODELS = rule(
    "lm.param-gather-legacy-models",
    Dimension.DP,
    claim="--overlap-param-gather with --use-legacy-models stops a Megatron-LM job at start.",
    remedy="omit --use-legacy-models, or omit --overlap-param-gather",
    edits=(Edit("megatron_lm.use_legacy_models", False),),
    versions=(Range("core", until="0.18.2"),),
    source="Megatron-LM's arguments.py",
)
OPTIMIZER_STEP = rule(
    "lm.param-gather-with-optimizer-step-needs",
    Dimension.DP,
    claim="--overlap-param-gather-with-optimizer-step stops a Megatron-LM job at start without "
    "the distributed optimizer, --overlap-param-gather and an interleaved schedule, and with a "
    "distributed checkpoint format (the default is one).",
    remedy="omit the flag, or pass what is missing and --ckpt-format torch",
    edits=STEP_OFF,
)
SAVED_PARAMETERS = rule(
    "lm.save-params-excludes-gather",
    Dimension.DP,
    claim="--save-params-interval with --save stops a Megatron-LM job at start where "
    "--overlap-param-gather is on: the parameters are not whole when they are saved.",
    remedy="omit --save-params-interval, or omit --overlap-param-gather",
    edits=(Edit("megatron_lm.save_params_interval", REMOVED),),
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM's arguments.py",
)
FROZEN = rule(
    "lm.freeze-all-layers",
    Dimension.DP,
    claim="--freeze-all-layers turns --use-distributed-optimizer and --overlap-param-gather off, "
    "with only a warning.",
    remedy="omit --overlap-param-gather and --use-distributed-optimizer, or omit "
    "--freeze-all-layers",
    versions=(Range("core", since="0.19.0"),),
    source="Megatron-LM's arguments.py",
)
MUON_ALONE = rule(
    "lm.muon-no-overlap",
    Dimension.DP,
    claim="Muon, as --optimizer muon or dist_muon, stops a Megatron-LM job at start with "
    "--overlap-grad-reduce, --overlap-param-gather, --use-distributed-optimizer or FSDP.",
    remedy="omit --overlap-grad-reduce, --overlap-param-gather and --use-distributed-optimizer, or "
    "pass --optimizer adam",
    versions=(Range("core", until="0.17.1"),),
    source="Megatron-LM's arguments.py; ended by a2381d8007",
)
MUON_OF_017 = rule(
    "lm.muon-dist-only",
    Dimension.DP,
    claim="--optimizer muon stops a Megatron-LM job at start with --overlap-grad-reduce or "
    "--overlap-param-gather, which dist_muon has; both stop with --use-distributed-optimizer or "
    "FSDP.",
    remedy="pass --optimizer dist_muon, and omit --use-distributed-optimizer and FSDP",
    versions=(Range("core", since="0.17.1", until="0.18.2"),),
    source="Megatron-LM a2381d8007",
)
LAYER_WISE = rule(
    "lm.layer-wise-optimizer",
    Dimension.DP,
    claim="With an --optimizer other than adam and sgd, --use-distributed-optimizer means the "
    "layer-wise distributed optimizer: whole layers are divided among the ranks, and "
    "use_distributed_optimizer itself is turned off. dist_muon is muon with that optimizer.",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM 5b512b45d1, 0044db1f20",
)
LAYER_WISE_REFUSES = rule(
    "lm.layer-wise-refuses",
    Dimension.DP,
    claim="An --optimizer other than adam and sgd stops a Megatron-LM job at start with FSDP or "
    "with a --ckpt-format other than torch and torch_dist; as a layer-wise distributed optimizer "
    "also with --overlap-param-gather-with-optimizer-step.",
    remedy="omit FSDP and --overlap-param-gather-with-optimizer-step, and pass --ckpt-format "
    "torch_dist",
    versions=(Range("core", since="0.18.2"),),
    source="Megatron-LM 5b512b45d1, 0044db1f20",
)

_GATHER = "ddp.overlap_param_gather"
_STEP = "optimizer.overlap_param_gather_with_optimizer_step"
_DISTRIBUTED = "ddp.use_distributed_optimizer"
_MUON = (Edit("optimizer.optimizer", "muon"), *DISTRIBUTED)


def _flags_on(c: Context, run: Any) -> dict[str, bool]:
    """The flags of data parallelism that are in effect, by their names."""
    fsdp = fsdp_switch(c.ddp)
    return {
        "--overlap-grad-reduce": bool(c.ddp.overlap_grad_reduce),
        "--overlap-param-gather": bool(c.ddp.overlap_param_gather),
        "--use-distributed-optimizer": bool(c.ddp.use_distributed_optimizer),
        f"FSDP ({fsdp})": fsdp is not None,
    }


def gather_checks(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    """What the parser asks of the parameter gather, before it changes any flag."""
    ddp, optimizer = c.ddp, run.optimizer
    has_states = bool(ddp.use_distributed_optimizer)
    if ddp.overlap_param_gather:
        sharded = has_states or fsdp_switch(ddp) in ("use_megatron_fsdp", "use_custom_fsdp")
        if not sharded and optimizer.optimizer != "dist_muon":
            edits = _gather_mended(c, request)
            yield PARAM_GATHER.error(
                _GATHER, True, stops("ddp.use_distributed_optimizer is off"), None, edits
            )
        elif not ddp.overlap_grad_reduce:
            edits = overlapped_reduction(c)
            yield PARAM_GATHER.error(
                _GATHER,
                True,
                stops("ddp.overlap_grad_reduce is off"),
                either(edits, "omit --overlap-param-gather"),
                edits,
            )
        if request.use_legacy_models and LEGACY_MODELS.holds(c.stack):
            yield LEGACY_MODELS.error(_GATHER, True, stops("--use-legacy-models is passed"))
        if request.save and request.save_params_interval and SAVED_PARAMETERS.holds(c.stack):
            found = f"--save-params-interval {request.save_params_interval} is passed with --save"
            yield SAVED_PARAMETERS.error(_GATHER, True, stops(found))
    if getattr(optimizer, "overlap_param_gather_with_optimizer_step", False):
        lacking = {
            "the distributed optimizer": not has_states,
            "overlap_param_gather": not ddp.overlap_param_gather,
            "an interleaved pipeline": c.virtual_pipeline_size == 1,
        }
        missing = [what for what, is_missing in lacking.items() if is_missing]
        if missing:
            found = f"it lacks {' and '.join(missing)}"
            also = "pass what is missing and --ckpt-format torch"
            remedy = either(STEP_OFF, also)
            yield OPTIMIZER_STEP.error(_STEP, True, stops(found), remedy, STEP_OFF)
        elif request.ckpt_format != "torch":
            yield OPTIMIZER_STEP.error(
                _STEP,
                True,
                stops(f"--ckpt-format is {request.ckpt_format}, a distributed checkpoint"),
                either(STEP_OFF, "pass --ckpt-format torch"),
                STEP_OFF,
            )


def _gather_mended(c: Context, request: MegatronLmRequest) -> tuple[Edit, ...]:
    """The gather with what it needs; off where this job cannot have the distributed optimizer."""
    name = c.of_optimizer("optimizer") or "adam"
    if request.use_torch_fsdp2 or (
        "muon" in name and (MUON_ALONE.holds(c.stack) or MUON_OF_017.holds(c.stack))
    ):
        return together(GATHER_OFF, STEP_OFF if c.of_optimizer(_STEP.partition(".")[2]) else ())
    reduce = () if c.ddp.overlap_grad_reduce else overlapped_reduction(c)
    return together(distributed(c), reduce)


def _without(c: Context, refused: set[str]) -> tuple[Edit, ...]:
    """The job without flags of data parallelism that its optimizer refuses."""
    fsdp = without_fsdp(c) if any(flag.startswith("FSDP") for flag in refused) else ()
    # These optimizers have no distributed optimizer, which a gather without FSDP needs otherwise.
    edits = tuple(edit for edit in fsdp if edit not in DISTRIBUTED)
    if "--overlap-grad-reduce" in refused:
        edits = together(edits, (Edit("ddp.overlap_grad_reduce", False),))
        # A size of buckets is refused where nothing is reduced in them.
        if c.of_ddp("bucket_size") is not None:
            edits = together(edits, (Edit("ddp.bucket_size", REMOVED),))
        if getattr(c.train, "ddp_num_buckets", None) is not None:
            edits = together(edits, (Edit("megatron_lm.ddp_num_buckets", REMOVED),))
    if "--overlap-param-gather" in refused:
        edits = together(edits, GATHER_OFF)
    if "--use-distributed-optimizer" in refused or fsdp:
        edits = together(edits, not_distributed(c, gathers=True))
    step = c.of_optimizer(_STEP.partition(".")[2])
    return together(edits, STEP_OFF if step else ())


def _of_dist_muon(c: Context, refused: set[str], overlaps: set[str]) -> tuple[Edit, ...]:
    """The same job with the Muon that overlaps, where that is what is refused."""
    others = _without(c, refused - overlaps)
    name = (Edit("optimizer.optimizer", "dist_muon"),) if refused & overlaps else ()
    return together(name, others)


def _layer_wise_mended(c: Context, run: Any, request: MegatronLmRequest) -> tuple[Edit, ...]:
    edits = without_fsdp(c)
    if request.ckpt_format not in ("torch", "torch_dist"):
        edits = together(edits, (Edit("megatron_lm.ckpt_format", "torch_dist"),))
    step = getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False)
    return together(edits, STEP_OFF if step else ())


def optimizer_checks(c: Context, run: Any, request: MegatronLmRequest) -> Iterator[Decision]:
    """What the parser does with the flags for this optimizer; it changes them, in place."""
    name = getattr(run.optimizer, "optimizer", "adam") or "adam"
    if "muon" in name:
        yield from _muon_before_018(c, run, name)
    if name not in ("adam", "sgd") and LAYER_WISE.holds(c.stack):
        yield from _layer_wise(c, run, request, name)
    if request.freeze_all_layers and FROZEN.holds(c.stack):
        yield from _frozen(c, run)


def _muon_before_018(c: Context, run: Any, name: str) -> Iterator[Decision]:
    on = {flag for flag, is_on in _flags_on(c, run).items() if is_on}
    overlaps = {"--overlap-grad-reduce", "--overlap-param-gather"}
    if MUON_ALONE.holds(c.stack):
        decided_by, refused = MUON_ALONE, on
    elif MUON_OF_017.holds(c.stack):
        decided_by, refused = MUON_OF_017, on if name == "muon" else on - overlaps
    else:
        return
    if refused:
        found = f"--optimizer {name} with {' and '.join(sorted(refused))}"
        edits = _without(c, refused)
        if decided_by is MUON_OF_017 and name == "muon":
            edits = _of_dist_muon(c, refused, overlaps)
        yield decided_by.error("optimizer.optimizer", name, stops(found), None, edits)


def _layer_wise(c: Context, run: Any, request: MegatronLmRequest, name: str) -> Iterator[Decision]:
    layer_wise = name == "dist_muon" or bool(c.ddp.use_distributed_optimizer)
    if layer_wise:
        old = name == "dist_muon"
        yield LAYER_WISE.decide(
            _DISTRIBUTED,
            requested=None,
            effective=False,
            reason=f"--optimizer {name} with its states divided among the ranks by whole layers: "
            "the layer-wise distributed optimizer",
            outcome=Outcome.NOTE,
            remedy=f"{in_words(_MUON)}: dist_muon is deprecated" if old else None,
            edits=_MUON if old else (),
        )
        for section in (run.ddp, run.optimizer):
            section.use_distributed_optimizer = False
            section.use_layer_wise_distributed_optimizer = True
    refused = [f"FSDP ({switch})" for switch in [fsdp_switch(c.ddp)] if switch is not None]
    if request.ckpt_format not in ("torch", "torch_dist"):
        refused.append(f"--ckpt-format {request.ckpt_format}")
    if layer_wise and getattr(run.optimizer, "overlap_param_gather_with_optimizer_step", False):
        refused.append("--overlap-param-gather-with-optimizer-step")
    if refused:
        found = f"--optimizer {name} with {' and '.join(refused)}"
        yield LAYER_WISE_REFUSES.error(
            "optimizer.optimizer", name, stops(found), None, _layer_wise_mended(c, run, request)
        )


def replaced_knobs(decisions: Iterable[Decision]) -> frozenset[str]:
    """The knobs that stand for another mechanism where the layer-wise optimizer does their work."""
    if any(d.rule == LAYER_WISE.id for d in decisions):
        return frozenset({_DISTRIBUTED, "optimizer.use_distributed_optimizer"})
    return frozenset()


def _frozen(c: Context, run: Any) -> Iterator[Decision]:
    edits = together(GATHER_OFF, not_distributed(c))
    # Megatron-FSDP turns the distributed optimizer on by itself.
    edits = () if fsdp_switch(run.ddp) is not None else edits
    for knob in ("use_distributed_optimizer", "overlap_param_gather"):
        if getattr(run.ddp, knob, False):
            setattr(run.ddp, knob, False)
            setattr(run.optimizer, knob, False)
            yield FROZEN.decide(
                f"ddp.{knob}",
                requested=True,
                effective=False,
                reason="--freeze-all-layers is passed: Megatron-LM turns it off",
                outcome=Outcome.REFUSED,
                remedy=either(edits, "omit --freeze-all-layers"),
                edits=edits,
            )
