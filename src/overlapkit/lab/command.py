"""`overlapkit lab`: starts the ranks, reads what they leave, judges it and shows it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from overlapkit.errors import EXIT_FINDING, InputError
from overlapkit.lab.document import Told, lab_json
from overlapkit.lab.job import JOB_FILE, Block, Job
from overlapkit.lab.launch import Launch, ends_on_signals, run_ranks
from overlapkit.lab.measured import Seen, SeenBlock, read_blocks, with_profiles
from overlapkit.lab.scenario import Scenario, Setting
from overlapkit.lab.scenarios import DEFAULT, OWN, SCENARIOS, find
from overlapkit.lab.user_config import UserConfig, read
from overlapkit.output import console, write_json

START_S = 240.0
"""Longest that ranks may take to import torch and Megatron-Core on a slow disk."""

TURN_S = 120.0
"""Longest that one turn of a variant may take."""


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


def run(request: Request) -> int:
    """The command; its exit status.

    Raises:
        InputError: bad input, a missing dependency, or ranks that failed.
    """
    _need_megatron()
    start = time.monotonic()
    chosen = _chosen(request)
    setting = _setting(request, chosen)
    rate = _rate(request.link)
    out = _empty_folder(request.out)
    with ends_on_signals(), tempfile.TemporaryDirectory(prefix="overlapkit-lab-") as scratch:
        told, link = _experiment(chosen, setting, rate, request, Path(scratch))
        document = lab_json(told, link, request.device, time.monotonic() - start)
        if out is not None:
            _keep(document, told, out)
    if request.as_json:
        write_json(document)
    else:
        from overlapkit.lab.render import show_lab

        show_lab(document, console())
    return 0 if document["confirmed"] else EXIT_FINDING


def _experiment(
    chosen: Sequence[Scenario],
    setting: Setting,
    rate: float | str | None,
    request: Request,
    scratch: Path,
) -> tuple[list[Told], dict[str, Any]]:
    """Train every variant, the fewest ranks first, and judge the scenarios."""
    wanted = {scenario.name: scenario.blocks(setting) for scenario in chosen}
    by_ranks: dict[int, list[Block]] = defaultdict(list)
    for blocks in wanted.values():
        for block in blocks:
            if block not in by_ranks[block.ranks]:
                by_ranks[block.ranks].append(block)
    seen: dict[str, SeenBlock] = {}
    folders: dict[str, Path] = {}
    link: dict[str, Any] = {}
    turns = sum(_turns(block) for blocks in by_ranks.values() for block in blocks)
    with _progress(turns) as advance:
        for ranks, together in sorted(by_ranks.items()):
            folder = scratch / f"ranks{ranks}"
            folder.mkdir()
            job = Job(
                blocks=tuple(together),
                device=request.device,
                corpus=None if request.corpus is None else str(Path(request.corpus).resolve()),
                rate_mbit=rate,
            )
            (folder / JOB_FILE).write_bytes(msgspec.json.encode(job))
            used = run_ranks(
                Launch(
                    ranks=ranks,
                    module="overlapkit.lab.rank",
                    args=(str(folder),),
                    folder=folder,
                    environment={},
                    link="shaped" if setting.shaped and ranks > 1 else "none",
                    timeout_s=START_S + TURN_S * sum(map(_turns, together)),
                    silence_s=START_S,
                    scratch=scratch,
                ),
                advance,
            )
            if ranks > 1 or not link:
                link = used.document()
            for found in read_blocks(folder, job, ranks):
                name = together[found.number].name
                seen[name] = with_profiles(folder, found)
                folders[name] = folder
    setting = replace(setting, shaped=bool(link.get("shaped")))
    return [
        Told(
            scenario,
            wanted[scenario.name],
            one := Seen({b.name: seen[b.name] for b in wanted[scenario.name]}, folders),
            scenario.judge(one, setting),
        )
        for scenario in chosen
    ], link


def _turns(block: Block) -> int:
    """Events of progress that a block's rank 0 sends."""
    turns = len(block.variants) * (1 + block.rounds)
    return turns + (len(block.variants) if block.rounds and block.profiled else 0)


@contextmanager
def _progress(turns: int) -> Iterator[Callable[[Any], None]]:
    """Shows on a terminal's standard error what rank 0 is at; takes the ranks' events."""
    if not sys.stderr.isatty():
        yield lambda event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=turns)

        def on_event(event: Any) -> None:
            if event.rank != 0:
                return
            what = event.data.get("event", "")
            if "variant" in event.data:
                bar.update(
                    task, description=f"{event.data['block']}: {event.data['variant']}, {what}"
                )
                bar.advance(task)
            else:
                bar.update(task, description=what)

        yield on_event


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


def _setting(request: Request, chosen: Sequence[Scenario]) -> Setting:
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
    gpus, capability = _gpus() if request.device == "cuda" else (0, None)
    if request.device == "cuda" and not gpus:
        raise InputError("--device cuda: no CUDA GPU is visible; leave --device away for the CPU")
    return Setting(
        device=request.device,
        ranks=request.ranks,
        steps=request.steps,
        base=_kept(user),
        user=user,
        shaped=request.device == "cpu" and request.link != "none",
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


def _empty_folder(out: str | None) -> Path | None:
    """--out as a folder that can be written, before an hour is spent.

    Raises:
        InputError: it is a file, holds something already, or cannot be made.
    """
    if out is None:
        return None
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"--out {out}: exists and is not an empty folder; name a new one")
    if not path.parent.is_dir():
        raise InputError(f"--out {out}: {path.parent} is no folder; make it first")
    return path


def _keep(document: dict[str, Any], told: Sequence[Told], out: Path) -> None:
    """Fill the user's folder: whole, or not at all."""
    from overlapkit.lab.page import lab_page

    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for one in told:
            for block in one.seen.blocks.values():
                for variant in block.variants.values():
                    for rank in variant.ranks:
                        if rank.trace is not None:
                            folder = one.seen.folders[_name_of(one, block)]
                            shutil.copy(folder / rank.trace, aside / rank.trace)
        text = msgspec.json.format(msgspec.json.encode(document), indent=2)
        (aside / "results.json").write_bytes(text + b"\n")
        (aside / "report.html").write_text(lab_page(document, told), encoding="utf-8")
        aside.chmod(0o755)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _name_of(told: Told, block: SeenBlock) -> str:
    return next(name for name, one in told.seen.blocks.items() if one is block)
