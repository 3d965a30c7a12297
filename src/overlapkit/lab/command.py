"""`overlapkit lab`: starts the ranks, judges what they measured, and shows it."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.input_file import is_file
from overlapkit.lab.cluster import executor
from overlapkit.lab.cluster.slurm_options import slurm_options
from overlapkit.lab.document import (
    RESULTS_FILE,
    LabDocument,
    LabJobDocument,
    LabLink,
    lab_document,
    read_results,
)
from overlapkit.lab.experiment import (
    Experiment,
    experiment_link,
    failures,
    judge_experiment,
    make_experiment,
    run_here,
    write_jobs,
)
from overlapkit.lab.output_folder import keep
from overlapkit.lab.progress import progress
from overlapkit.lab.request import (
    LabRequest,
    chosen_scenarios,
    installed,
    link_rate,
    make_setting,
    need_megatron,
    visible_gpus,
)
from overlapkit.lab.scenario import Scenario
from overlapkit.output.console import console, write_json, write_text
from overlapkit.output.files import OutputFolder
from overlapkit.output.printable import all_printable


def run(request: LabRequest) -> int:
    """The command; its exit status.

    Raises:
        InputError: bad input, a missing dependency, or ranks that failed.
    """
    if request.collect is not None:
        return _collect(request, Path(request.collect))
    need_megatron()
    scenarios = chosen_scenarios(request)
    if request.executor == "slurm":
        return _submit(request, scenarios)
    for option, value in (("--slurm", request.slurm), ("--dry-run", request.dry_run)):
        if value:
            raise InputError(f"{option}: needs --executor slurm")
    gpus, capability = visible_gpus() if request.device == "cuda" else (0, None)
    setting = make_setting(request, scenarios, gpus=gpus, compute_capability=capability)
    experiment = make_experiment(
        scenarios,
        setting,
        rate_mbit=link_rate(request.link) if setting.shaped else None,
        corpus=request.corpus,
    )
    if not experiment.groups:
        return _refused(request, experiment)
    _enough_gpus(scenarios, experiment)
    if request.executor == "local":
        return _run_through_nemo(request, experiment)
    return _run_here(request, experiment)


def _refused(request: LabRequest, experiment: Experiment) -> int:
    """Show why the user's run is not trained; no rank is started."""
    start, out = time.monotonic(), _output_folder(request)
    with tempfile.TemporaryDirectory(prefix="overlapkit-lab-") as scratch:
        link = experiment_link(experiment, None)
        return _judge_and_show(request, experiment, Path(scratch), link=link, out=out, start=start)


def _run_here(request: LabRequest, experiment: Experiment) -> int:
    """Start the ranks on this machine."""
    start = time.monotonic()
    out = _output_folder(request)
    with tempfile.TemporaryDirectory(prefix="overlapkit-lab-") as scratch:
        folder = Path(scratch)
        write_jobs(experiment, folder)
        with progress(experiment.turns) as advance:
            used = run_here(experiment, folder, scratch=folder, on_event=advance)
        link = experiment_link(experiment, used)
        return _judge_and_show(request, experiment, folder, link=link, out=out, start=start)


def _run_through_nemo(request: LabRequest, experiment: Experiment) -> int:
    """Start the ranks on this machine, through nemo_run's local executor."""
    folder = _executor_folder(request)
    start = time.monotonic()
    executor.prepare(experiment, folder)
    with progress(experiment.turns) as advance:
        executor.run_locally(experiment, folder, advance)
    link = experiment_link(experiment, None)
    out = OutputFolder("--out", str(folder / executor.RESULTS))
    return _judge_and_show(request, experiment, folder, link=link, out=out, start=start)


def _submit(request: LabRequest, scenarios: Sequence[Scenario]) -> int:
    """Write a Slurm job and, unless --dry-run, submit it."""
    folder = _executor_folder(request).resolve()
    options = slurm_options(request.slurm, folder)
    if request.ranks is None and all(scenario.flexible for scenario in scenarios):
        request = replace(request, ranks=options.ranks)
    setting = make_setting(
        request,
        scenarios,
        gpus=options.ranks if request.device == "cuda" else 0,
        compute_capability=options.compute_capability,
    )
    # Nodes are connected by a network, which the lab does not slow down.
    setting = replace(setting, shaped=False)
    experiment = make_experiment(scenarios, setting, rate_mbit=None, corpus=request.corpus)
    if not experiment.groups:
        return _refused(request, experiment)
    if experiment.ranks > options.ranks:
        raise InputError(
            f"--slurm: {options.nodes} nodes x {options.per_node} ranks are {options.ranks}; "
            f"{', '.join(experiment.scenarios)} takes {experiment.ranks}: increase one of them"
        )
    if not request.dry_run:
        executor.need_sbatch()
    executor.prepare(experiment, folder)
    job = executor.submit(experiment, folder, options, dry_run=request.dry_run)
    assert job.script is not None
    document = LabJobDocument(
        folder=str(folder),
        script=job.script,
        job=job.job,
        ranks=options.ranks,
        collect=f"overlapkit lab --collect {shlex.quote(str(folder))}",
    )
    if request.as_json:
        write_json(document)
    elif request.dry_run:
        write_text(Path(job.script).read_text(encoding="utf-8"))
    else:
        console().print(f"Slurm job {document.job}: {document.script}")
        console().print(f"when it has ended: {document.collect}")
    return 0


def _collect(request: LabRequest, folder: Path) -> int:
    """Show what an executor's run, or a run with --out, left in its folder."""
    other = sorted(set(request.given()) - {"collect", "out", "as_json"})
    if other:
        raise InputError(
            f"--collect {folder}: shows a finished run; omit the other options: {', '.join(other)}"
        )
    if is_file(str(folder / RESULTS_FILE)):
        if request.out is not None:
            raise InputError(f"--collect {folder}: contains {RESULTS_FILE} already; omit --out")
        document = read_results(folder)
        return _show(request, document if request.as_json else all_printable(document))
    out = _output_folder(request)
    experiment = executor.collected(folder)
    link, start = experiment_link(experiment, None), time.monotonic()
    return _judge_and_show(request, experiment, folder, link=link, out=out, start=start)


def _judge_and_show(
    request: LabRequest,
    experiment: Experiment,
    folder: Path,
    *,
    link: LabLink,
    out: OutputFolder | None,
    start: float,
) -> int:
    """Judge what the ranks left in `folder`, keep it in `out`, show it; the exit status.

    Args:
        request: the user's.
        experiment: what was run.
        folder: where the ranks left their files.
        link: the link between the ranks.
        out: folder for results, profiles and page; None: they are not kept.
        start: when the run began, by the monotonic clock.
    """
    if request.debug:
        for name, failure in failures(experiment, folder).items():
            print(f"{name}:", *failure.lines, sep="\n", file=sys.stderr)
    judged = judge_experiment(experiment, folder, shaped=link.shaped)
    document = lab_document(
        judged,
        link=link,
        device=experiment.setting.device,
        seconds=time.monotonic() - start,
        setting=experiment.setting,
    )
    if out is not None:
        keep(document, judged, out)
    return _show(request, document)


def _show(request: LabRequest, document: LabDocument) -> int:
    if request.as_json:
        write_json(document)
    else:
        from overlapkit.lab.tables import show_lab

        show_lab(document, console())
    return 0 if document.confirmed else EXIT_FINDING


def _output_folder(request: LabRequest) -> OutputFolder | None:
    if request.out is None:
        return None
    folder = OutputFolder("--out", request.out)
    folder.check()
    return folder


def _executor_folder(request: LabRequest) -> Path:
    """The folder for a run through nemo_run.

    Raises:
        InputError: nemo_run is not installed, or an option is missing or does not apply.
    """
    if not installed("nemo_run"):
        raise InputError(
            f"--executor {request.executor}: nemo_run is not installed; install "
            "overlapkit[nemo-run]"
        )
    if request.out is None:
        raise InputError(
            f"--executor {request.executor}: give the run's folder with --out; on Slurm every "
            "node must see it"
        )
    if request.link not in (None, "none"):
        raise InputError(
            f"--link {request.link}: an executor's ranks use the machines' own links; omit it"
        )
    OutputFolder("--out", request.out).check()
    return Path(request.out)


def _enough_gpus(scenarios: Sequence[Scenario], experiment: Experiment) -> None:
    """Check that each rank has a GPU, unless the scenario lets ranks share one.

    Raises:
        InputError: a scenario needs more GPUs than there are.
    """
    setting = experiment.setting
    if setting.device != "cuda":
        return
    for scenario in scenarios:
        needed = max(block.ranks for block in scenario.blocks(setting))
        if needed > setting.gpus and not scenario.flexible:
            raise InputError(
                f"scenario {scenario.name}: needs {needed} GPUs, this machine has {setting.gpus}; "
                "dp, bucket and precision can share one"
            )
