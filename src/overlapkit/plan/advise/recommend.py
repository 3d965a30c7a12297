"""The recommendation for one layout: what to overlap, how, and what that saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from megatron.bridge.training.tp_overlap_presets import presets_like
from overlapkit.config.run import Run, Settings
from overlapkit.explain.report import EFFECTIVE_KNOBS, explain
from overlapkit.output.numbers import ms_of_s, plain
from overlapkit.plan.advise.dimensions import DimensionAdvice, dimensions, overlapped
from overlapkit.plan.advise.draft import EP_OVERLAP, requests, states_no_sequence_parallel
from overlapkit.plan.advise.proposal import Proposal, propose
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.costs import Costs
from overlapkit.plan.estimate.overlap import CP, DP_GRADIENTS, EP, PP, TP
from overlapkit.plan.search.candidates import candidates, layout_in, sizes_of, with_layout

WORTH_SHARE = 0.02
"""Share of the step that the experts' overlap must save. It needs memory for a second microbatch
and smaller kernels, and on Hopper gives up the one hardware queue that keeps the launch order."""

NOTABLE_SHARE = 0.01
"""Share of the step from which a saving is worth mentioning."""


@dataclass(frozen=True)
class Gain:
    """What one dimension's overlap saves, by estimate, all others being as recommended.

    Attributes:
        seconds: of a step; below 0 where it costs more than it hides.
        share: of the step without this overlap, at most 1.
    """

    seconds: float
    share: float


@dataclass(frozen=True)
class Recommendation:
    """What is recommended for one layout, and what it is expected to bring.

    Attributes:
        proposal: the configuration, as the rules grant it.
        dimensions: each one, on or off, with the reason.
        overlapped: names of the dimensions that are on.
        gains: by dimension that is on; empty without an estimate.
        costs: the estimate; None where the model or machine cannot be estimated.
        not_estimated: why there is no estimate; None where there is one.
        reduction: in which precision gradients should be summed, and why.
        changes: for each knob that changes, its value in the configuration as given, and as
            recommended.
    """

    proposal: Proposal
    dimensions: tuple[DimensionAdvice, ...]
    overlapped: frozenset[str]
    gains: dict[str, Gain]
    costs: Costs | None
    not_estimated: str | None
    reduction: str
    changes: dict[str, tuple[object, object]]


CostsOf = Callable[[Proposal], "Costs | str"]
"""The costs of a proposal's run, or why there are none."""


def _no_costs(_: Proposal) -> Costs | str:
    return "no estimate was requested"


def recommend_settings(
    settings: Settings, cluster: Cluster, costs_of: CostsOf = _no_costs
) -> tuple[Proposal, str | None]:
    """The overlap to request; the experts' only where its gain exceeds its cost.

    Args:
        settings: of the run.
        cluster: the GPUs.
        costs_of: estimates a proposal's run; without it, only the reach of the exchange decides.

    Returns:
        The proposal, and why the experts' overlap is not requested although it could be.

    Raises:
        InputError: as `propose`.
    """
    proposal = propose(settings, cluster.world_size, cluster.assumptions)
    requested = (proposal.settings.values.get("comm_overlap") or {}).get(EP_OVERLAP)
    if not requested or EP_OVERLAP in proposal.pinned or requests(settings, EP_OVERLAP):
        return proposal, None
    costs = costs_of(proposal)
    reason = experts_not_worth(proposal.run, None if isinstance(costs, str) else costs, cluster)
    if reason is None:
        return proposal, None
    without = propose(settings, cluster.world_size, cluster.assumptions, expert_overlap=False)
    return without, reason


def experts_not_worth(run: Run, costs: Costs | None, cluster: Cluster) -> str | None:
    """Why hiding the experts' exchange would not pay; None where it does.

    An estimate knows neither the memory of the second microbatch nor how much the smaller kernels
    lose. Where Megatron-Bridge's recipes keep the overlap off, it is therefore not requested,
    whatever the estimate says (scripts/performance/configs of main, November 2026: within an NVLink
    domain, with HybridEP, and without a pipeline).

    Args:
        run: effective, with the overlap.
        costs: of this run; None without an estimate.
        cluster: the GPUs.
    """
    share = None if costs is None else _saved_by_experts(costs)
    kept_off = _kept_off(run, cluster)
    if kept_off is not None:
        saves = f" (by estimate it would save {share:.1%} of the step)" if share else ""
        return f"{kept_off}; Megatron-Bridge's recipes keep the overlap off there{saves}"
    if share is None or share >= WORTH_SHARE:
        return None
    if share == 0:
        return f"{_where(run, cluster)}; hiding it would keep the host longer than it saves"
    return (
        f"{_where(run, cluster)}; hiding it would save ~{share:.1%} of the step, but needs memory "
        f"for another microbatch and smaller kernels: worthwhile from {WORTH_SHARE:.0%}"
    )


def _saved_by_experts(costs: Costs) -> float:
    """Share of the step that hiding the experts' exchange saves, by estimate."""
    on = overlapped(costs.run)
    before, after = costs.seconds(on - {EP}), costs.seconds(on)
    return max((before - after) / before, 0.0)


def _kept_off(run: Run, cluster: Cluster) -> str | None:
    """What keeps experts from hiding the exchange of such a run; None where they do."""
    m, where = run.model, _where(run, cluster)
    if experts_reach(run) <= cluster.nvlink_domain:
        return f"{where}, so it is short"
    if m.moe_token_dispatcher_type == "flex" and m.moe_flex_dispatcher_backend == "hybridep":
        return f"{where}, and HybridEP overlaps the network with NVLink itself"
    if (m.pipeline_model_parallel_size or 1) == 1:
        return f"{where}, and without a pipeline a second microbatch doubles the activations"
    return None


def _where(run: Run, cluster: Cluster) -> str:
    reach, domain = experts_reach(run), cluster.nvlink_domain
    side = "within" if reach <= domain else "beyond"
    return f"the exchange spans {reach} GPUs, {side} the NVLink domain of {domain}"


def experts_reach(run: Run) -> int:
    """Consecutive GPUs that the experts' exchange spans."""
    m = run.model
    tp = m.tensor_model_parallel_size or 1
    return (m.expert_model_parallel_size or 1) * (m.expert_tensor_parallel_size or tp)


@dataclass(frozen=True)
class _Alternatives:
    """What other settings would save, compared with the recommended run.

    Attributes:
        settings: of the run.
        cluster: the GPUs.
        costs: of the recommended run.
        costs_of: estimates a proposal's run.
    """

    settings: Settings
    cluster: Cluster
    costs: Costs
    costs_of: CostsOf

    @cached_property
    def seconds(self) -> float:
        """The step of the recommended run."""
        return self.costs.seconds(overlapped(self.costs.run))

    def proposal(self, settings: Settings) -> Proposal:
        """The overlap to request with other settings."""
        return propose(settings, self.cluster.world_size, self.cluster.assumptions)

    def sequence_parallel(self) -> str | None:
        """What model.sequence_parallel=true would save, where the configuration says false."""
        if not states_no_sequence_parallel(self.settings):
            return None
        values = self.settings.values
        model = {**(values.get("model") or {}), "sequence_parallel": True}
        other = replace(self.settings, values={**values, "model": model})
        proposal = self.proposal(other)
        if not proposal.effective("model.tp_comm_overlap"):
            return None
        costs = self.costs_of(proposal)
        if isinstance(costs, str):
            return None
        saved = self.seconds - costs.seconds(overlapped(proposal.run))
        if saved <= 0:
            return None
        return (
            f"set model.sequence_parallel=true: with the TP overlap that this allows it would save "
            f"~{1e3 * saved:,.0f} ms ({saved / self.seconds:.1%} of the step), and memory"
        )

    def interleaving(self) -> str | None:
        """What the best virtual pipeline size would save, where a pipeline is not interleaved."""
        run = self.costs.run
        layout = layout_in(run)
        if layout.pp == 1 or layout.vp > 1:
            return None
        sizes = sizes_of(run.model, run.train)
        best: tuple[float, int] | None = None
        for choice in candidates(sizes, self.cluster.world_size, layout.tp, layout, ("vp",)):
            if choice.vp == 1:
                continue
            proposal = self.proposal(with_layout(self.settings, choice))
            costs = self.costs_of(proposal)
            if isinstance(costs, str) or not costs.memory().fits:
                continue
            saved = self.seconds - costs.seconds(overlapped(proposal.run))
            if saved > 0 and (best is None or saved > best[0]):
                best = saved, choice.vp
        if best is None:
            return None
        saved, vp = best
        return (
            f"set model.virtual_pipeline_model_parallel_size={vp}: overlap and a shorter bubble "
            f"would save ~{1e3 * saved:,.0f} ms ({saved / self.seconds:.1%} of the step)"
        )


def recommend(
    settings: Settings, original: Settings | None, cluster: Cluster, costs_of: CostsOf
) -> Recommendation:
    """What is recommended for a run.

    Args:
        settings: of the run, defaults filled in.
        original: as they were read, to show what changes; None where there is nothing to compare.
        cluster: the GPUs.
        costs_of: estimates a proposal's run.

    Raises:
        InputError: as `propose`.
    """
    proposal, not_worth = recommend_settings(settings, cluster, costs_of)
    advice = tuple(dimensions(proposal, experts_not_worth=not_worth))
    on = overlapped(proposal.run)
    found = costs_of(proposal)
    costs, not_estimated = (None, found) if isinstance(found, str) else (found, None)
    gains = {} if costs is None else _gains(costs, on)
    if costs is not None:
        other = _Alternatives(settings, cluster, costs, costs_of)
        remedies = {TP: other.sequence_parallel(), PP: other.interleaving()}
        if EP in gains and gains[EP].seconds < 0:
            remedies[EP] = (
                f"set comm_overlap.{EP_OVERLAP}=false: it keeps the host longer than it saves"
            )
        advice = tuple(replace(d, remedy=remedies.get(d.name) or d.remedy) for d in advice)
    return Recommendation(
        proposal=proposal,
        dimensions=advice,
        overlapped=on,
        gains=gains,
        costs=costs,
        not_estimated=not_estimated,
        reduction=_reduction(proposal, costs, on),
        changes=_changes(original, proposal, cluster),
    )


def _gains(costs: Costs, on: frozenset[str]) -> dict[str, Gain]:
    step = costs.seconds(on)
    gains = {}
    # The ring of context parallelism has no switch, so there is no run without its overlap.
    for name in on - {CP}:
        before = costs.seconds(on - {name})
        gains[name] = Gain(before - step, (before - step) / before)
    return gains


def _reduction(p: Proposal, costs: Costs | None, on: frozenset[str]) -> str:
    """In which precision gradients are summed, and whether another would be better."""
    if DP_GRADIENTS not in on:
        fp32 = bool(p.effective("ddp.grad_reduce_in_fp32"))
        return f"grad_reduce_in_fp32 is {'on' if fp32 else 'off'}; no overlap depends on it here"
    if not p.effective("ddp.grad_reduce_in_fp32"):
        return (
            "16-bit, as the configuration requests: half the bytes of fp32; sums over many ranks "
            "lose precision: watch the loss, or set mixed_precision.grad_reduce_in_fp32=true"
        )
    if costs is None:
        return "fp32, the safe choice; 16-bit (grad_reduce_in_fp32=false) halves the bytes"
    step = costs.seconds(on)
    saved = step - costs.reducing_in_16_bits().seconds(on)
    if saved / step < NOTABLE_SHARE:
        return (
            f"fp32: 16-bit sums would save ~{ms_of_s(saved)} ms ({saved / step:.1%} of the step), "
            "too little for the precision that they lose"
        )
    return (
        f"fp32, the safe choice; mixed_precision.grad_reduce_in_fp32=false would save "
        f"~{ms_of_s(saved)} ms ({saved / step:.1%} of the step), with sums in 16 bits: watch the "
        "loss"
    )


def _changes(
    original: Settings | None, p: Proposal, cluster: Cluster
) -> dict[str, tuple[object, object]]:
    """Knobs whose effective value changes, except those that do not matter here."""
    if original is None:
        return {}
    before = explain(original, cluster.world_size, cluster.assumptions).effective
    after = p.report.effective
    irrelevant = set(_MIRRORED)
    for knobs, switch in _DEPENDENT.items():
        if not before[switch] and not after[switch]:
            irrelevant |= set(knobs)
    if (p.run.model.pipeline_model_parallel_size or 1) == 1:
        irrelevant |= {"model.overlap_p2p_comm", "model.batch_p2p_comm"}
    changed = {}
    for knob in EFFECTIVE_KNOBS:
        if knob in irrelevant:
            continue
        old, new = plain(before[knob]), plain(after[knob])
        if knob == "model.tp_comm_overlap_cfg":
            old, new = _preset_names(old, new, p)
        if old != new:
            changed[knob] = old, new
    return changed


def _preset_names(old: object, new: object, p: Proposal) -> tuple[object, object]:
    """Userbuffers settings as the name of their preset; a preset can have several names.

    Megatron-Bridge writes a preset with more of its defaults than ours contains, so that only the
    names show whether two are the same.
    """
    recommended = p.preset.name if p.preset is not None and new is not None else None

    def named(config: object) -> object:
        names = [key.name for key in presets_like(config)] if isinstance(config, dict) else []
        return recommended if recommended in names else (names[0] if names else config)

    return named(old), named(new)


_MIRRORED = ("optimizer.overlap_param_gather", "ddp.delay_wgrad_compute")
"""Copies of other knobs of the list."""
_DEPENDENT = {
    ("model.wgrad_deferral_limit",): "model.defer_embedding_wgrad_compute",
    ("model.tp_comm_overlap_cfg", "model.tp_comm_bootstrap_backend"): "model.tp_comm_overlap",
    ("ddp.align_param_gather",): "ddp.overlap_param_gather",
}
"""Knobs that have no effect while the switch that they depend on is off."""
