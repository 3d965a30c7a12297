"""The command `overlapkit plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

from overlapkit.config.emit.forms import FORMS, Form, emit
from overlapkit.config.reading import Reading
from overlapkit.config.yaml_file import Document
from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.hardware import data_sheet, gpus
from overlapkit.output.console import write_json, write_text
from overlapkit.output.files import outputs
from overlapkit.plan.cluster import cluster_of
from overlapkit.plan.document import plan_document
from overlapkit.plan.inputs import read_inputs
from overlapkit.plan.network import Network
from overlapkit.plan.plan import Plan, make_plan
from overlapkit.plan.search.candidates import parse_swept


def run(
    arguments: Sequence[str],
    *,
    model: str | None,
    gpu: str | None,
    te: str | None,
    reading: Reading,
    world_size: int | None,
    nodes: int | None,
    network: float | None,
    network_per: str | None,
    network_kind: str | None,
    rates: str | None,
    from_megatron_lm: bool,
    form: str | None,
    swept: str | None,
    show_work: bool,
    as_json: bool,
    html: str | None,
) -> int:
    """Plan one run; returns the exit status.

    Raises:
        InputError: see `overlapkit.errors`.
    """
    if form is not None and as_json:
        raise InputError("--emit and --json both write to standard output; give one of them")
    if form is not None and form not in FORMS:
        raise InputError(f"--emit {form}: unknown form; give {', '.join(FORMS)}")
    # A launch script may be named with a line: FILE:LINE.
    files = [*arguments, *(text.rpartition(":")[0] for text in arguments)]
    (page,) = outputs({"--html": html}, files)
    plan = read_and_plan(
        arguments,
        model=model,
        gpu=gpu,
        te=te,
        reading=reading,
        world_size=world_size,
        nodes=nodes,
        network=Network(network, network_per, network_kind),
        rates=rates,
        from_megatron_lm=from_megatron_lm,
        swept=swept,
    )
    if page is not None:
        from overlapkit.plan.page import plan_page

        page.write(plan_page(plan))
    if form is not None:
        _emit(plan, form)
    elif as_json:
        write_json(plan_document(plan, show_work=show_work))
    else:
        _show(plan, show_work=show_work, ranking=swept is not None)
    return EXIT_FINDING if plan.recommendation.proposal.report.findings else 0


def read_and_plan(
    arguments: Sequence[str],
    *,
    document: Document | None = None,
    model: str | None,
    gpu: str | None,
    te: str | None,
    reading: Reading,
    world_size: int | None,
    nodes: int | None,
    network: Network,
    rates: str | None = None,
    from_megatron_lm: bool,
    swept: str | None,
) -> Plan:
    """Read what is to be planned, and plan it.

    Args:
        arguments: see `read_inputs`, as for `document`, `model`, `world_size`, `nodes` and
            `from_megatron_lm`.
        document: settings instead of a file.
        gpu: the cluster's GPU.
        te: as in `overlapkit explain`.
        reading: for which versions and how strictly the configuration is read.
        network: between nodes, as stated.
        rates: a file of measured rates, or None.
        swept: dimensions to sweep, such as ``tp,pp``; None for none.

    Raises:
        InputError: the GPU is missing or unknown, or the run cannot be read or planned.
    """
    if gpu is None:
        raise InputError(f"--gpu NAME is missing: the cluster's GPU, one of {', '.join(gpus())}")
    network.check()
    data = data_sheet(gpu, network_gbps=network.gbps)
    dimensions = parse_swept(swept) if swept is not None else None
    inputs = read_inputs(
        arguments,
        document=document,
        model=model,
        from_megatron_lm=from_megatron_lm,
        world_size=world_size,
        nodes=nodes,
        domain=data.nvlink_domain,
        reading=reading,
    )
    cluster = cluster_of(
        gpu,
        inputs.world_size,
        gpus_per_node=inputs.gpus_per_node,
        network=network,
        te=te,
        installation=reading.installation,
        rates=rates,
    )
    return make_plan(inputs, cluster, dimensions)


def _emit(plan: Plan, form: str) -> None:
    """The settings in one form. What it cannot express is reported on standard error."""
    proposal = plan.recommendation.proposal
    chosen = cast(Form, form)
    emitted = emit(
        proposal.settings,
        chosen,
        world_size=plan.world_size,
        environment={v.name: v.value for v in proposal.report.launch_env},
    )
    write_text(emitted.text if emitted.text.endswith("\n") else emitted.text + "\n")
    for key, why in emitted.left_out:
        print(f"overlapkit: not in this form: {key}: {why}", file=sys.stderr)


def _show(plan: Plan, *, show_work: bool, ranking: bool) -> None:
    from overlapkit.plan.text import plan_lines, sweep_lines, work_lines

    ranked = plan.ranking if ranking else None
    if sys.stdout.isatty():
        from overlapkit.output.console import console
        from overlapkit.plan.tables import show_plan, show_ranking

        output = console()
        if ranked is not None:
            show_ranking(ranked, output)
        show_plan(plan, output)
    else:
        lines = [*(sweep_lines(ranked) if ranked is not None else ())]
        lines += [""] if lines else []
        write_text("".join(f"{line}\n" for line in [*lines, *plan_lines(plan)]))
    if show_work:
        write_text("".join(f"{line}\n" for line in work_lines(plan)))
