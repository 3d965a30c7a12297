"""An experiment: what is run for some scenarios, on how many ranks, in which environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from megatron.bridge.recipes.launch_env import launch_environment
from megatron.bridge.recipes.launch_queues import PERF_ENV_PLUGIN
from megatron.bridge.recipes.launch_settings import LaunchSettings
from overlapkit.errors import InputError
from overlapkit.input_file import read_input
from overlapkit.lab.document import LabLink, lab_link
from overlapkit.lab.launch.start import PRELOAD, LabError, Launch, run_ranks
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.lab.measurements import (
    Observations,
    ObservedBlock,
    failed_block,
    read_blocks,
    with_profiles,
)
from overlapkit.lab.progress import turns
from overlapkit.lab.protocol import JOB_FILE, MOST_BYTES, Block, Job
from overlapkit.lab.scenario import JudgedScenario, Scenario, Setting
from overlapkit.lab.scenarios import find

EXPERIMENT_FILE = "plan.json"
"""In the folder of a run that is collected later: its `Experiment`."""

START_S = 240.0
"""Longest time for ranks to import torch and Megatron-Core, on a slow disk."""

TURN_S = 120.0
"""Longest time for one turn of a variant."""

ALONE_SILENCE_S = 120.0
"""Longest silence of ranks whose failure is a result: they may wait for each other for ever."""

FAILURE_FILE = "failure.json"
"""In a group's folder: its `Failure`, where its ranks failed and that is a result."""


class Layout(msgspec.Struct, frozen=True):
    """Sizes of a model's parallel dimensions."""

    tp: int = 1
    cp: int = 1
    pp: int = 1


class Failure(msgspec.Struct, frozen=True):
    """How ranks failed.

    Attributes:
        error: in one line.
        lines: the last lines of the rank's log.
    """

    error: str
    lines: list[str]


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks that the same processes run, one after the other.

    Attributes:
        name: of its folder.
        ranks: number of processes.
        layout: determines its environment.
        environment: variables to set before the processes start.
        job: what they do.
    """

    name: str
    ranks: int
    layout: Layout
    environment: dict[str, str]
    job: Job

    @property
    def turns(self) -> int:
        """Number of progress events that its rank 0 sends."""
        return sum(map(turns, self.job.blocks))

    @property
    def alone(self) -> bool:
        """Whether it is a result where its ranks fail."""
        return any(block.alone for block in self.job.blocks)

    @property
    def limit_s(self) -> float:
        """Longest time that it may take, in seconds."""
        return START_S + TURN_S * self.turns


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """A complete run of the lab.

    Attributes:
        scenarios: names, in the user's order.
        setting: what the variants were built from.
        groups: what processes do, the fewest ranks first.
    """

    scenarios: tuple[str, ...]
    setting: Setting
    groups: tuple[Group, ...]

    @property
    def ranks(self) -> int:
        """Processes of the largest group."""
        return max((group.ranks for group in self.groups), default=0)

    @property
    def turns(self) -> int:
        """Number of progress events of all groups."""
        return sum(group.turns for group in self.groups)


def make_experiment(
    scenarios: Sequence[Scenario],
    setting: Setting,
    *,
    rate_mbit: float | str | None,
    corpus: str | None,
) -> Experiment:
    """Group the scenarios' blocks by ranks and, on GPUs, by the environment of their layout.

    Args:
        scenarios: in the user's order.
        setting: what the variants are built from.
        rate_mbit: rate of the link in Mbit/s; "auto": chosen for each block; None: not limited.
        corpus: a text file to train on; None: the synthetic one.
    """
    grouped: dict[tuple[int, str, tuple[tuple[str, str], ...]], tuple[Layout, list[Block]]] = {}
    for scenario in scenarios:
        for block in scenario.blocks(setting):
            layout = _layout(block)
            environment = _environment(layout, block.ranks, setting)
            key = (block.ranks, block.alone, tuple(environment.items()))
            _, blocks = grouped.setdefault(key, (layout, []))
            if block not in blocks:
                blocks.append(block)
    groups: list[Group] = []
    # The sort is stable: groups of equally many ranks stay in the user's order.
    in_order = sorted(grouped.items(), key=lambda it: it[0][0])
    for (ranks, _, variables), (layout, blocks) in in_order:
        before = sum(group.ranks == ranks for group in groups)
        groups.append(
            Group(
                name=f"ranks{ranks}" + (f"-{before + 1}" if before else ""),
                ranks=ranks,
                layout=layout,
                environment=dict(variables),
                job=Job(
                    blocks=tuple(blocks),
                    device=setting.device,
                    corpus=None if corpus is None else str(Path(corpus).resolve()),
                    rate_mbit=rate_mbit if setting.device == "cpu" else None,
                ),
            )
        )
    return Experiment(
        scenarios=tuple(scenario.name for scenario in scenarios),
        setting=setting,
        groups=tuple(groups),
    )


def _layout(block: Block) -> Layout:
    """The layout of a block's variants; blocks with several layouts are not timed."""
    model: Mapping[str, Any] = block.variants[0].settings.get("model", {})
    return Layout(
        tp=model.get("tensor_model_parallel_size") or 1,
        cp=model.get("context_parallel_size") or 1,
        pp=model.get("pipeline_model_parallel_size") or 1,
    )


def _environment(layout: Layout, ranks: int, setting: Setting) -> dict[str, str]:
    """Variables that overlap needs on GPUs; on CPUs none of them is read."""
    if setting.device != "cuda":
        # Nothing is compiled on CPUs, and importing the compiler takes a quarter of a rank's start.
        return {"TORCHDYNAMO_DISABLE": "1"}
    settings = LaunchSettings(
        gpu_sm100_or_newer=blackwell(setting),
        tp_size=layout.tp,
        cp_size=layout.cp,
        pp_size=layout.pp,
        num_gpus=ranks,
    )
    # As PerfEnvPlugin of the other executors, so that they measure the same.
    variables = launch_environment(settings, PERF_ENV_PLUGIN)
    needed = {variable.name: variable.value for variable in variables}
    return {**needed, **_SAME_BITS}


_SAME_BITS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
"""Make cuBLAS and Transformer Engine compute the same bits in every run."""


def blackwell(setting: Setting) -> bool:
    """Whether the GPU has compute capability 10.0 or above."""
    major = (setting.compute_capability or "0").partition(".")[0]
    return int(major) >= 10


def write_jobs(experiment: Experiment, folder: Path) -> None:
    """Write a folder for each group with its job, and the experiment next to them."""
    for group in experiment.groups:
        place = folder / group.name
        place.mkdir()
        (place / JOB_FILE).write_bytes(msgspec.json.encode(group.job))
    (folder / EXPERIMENT_FILE).write_bytes(msgspec.json.encode(experiment))


def run_here(
    experiment: Experiment, folder: Path, *, scratch: Path, on_event: Callable[[Any], None]
) -> LinkUsed:
    """Run every group on this machine; the link between the ranks of the largest.

    Args:
        experiment: what `write_jobs` wrote.
        folder: where `write_jobs` wrote it.
        scratch: removed by the caller; see `Launch`.
        on_event: called with each event of a rank.

    Raises:
        LabError: a rank failed, hangs or was killed.
    """
    used = None
    for group in experiment.groups:
        try:
            used = _run_group(experiment, group, folder, scratch, on_event)
        except LabError as error:
            if not group.alone:
                raise
            failure = Failure(error.summary, error.lines)
            (folder / group.name / FAILURE_FILE).write_bytes(msgspec.json.encode(failure))
    return used or LinkUsed(kind="unshaped", isolation="tree")


def _run_group(
    experiment: Experiment,
    group: Group,
    folder: Path,
    scratch: Path,
    on_event: Callable[[Any], None],
) -> LinkUsed:
    """Run one group; see `run_here`."""
    return run_ranks(
        Launch(
            ranks=group.ranks,
            module="overlapkit.lab.rank.__main__",
            args=(str(folder / group.name),),
            folder=folder / group.name,
            environment=group.environment,
            link="shaped" if experiment.setting.shaped and group.ranks > 1 else "none",
            timeout_s=group.limit_s,
            silence_s=ALONE_SILENCE_S if group.alone else START_S,
            scratch=scratch,
            preload=PRELOAD if experiment.setting.device == "cpu" else "",
        ),
        on_event,
    )


def failures(experiment: Experiment, folder: Path) -> dict[str, Failure]:
    """The groups whose ranks failed, by their names, where that is a result."""
    found = {}
    for group in experiment.groups:
        path = folder / group.name / FAILURE_FILE
        if group.alone and path.is_file():
            content = read_input(str(path), "failure of ranks", most=MOST_BYTES)
            found[group.name] = msgspec.json.decode(content, type=Failure)
    return found


def read_experiment(folder: Path) -> Experiment:
    """The experiment in a folder.

    Raises:
        InputError: there is none, or it was written by another version.
    """
    path = folder / EXPERIMENT_FILE
    try:
        content = read_input(str(path), "plan of a run", most=MOST_BYTES)
    except InputError as error:
        raise InputError(
            f"{folder}: contains no run of the lab ({error}); name the folder that was given with "
            "--out"
        ) from None
    try:
        return msgspec.json.decode(content, type=Experiment)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: {error}; it is damaged, or another version of overlapkit wrote it: collect "
            "with that one"
        ) from None


def experiment_link(experiment: Experiment, used: LinkUsed | None) -> LabLink:
    """The link between the ranks of an experiment.

    Args:
        experiment: what was run.
        used: the link that the launcher made; None where nemo_run started the ranks.
    """
    if not experiment.groups:
        return msgspec.structs.replace(
            lab_link(LinkUsed(kind="unshaped", isolation="tree")),
            reason="no rank was started",
            meaning="nothing was measured",
            isolation="no process was started",
        )
    started = "nemo_run's executor started the ranks"
    isolation = used.isolated if used is not None else f"{started} and ends them"
    if experiment.setting.device == "cuda":
        own = experiment.setting.gpus >= experiment.ranks
        return LabLink(
            kind="nccl" if own else "shared-gpu",
            shaped=True,
            reason=f"{experiment.setting.gpus} GPUs for {experiment.ranks} ranks",
            meaning=(
                "each rank has a GPU, and NCCL communicates over the links between the GPUs"
                if own
                else "ranks share a GPU, and NCCL does not support that: data is copied to host "
                "memory and gloo communicates from there"
            ),
            isolation=isolation,
        )
    if used is not None:
        return lab_link(used)
    unshaped = lab_link(LinkUsed(kind="unshaped", isolation="tree"))
    return msgspec.structs.replace(
        unshaped, reason=f"{started}, without a slow link", isolation=isolation
    )


def judge_experiment(experiment: Experiment, folder: Path, *, shaped: bool) -> list[JudgedScenario]:
    """Read what every group left in its folder, analyse the profiles and judge the scenarios.

    Args:
        experiment: what was run.
        folder: where its groups left their files.
        shaped: whether communication took long enough to be worth hiding.

    Raises:
        InputError: a result or a profile cannot be read, or this version's scenarios train other
            variants.
    """
    observed: dict[str, ObservedBlock] = {}
    folders: dict[str, Path] = {}
    failing = failures(experiment, folder)
    for group in experiment.groups:
        place = folder / group.name
        if group.name in failing:
            for number, block in enumerate(group.job.blocks):
                error = failing[group.name].error
                observed[block.name] = failed_block(number, block, error)
                folders[block.name] = place
            continue
        for found in read_blocks(place, group.job, group.ranks):
            name = group.job.blocks[found.number].name
            observed[name] = with_profiles(place, found)
            folders[name] = place
    versions = next((block.versions for block in observed.values()), {})
    # Where the ranks ran, this is known for certain.
    setting = replace(
        experiment.setting,
        shaped=shaped,
        te=experiment.setting.te
        or (experiment.setting.device == "cuda" and "transformer-engine" in versions),
    )
    trained = {block.name: block for group in experiment.groups for block in group.job.blocks}
    judged = []
    for name in experiment.scenarios:
        scenario = find(name)
        blocks = scenario.blocks(experiment.setting)
        if any(trained.get(block.name) != block for block in blocks):
            raise InputError(
                f"{folder}: scenario {name} trains other variants in this version of overlapkit; "
                "collect with the version that ran it"
            )
        observations = Observations({block.name: observed[block.name] for block in blocks}, folders)
        verdicts = scenario.judge(observations, setting)
        judged.append(JudgedScenario(scenario, blocks, observations, verdicts))
    return judged
