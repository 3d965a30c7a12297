"""`overlapkit lab`: starts the ranks, reads what they leave, judges it and shows it."""

from __future__ import annotations

import importlib.util
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.lab.cluster import executor
from overlapkit.lab.cluster.slurm_options import slurm_options
from overlapkit.lab.document import lab_json
from overlapkit.lab.experiment import Plan, judged, link_told, plan, run_here, write_jobs
from overlapkit.lab.output_folder import empty_folder, keep
from overlapkit.lab.progress import progress
from overlapkit.lab.scenario import Scenario, Setting
from overlapkit.lab.scenarios import DEFAULT, OWN, SCENARIOS, find
from overlapkit.lab.user_config import UserConfig, read
from overlapkit.output.console import console, write_json, write_text

SUBMITTED = "overlapkit/lab-job/v1"


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `overlapkit lab --help`."""

    scenarios: tuple[str, ...] = ()
    config: str | None = None
    ranks: int | None = None
    link: str | None = None
    device: str = "cpu"
    steps: int | None = None
    corpus: str | None = None
    out: str | None = None
    as_json: bool = False
    executor: str | None = None
    slurm: tuple[str, ...] = ()
    dry_run: bool = False
    collect: str | None = None


def run(request: Request) -> int:
    """The command; its exit status.

    Raises:
        InputError: bad input, a missing dependency, or ranks that failed.
    """
    if request.collect is not None:
        return _collect(request)
    _need_megatron()
    chosen = _chosen(request)
    if request.executor == "slurm":
        return _slurm(request, chosen)
    _only_with_slurm(request)
    setting = _setting(request, chosen, *(_gpus() if request.device == "cuda" else (0, None)))
    rate = _rate(request.link) if setting.shaped else None
    experiment = plan(chosen, setting, rate, request.corpus)
    _enough_gpus(chosen, experiment)
    if request.executor == "local":
        return _local(request, experiment)
    start = time.monotonic()
    out = None if request.out is None else empty_folder(request.out)
    with tempfile.TemporaryDirectory(prefix="overlapkit-lab-") as scratch:
        folder = Path(scratch)
        write_jobs(experiment, folder)
        with progress(sum(group.turns for group in experiment.groups)) as advance:
            used = run_here(experiment, folder, folder, advance)
        return _shown(request, experiment, folder, link_told(experiment, used), out, start)


def _local(request: Request, experiment: Plan) -> int:
    """Through nemo_run's local executor, on this machine."""
    folder = _folder_of(request)
    start = time.monotonic()
    executor.prepare(experiment, folder)
    with progress(sum(group.turns for group in experiment.groups)) as advance:
        executor.run_locally(experiment, folder, advance)
    link = link_told(experiment, None)
    return _shown(request, experiment, folder, link, folder / executor.RESULTS, start)


def _slurm(request: Request, chosen: Sequence[Scenario]) -> int:
    """As a Slurm job: written and, unless --dry-run, submitted."""
    folder = _folder_of(request).resolve()
    options = slurm_options(request.slurm, folder)
    if request.ranks is None and all(scenario.flexible for scenario in chosen):
        request = replace(request, ranks=options.ranks)
    gpus = options.ranks if request.device == "cuda" else 0
    setting = _setting(request, chosen, gpus, options.compute_capability)
    # Between nodes there is a network, which nothing here makes slower.
    setting = replace(setting, shaped=False)
    experiment = plan(chosen, setting, None, request.corpus)
    if experiment.ranks > options.ranks:
        raise InputError(
            f"--slurm: {options.nodes} nodes x {options.per_node} ranks are {options.ranks}; "
            f"{', '.join(experiment.scenarios)} takes {experiment.ranks}: give more of either"
        )
    if not request.dry_run:
        executor.need_sbatch()
    executor.prepare(experiment, folder)
    outcome = executor.submit(experiment, folder, options, dry_run=request.dry_run)
    assert outcome.script is not None
    document = {
        "schema": SUBMITTED,
        "folder": str(folder),
        "script": outcome.script,
        "job": outcome.job,
        "ranks": options.ranks,
        "collect": f"overlapkit lab --collect {shlex.quote(str(folder))}",
    }
    if request.as_json:
        write_json(document)
    elif request.dry_run:
        write_text(Path(outcome.script).read_text(encoding="utf-8"))
    else:
        console().print(f"Slurm job {outcome.job}: {outcome.script}")
        console().print(f"when it has ended: {document['collect']}")
    return 0


def _collect(request: Request) -> int:
    """Show what a job has left in its folder."""
    assert request.collect is not None
    given = [name for name, value in vars(request).items() if value != getattr(Request(), name)]
    other = set(given) - {"collect", "out", "as_json"}
    if other:
        raise InputError(
            f"--collect {request.collect}: shows a run that is done; leave "
            f"{', '.join(sorted(other))} away"
        )
    out = None if request.out is None else empty_folder(request.out)
    folder = Path(request.collect)
    experiment = executor.collected(folder)
    link = link_told(experiment, None)
    return _shown(request, experiment, folder, link, out, time.monotonic())


def _shown(
    request: Request,
    experiment: Plan,
    folder: Path,
    link: dict[str, Any],
    out: Path | None,
    start: float,
) -> int:
    """Judge what the ranks left, keep it, show it; the exit status."""
    told = judged(experiment, folder, shaped=link["shaped"])
    document = lab_json(told, link, experiment.setting.device, time.monotonic() - start)
    if out is not None:
        keep(document, told, out)
    if request.as_json:
        write_json(document)
    else:
        from overlapkit.lab.tables import show_lab

        show_lab(document, console())
    return 0 if document["confirmed"] else EXIT_FINDING


def _folder_of(request: Request) -> Path:
    """The folder that a run through nemo_run fills."""
    if not _installed("nemo_run"):
        raise InputError(
            f"--executor {request.executor}: nemo_run is not installed; install "
            "overlapkit[nemo-run]"
        )
    if request.out is None:
        raise InputError(
            f"--executor {request.executor}: name the run's folder with --out, on Slurm one that "
            "every node sees"
        )
    if request.link not in (None, "none"):
        raise InputError(
            f"--link {request.link}: an executor's ranks use the machines' own links; leave it away"
        )
    return empty_folder(request.out)


def _only_with_slurm(request: Request) -> None:
    for option, given in (("--slurm", request.slurm), ("--dry-run", request.dry_run)):
        if given:
            raise InputError(f"{option}: needs --executor slurm")


def _enough_gpus(chosen: Sequence[Scenario], experiment: Plan) -> None:
    """Ranks may share a GPU for data parallelism alone.

    Raises:
        InputError: a scenario needs more GPUs than there are.
    """
    setting = experiment.setting
    if setting.device != "cuda":
        return
    for scenario in chosen:
        needed = max(block.ranks for block in scenario.blocks(setting))
        if needed > setting.gpus and not scenario.flexible:
            raise InputError(
                f"scenario {scenario.name}: takes {needed} GPUs, here are {setting.gpus}; data "
                "parallelism alone (dp, bucket, precision) can share one"
            )


def _need_megatron() -> None:
    missing = [name for name in ("torch", "megatron.core") if not _installed(name)]
    if missing:
        raise InputError(
            f"overlapkit lab trains with {' and '.join(missing)}, which is not installed; "
            "install overlapkit[megatron]"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _chosen(request: Request) -> list[Scenario]:
    names = request.scenarios or ((OWN,) if request.config else DEFAULT)
    if "all" in names:
        names = tuple(name for name in SCENARIOS if name != OWN or request.config)
    if OWN in names and request.config is None:
        raise InputError(f"scenario {OWN}: give the configuration with --config FILE")
    return [find(name) for name in dict.fromkeys(names)]


def _setting(
    request: Request, chosen: Sequence[Scenario], gpus: int, capability: str | None
) -> Setting:
    if request.steps is not None and request.steps < 1:
        raise InputError(f"--steps {request.steps}: give at least 1")
    if request.ranks is not None:
        if request.ranks < 2:
            raise InputError(f"--ranks {request.ranks}: overlap needs at least 2")
        fixed = [scenario.name for scenario in chosen if not scenario.flexible]
        if fixed:
            raise InputError(
                f"--ranks {request.ranks}: {', '.join(fixed)} has a layout of its own; "
                "name dp or bucket with --ranks"
            )
    if request.corpus is not None and not Path(request.corpus).is_file():
        raise InputError(f"--corpus {request.corpus}: no such file")
    user = None if request.config is None else read(request.config)
    if request.device == "cuda" and not gpus:
        raise InputError("--device cuda: no CUDA GPU is visible; leave --device away for the CPU")
    return Setting(
        device=request.device,
        ranks=request.ranks,
        steps=request.steps,
        base=_kept(user),
        user=user,
        shaped=request.device == "cpu" and request.link != "none" and request.executor is None,
        te=_installed("transformer_engine"),
        compute_capability=capability,
        gpus=gpus,
    )


def _kept(user: UserConfig | None) -> dict[str, dict[str, Any]]:
    """What scenarios with a layout and an overlap of their own take of a configuration."""
    if user is None:
        return {}
    own = ("parallel", "overlap", "p2p")
    model = {k: v for k, v in user.settings["model"].items() if not any(w in k for w in own)}
    kept = {"model": model}
    if "mixed_precision" in user.settings:
        kept["mixed_precision"] = user.settings["mixed_precision"]
    return kept


def _gpus() -> tuple[int, str | None]:
    """How many GPUs there are, and the first one's compute capability."""
    import torch

    if not torch.cuda.is_available():
        return 0, None
    major, minor = torch.cuda.get_device_capability(0)
    return torch.cuda.device_count(), f"{major}.{minor}"


def _rate(link: str | None) -> float | str | None:
    """Mbit/s of --link; "auto" where it is not given."""
    if link is None:
        return "auto"
    if link == "none":
        return None
    text = link.lower().removesuffix("bit")
    scale = {"k": 1e-3, "m": 1.0, "g": 1e3}.get(text[-1:])
    try:
        rate = float(text[:-1]) * scale if scale else float(text)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 1e6:
        raise InputError(
            f"--link {link}: give a rate from 0.1mbit to 1000gbit, such as 400mbit, or none"
        )
    return rate
