"""Layouts that fit, ranked by their estimated throughput.

A sweep need not estimate every layout. A bound, which costs little, says how fast a layout can be
at most; the layouts are estimated in its order until no other can be among the fastest.
"""

from __future__ import annotations

from dataclasses import replace

from overlapkit.config.run import Settings, build_run
from overlapkit.plan.cluster import Cluster
from overlapkit.plan.estimate.machine import Machine
from overlapkit.plan.inputs import PRECISIONS
from overlapkit.plan.search.candidates import ModelSizes, candidates, layout_in, sizes_of
from overlapkit.plan.search.measures import saving_tiers
from overlapkit.plan.search.ranking import Ranked, Ranking, rounded
from overlapkit.plan.search.trials import Trials

RANKED = 20
"""Layouts whose order is exact: as many as an answer lists."""


def sweep(
    settings: Settings,
    cluster: Cluster,
    swept: tuple[str, ...],
    *,
    ranked: int | None = RANKED,
    offering: bool = False,
) -> Ranking:
    """The fastest layouts that fit, estimated with the overlap that is recommended for each.

    Args:
        settings: of the run. Its own layout is used for the dimensions that are not swept.
        cluster: the GPUs.
        swept: dimensions of `candidates.SWEPT`.
        ranked: how many of the fastest to find; None estimates every layout.
        offering: whether to look for a layout that saves memory without need and is faster, where
            "saving" is swept.

    Raises:
        InputError: a size that a sweep needs is not set.
    """
    given = build_run(settings)
    sizes = sizes_of(given.model, given.train)
    search = Trials(settings, cluster)
    tried = _sweep_with((), search, sizes, swept, ranked)
    if "saving" not in swept or not (search.fitting or search.least_over):
        return search.ranking(tried, ranked)
    machine = cluster.machine
    hosted = machine.host is not None
    if not search.fitting:
        lower = _smaller_precision(machine) if ASSUMED_PRECISION in settings.asked else None
        for tier in saving_tiers(given, settings.asked, hosted, lower):
            tried += sum(_sweep_with(one, search, sizes, swept, ranked) for one in tier)
            if search.fitting:
                break
        return search.ranking(tried, ranked)
    ranking = search.ranking(tried, ranked)
    if not offering:
        return ranking
    savings = [one for tier in saving_tiers(given, settings.asked, hosted, None) for one in tier]
    return replace(ranking, offered=_offered(search, ranking.best, sizes, swept, savings))


def _sweep_with(
    saving: tuple[str, ...],
    search: Trials,
    sizes: ModelSizes,
    swept: tuple[str, ...],
    ranked: int | None,
) -> int:
    """Try the layouts that save memory in these ways beside all that were tried; how many they are.

    What was found before counts: a layout that must be slower than that is not estimated.
    """
    settings, cluster = search.settings, search.cluster
    fixed = replace(layout_in(build_run(settings)), saving=saving)
    layouts = list(candidates(sizes, cluster.world_size, cluster.nvlink_domain, fixed, swept))
    bounds = search.bounds(layouts)
    for number, (most, layout) in enumerate(bounds.fastest_first()):
        if ranked is not None and search.has_faster(ranked, most):
            search.slower += len(layouts) - number
            break
        search.try_one(layout, bounds)
    search.look_for_the_closest(bounds)
    return len(layouts)


def _offered(
    before: Trials,
    best: Ranked,
    sizes: ModelSizes,
    swept: tuple[str, ...],
    savings: list[tuple[str, ...]],
) -> Ranked | None:
    """The fastest layout that saves memory in one of these ways, if the estimate can tell it from
    the best that saves none. What cannot be faster by as much is not estimated.

    Args:
        before: what was tried without.
        best: the fastest of these.
        sizes: of the model.
        swept: dimensions of `candidates.SWEPT`.
        savings: ways of saving memory.
    """
    beyond = best.summary.tokens_per_s_per_gpu * best.summary.apart
    search = Trials(before.settings, before.cluster, known=before.known, beyond=beyond)
    for saving in savings:
        _sweep_with(saving, search, sizes, swept, 1)
    faster = [one for one in search.fitting if one.summary.tokens_per_s_per_gpu > beyond]
    return min(faster, key=lambda one: (-rounded(one), one.layout), default=None)


ASSUMED_PRECISION = "mixed_precision._recipe"
"""Among the keys of settings whose precision nobody stated."""


def _smaller_precision(machine: Machine) -> str | None:
    """The recipe of mixed_precision with the smallest numbers that a GPU commonly trains in."""
    if "mxfp8" in machine.rates:
        return PRECISIONS["mxfp8"]
    return PRECISIONS["fp8"] if "fp8" in machine.rates else None
