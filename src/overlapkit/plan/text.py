"""A plan as plain lines, for pipes and agents: no padding, no wrapped lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from overlapkit.config.emit.forms import FORMS
from overlapkit.config.emit.yaml_text import flow
from overlapkit.explain.schedule import bubble_text
from overlapkit.explain.text import basis, by_reason
from overlapkit.output.numbers import ms_of_s, sentence, setting_text
from overlapkit.plan.advise.dimensions import DimensionAdvice, bucket_count
from overlapkit.plan.advise.next_steps import next_steps
from overlapkit.plan.advise.recommend import Gain
from overlapkit.plan.figure import work
from overlapkit.plan.plan import Plan
from overlapkit.plan.search.ranking import Ranking
from overlapkit.plan.spoken import advice, recommended_flags, spoken

STEP = "Estimated parts of the step, ms without -> with overlap"
CHANGES = "Changes to the configuration"
CONTRADICTED = "If a profile (overlapkit trace) contradicts the plan"


def plan_lines(plan: Plan) -> Iterator[str]:
    """The complete plan, one line for each statement."""
    yield from header(plan)
    yield to_set(plan)
    yield ""
    for d in plan.recommendation.dimensions:
        yield dimension_line(advice(plan, d), plan.recommendation.gains.get(d.name))
    yield ""
    yield from how(plan)
    yield ""
    yield from environment(plan)
    if plan.estimates:
        yield ""
        yield STEP
        for name, before, after in part_rows(plan):
            yield f"{name}: {before}" if before == after else f"{name}: {before} -> {after}"
    changes = list(changed(plan))
    if changes:
        yield ""
        yield CHANGES
        yield from changes
    yield ""
    yield CONTRADICTED
    for step in next_steps(plan.recommendation.proposal):
        yield spoken(plan, f"{step.shows} -> {step.change}")
    notes = list(plan.notes)
    if notes:
        yield ""
        yield from (f"note: {spoken(plan, note)}" for note in notes)


def header(plan: Plan) -> Iterator[str]:
    """What is planned, and what is expected of it."""
    yield " ".join(title(plan))
    if plan.chosen_because:
        yield plan.chosen_because
    if plan.recommendation.costs is None:
        yield f"No estimate: {plan.recommendation.not_estimated}"
    else:
        yield expectation(plan)
        yield sureness(plan)
        yield from rests(plan)
        yield fit(plan)
    yield from bubble(plan)
    yield versions(plan)


def title(plan: Plan) -> tuple[str, str]:
    """What is planned, and on what."""
    parts = [str(plan.layout), f"DP {plan.data_parallel_size}"]
    count = plan.recommendation.proposal.report.microbatches
    if count is not None:
        parts.append("1 microbatch" if count == 1 else f"{count:,} microbatches")
    parts.append(plan.precision)
    return plan.name, f"on {plan.world_size} x {plan.gpu}: {', '.join(parts)}"


def bubble(plan: Plan) -> Iterator[str]:
    """How long the pipeline stands idle; nothing without one."""
    pipeline = plan.recommendation.proposal.report.pipeline
    if pipeline is not None:
        yield f"Bubble {bubble_text(pipeline)}"


def versions(plan: Plan) -> str:
    """The versions that it is planned for, and how they are known."""
    return basis(plan.recommendation.proposal.report)[1]


def expectation(plan: Plan) -> str:
    """The step without and with overlap, in one line."""
    with_, without = plan.estimates
    saved = 1 - with_.step_s / without.step_s
    return (
        f"Estimated step {ms_of_s(without.step_s)} -> {ms_of_s(with_.step_s)} ms with overlap "
        f"({-saved:.1%}), {without.tokens_per_s_per_gpu:,.0f} -> "
        f"{with_.tokens_per_s_per_gpu:,.0f} tokens/s/GPU"
    )


def sureness(plan: Plan) -> str:
    """How far the estimate can be off: what published layouts of its class measured."""
    summary = plan.estimates[0]
    if summary.range is None:
        return "Sureness unknown: nothing of this kind was ever compared with a measurement"
    found = summary.range
    least, most = found.tokens(summary.tokens_per_s_per_gpu)
    own = "" if found.own else " (too few of its own class)"
    return (
        f"Expect {least:,.0f} to {most:,.0f} tokens/s/GPU: {found.layouts} published layouts of "
        f"{found.compared}{own} measured {found.lower:.2f} to {found.upper:.2f} of their estimates"
    )


_KINDS = {
    "gemms": "matrix products",
    "attention": "attention",
    "memory": "memory-bound kernels",
    "collectives": "communication",
}


def rests(plan: Plan) -> Iterator[str]:
    """How much of the step rests on measured rates; nothing without any."""
    if plan.rates is None:
        return
    each = [f"{_KINDS[kind]} {share:.0%}" for kind, share in plan.resting.items()]
    parts = f" ({', '.join(each)})" if each else ""
    yield (
        f"{sum(plan.resting.values()):.0%} of the step with overlap rests on rates measured in "
        f"{plan.rates}{parts}"
    )


def equally_fast(ranking: Ranking) -> str:
    """Which of a sweep's layouts the estimate cannot tell from the fastest."""
    count = len(ranking.equal)
    misjudged = f"published pairs of layouts are misjudged by up to {ranking.misjudged:.0%}"
    if count == 1:
        return f"The first is the fastest by more than the estimate errs: {misjudged}"
    least = "At least the" if ranking.more_may_be_equal else "The"
    return f"{least} first {count} count as equally fast: {misjudged}"


def fit(plan: Plan) -> str:
    """How much memory the fullest GPU needs."""
    memory = plan.memory
    assert memory is not None
    line = (
        f"Memory {memory.needed / 1e9:.1f} GB of {memory.capacity / 1e9:.1f} GB on the fullest GPU "
        f"(estimate; {memory.margin:.0%} is kept free)"
    )
    return line if memory.fits else f"{line}: may not fit, see the notes"


def to_set(plan: Plan) -> str:
    """The settings that carry the recommendation, as overrides, in one line."""
    settings = plan.settings
    flags = recommended_flags(plan)
    if flags is not None:
        passed = " ".join(shlex.join(words) for words in flags.add)
        omitted = f", and omit {' '.join(flags.remove)}" if flags.remove else ""
        return f"Pass {passed}{omitted} (to paste: --emit megatron-lm)"
    overrides = [shlex.quote(f"{key}={flow(value)}") for key, value in settings.items()]
    return f"Set {' '.join(overrides)} (to paste: --emit {'|'.join(FORMS)})"


def dimension_line(d: DimensionAdvice, gain: Gain | None) -> str:
    """One dimension: on or off, what that saves, the reason, the remedy."""
    if d.ranks == 1:
        return f"-   {d.name}: {d.reason}"
    worth = f" {gained(gain)}" if gain is not None else ""
    line = f"{'on ' if d.on else 'off'} {d.name}{worth}: {d.reason.rstrip('.')}"
    return line + (f" -> {d.remedy}" if d.remedy else "")


def gained(gain: Gain) -> str:
    """What an overlap saves, or costs, by estimate."""
    verb = "saves" if gain.seconds >= 0 else "costs"
    return f"{verb} ~{ms_of_s(abs(gain.seconds))} ms ({abs(gain.share):.1%})"


def how(plan: Plan) -> Iterator[str]:
    """The settings that carry the overlap, each with its reason."""
    p = plan.recommendation.proposal
    if p.preset is not None and p.effective("model.tp_comm_overlap"):
        if p.preset.name is None:
            yield f"preset: none, Transformer Engine's own settings: {p.preset.reason}"
        else:
            differs = f" (tuned for {'; '.join(p.preset.differs)})" if p.preset.differs else ""
            yield f"preset: {p.preset.name}, {p.preset.match}{differs}: {p.preset.reason}"
    size = p.effective("ddp.bucket_size")
    if size is not None and p.effective("ddp.overlap_grad_reduce"):
        why = p.bucket.reason if p.bucket is not None else "given on the command line"
        counted = bucket_count(p)
        line = f"bucket_size: {size:,} parameters: {why}"
        yield line + (f"; {counted}" if counted else "")
    yield f"gradient reduction: {plan.recommendation.reduction}"


def environment(plan: Plan) -> Iterator[str]:
    """The variables to set, each group with its reason."""
    for names, variable in by_reason(plan.recommendation.proposal.report.launch_env):
        yield f"export {' '.join(names)}  # {sentence(plan.words.fact(variable.reason))}"


def changed(plan: Plan) -> Iterator[str]:
    """Knobs whose effective value the recommendation changes."""
    # One flag may set several.
    yield from dict.fromkeys(_changed(plan))


def _changed(plan: Plan) -> Iterator[str]:
    for knob, (before, after) in plan.recommendation.changes.items():
        old, new = (setting_text(plan.words.value(knob, each)) for each in (before, after))
        yield f"{plan.words.name(knob)}: {old} -> {new}"


def part_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Each part of the step, in ms without and with overlap. The last row is the step."""
    after, before = plan.estimates
    for name in before.parts | after.parts:
        pair = before.parts.get(name, 0.0), after.parts.get(name, 0.0)
        if max(pair) > 0:
            yield name, ms_of_s(pair[0]), ms_of_s(pair[1])
    yield "step", ms_of_s(before.step_s), ms_of_s(after.step_s)


def sweep_header(ranking: Ranking) -> str:
    """How many layouts a sweep compared."""
    fit = len(ranking.fitting)
    if not ranking.slower:
        return f"{fit} of {ranking.tried} layouts fit; the fastest by estimate:"
    others = ranking.tried - fit - ranking.slower
    rest = f"; {others} do not fit, or recompute what need not be" if others else ""
    return (
        f"{ranking.tried} layouts{rest}; {fit} that fit were estimated, and {ranking.slower} need "
        "no estimate, since they cannot be among the fastest, which are:"
    )


def sweep_lines(ranking: Ranking, most: int = 20) -> Iterator[str]:
    """The fastest layouts of a sweep, one per line."""
    yield sweep_header(ranking)
    for place, each in enumerate(ranking.fitting[:most], start=1):
        yield (
            f"{place} {each.layout}, DP {each.data_parallel_size}: "
            f"{each.summary.tokens_per_s_per_gpu:,.0f} tokens/s/GPU, step "
            f"{ms_of_s(each.summary.step_s)} ms, {each.memory.needed / 1e9:.1f} GB"
        )
    if len(ranking.fitting) > most:
        yield f"and {len(ranking.fitting) - most} slower ones"
    if len(ranking.fitting) > 1:
        yield equally_fast(ranking)


def work_lines(plan: Plan) -> Iterator[str]:
    """The derivation of every figure as a tree. What came before is not derived again."""
    for figure in plan.figures():
        yield ""
        for depth, one, before in work(figure):
            name = one.name or one.formula
            value = f"{one.value:,.6g} {one.unit}".rstrip()
            line = f"{'  ' * depth}{name} = {value}"
            if before and one.inputs:
                yield f"{line} (above)"
                continue
            if one.formula and one.name:
                line += f" = {one.formula}"
            yield line + (f"  [{one.source}]" if one.source else "")
