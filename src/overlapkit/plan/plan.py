"""A plan: the run that is meant, its layout checked or chosen, and what is recommended for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from overlapkit.config.effective import make_effective
from overlapkit.config.run import Settings, build_run
from overlapkit.errors import InputError
from overlapkit.explain.report import Assumptions
from overlapkit.plan.advise.proposal import Proposal, draft
from overlapkit.plan.advise.recommend import Recommendation, recommend
from overlapkit.plan.candidates import SWEPT, LayoutChoice, layout_in, sizes_of, with_layout
from overlapkit.plan.checks import check_layout
from overlapkit.plan.estimate.costs import Costs, MemoryNeed, Summary, costs_of_run
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.figure import Figure
from overlapkit.plan.inputs import Inputs
from overlapkit.plan.sweep import Ranking, remedy_of, sweep

ESTIMATE_ERROR = 0.1
"""Share of the GPU's memory by which an estimate may be wrong: a layout that is given, and may be
running, is refused only where it needs more than that beyond the whole memory."""


_MIXTURE = (
    "the estimate was held against published throughput of dense models alone; a mixture of "
    "experts runs slower than it says where tokens crowd on some experts or many small kernels "
    "wait for the host"
)


@dataclass(frozen=True)
class Plan:
    """What to run, how, and what to expect.

    Attributes:
        source: the configuration or model, as it was named.
        world_size: GPUs of the job.
        gpu: their short name.
        layout: ranks by dimension, and the micro-batch.
        data_parallel_size: world size / (TP x PP x CP).
        precision: of the linear layers.
        chosen_because: how the layout was chosen; None where it was given.
        recommendation: the overlap.
        estimates: the step with the recommended overlap and without any; empty without estimate.
        memory: of the fullest GPU; None without estimate.
        ranking: the layouts that were compared; None where none were.
        notes: what was assumed or left open.
    """

    source: str
    world_size: int
    gpu: str
    layout: LayoutChoice
    data_parallel_size: int
    precision: str
    chosen_because: str | None
    recommendation: Recommendation
    estimates: tuple[Summary, ...]
    memory: MemoryNeed | None
    ranking: Ranking | None
    notes: tuple[str, ...]

    def figures(self) -> Iterator[Figure]:
        """Every figure that the plan states, with its derivation."""
        for summary in self.estimates:
            yield summary.figure
        if self.memory is not None:
            yield self.memory.figure


def make_plan(
    inputs: Inputs,
    assumptions: Assumptions,
    machine: Machine,
    domain: int,
    swept: tuple[str, ...] | None,
) -> Plan:
    """The plan of a run.

    Args:
        inputs: the run.
        assumptions: GPU and software, as rules ask.
        machine: rates and links, as the estimate asks.
        domain: GPUs that NVLink joins.
        swept: dimensions of the layout to compare; None compares none, unless no layout is given.

    Raises:
        InputError: the layout cannot run or does not fit, with what would.
    """
    settings, world = inputs.settings, inputs.world_size
    ranking, chosen, note = None, None, None
    if swept is None and not inputs.layout_given:
        # The micro-batch belongs to the layout, unless it is given.
        dense = not build_run(settings).model.num_moe_experts
        swept = tuple(
            name
            for name in SWEPT
            if not (name == "mbs" and inputs.micro_batch_given) and not (name == "ep" and dense)
        )
        ranking = _ranked(settings, world, domain, machine, assumptions, swept)
        settings = with_layout(settings, ranking.best.layout)
        chosen = (
            f"No layout was given: this is the fastest by estimate of {len(ranking.fitting)} that "
            f"fit, out of {ranking.tried}; --sweep {','.join(swept)} shows the others"
        )
    elif swept is not None:
        ranking = _ranked(settings, world, domain, machine, assumptions, swept)
        if not inputs.layout_given or not _stands(settings, world, domain, machine, assumptions):
            settings = with_layout(settings, ranking.best.layout)
            chosen = "The fastest layout of the sweep by estimate"
        else:
            best = ranking.best
            note = (
                f"planned is the layout as given; the fastest of the sweep, {best.layout}, would "
                f"train {best.summary.tokens_per_s_per_gpu:,.0f} tokens/s/GPU by estimate"
            )
    run = build_run(settings)
    check_layout(run, world, domain, source=settings.source)

    def costs_of(proposal: Proposal) -> Costs | str:
        if settings.values.get("peft") is not None:
            return "only adapters are trained, and the estimate counts every weight as trained"
        return costs_of_run(proposal.run, world, machine)

    recommendation = recommend(
        settings, None if chosen else inputs.original, world, assumptions, domain, costs_of
    )
    costs = recommendation.costs
    estimates: tuple[Summary, ...] = ()
    memory = None
    if costs is not None:
        memory = costs.memory()
        if not memory.fits:
            told = _does_not_fit(settings, memory, inputs, domain, machine, assumptions)
            if memory.needed > memory.capacity * (1 + ESTIMATE_ERROR):
                raise InputError(f"{settings.source}: {told}")
            note = f"it may not fit: {told}"
        estimates = costs.summary(recommendation.overlapped), costs.summary(frozenset())
    proposal = recommendation.proposal
    return Plan(
        source=settings.source,
        world_size=world,
        gpu=assumptions.gpu_name,
        layout=layout_in(proposal.run),
        data_parallel_size=proposal.report.data_parallel_size,
        precision=proposal.draft.precision,
        chosen_because=chosen,
        recommendation=recommendation,
        estimates=estimates,
        memory=memory,
        ranking=ranking,
        notes=(
            *inputs.assumed,
            *([note] if note else []),
            *([_MIXTURE] if estimates and run.model.num_moe_experts else []),
            *_left_out(proposal),
        ),
    )


def _left_out(proposal: Proposal) -> Iterator[str]:
    """What the configuration asks for and the rules do not grant, other than the experts' overlap,
    of which its own dimension tells; and what the rules find in what the command line fixes."""
    for d in proposal.refused:
        if d.dimension != "EP":
            yield f"{d.knob} is left out: {d.reason.rstrip('.')} -> {d.remedy}"
    for d in proposal.report.findings:
        told = f"{d.knob} ({d.outcome.value}): {d.reason.rstrip('.')}"
        yield told + (f" -> {d.remedy}" if d.remedy else "")


def domain_of(reference: int, inputs: Inputs) -> int:
    """GPUs that NVLink joins: a node's, where nodes are smaller than the reference system's.

    Args:
        reference: GPUs in one NVLink domain of the GPU's reference system.
        inputs: with the GPUs of a node, where --nodes tells.
    """
    if inputs.gpus_per_node is None or reference > 8:
        # A rack-wide domain spans its trays.
        return reference
    return min(reference, inputs.gpus_per_node)


def _ranked(
    settings: Settings,
    world: int,
    domain: int,
    machine: Machine,
    assumptions: Assumptions,
    swept: tuple[str, ...],
) -> Ranking:
    run = build_run(settings)
    ranking = sweep(
        settings,
        sizes_of(run.model, run.train),
        layout_in(run),
        world,
        domain,
        machine,
        assumptions,
        swept,
    )
    if not ranking.fitting:
        raise InputError(f"{settings.source}: {ranking.why_none()}")
    return ranking


def _stands(
    settings: Settings, world: int, domain: int, machine: Machine, assumptions: Assumptions
) -> bool:
    """Whether the layout as given can run and fits."""
    try:
        check_layout(build_run(settings), world, domain, source=settings.source)
    except InputError:
        return False
    asked = draft(settings, world, assumptions).settings()
    run, _ = make_effective(asked, world, assumptions.software)
    costs = costs_of_run(run, world, machine)
    return isinstance(costs, str) or costs.memory().fits


def _does_not_fit(
    settings: Settings,
    memory: MemoryNeed,
    inputs: Inputs,
    domain: int,
    machine: Machine,
    assumptions: Assumptions,
) -> str:
    over = (memory.needed - memory.usable) / 1e9
    told = (
        f"{layout_in(build_run(settings))} needs {memory.needed / 1e9:.1f} GB "
        f"on the fullest {assumptions.gpu_name}, {over:.1f} GB more than the "
        f"{memory.usable / 1e9:.1f} GB that can be used of its {memory.capacity / 1e9:.1f} GB"
    )
    try:
        best = _ranked(
            settings, inputs.world_size, domain, machine, assumptions, ("tp", "pp", "vp", "cp")
        ).best.layout
    except InputError:
        either = f"no other layout on {inputs.world_size} GPUs fits either"
        return f"{told}; {either}: {remedy_of(memory)}"
    return f"{told}; {overrides(best)} fits (see --sweep tp,pp,vp,cp,mbs)"


def overrides(layout: LayoutChoice) -> str:
    """A layout as the overrides that ask for it."""
    parts = [f"tp={layout.tp}", f"pp={layout.pp}", f"vp={layout.vp}", f"cp={layout.cp}"]
    if layout.ep > 1:
        parts.append(f"ep={layout.ep}")
    return " ".join([*parts, f"mbs={layout.mbs}"])
