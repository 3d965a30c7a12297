"""What is run for some scenarios, on how many ranks and in which environment; and its judging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from megatron.bridge.recipes.launch_env import LaunchSettings, launch_environment
from overlapkit.errors import InputError
from overlapkit.lab.document import Told
from overlapkit.lab.launch.start import Launch, run_ranks
from overlapkit.lab.link.kind import LinkUsed
from overlapkit.lab.measurements import Seen, SeenBlock, read_blocks, with_profiles
from overlapkit.lab.progress import turns
from overlapkit.lab.protocol import JOB_FILE, Block, Job
from overlapkit.lab.scenario import Scenario, Setting
from overlapkit.lab.scenarios import find

PLAN_FILE = "plan.json"
"""In the folder of a run that is collected later: its `Plan`."""


START_S = 240.0
"""Longest that ranks may take to import torch and Megatron-Core on a slow disk."""

TURN_S = 120.0
"""Longest that one turn of a variant may take."""


class Layout(msgspec.Struct, frozen=True):
    """Sizes of a model's parallel dimensions."""

    tp: int = 1
    cp: int = 1
    pp: int = 1


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks that the same processes do, one after the other.

    Attributes:
        name: of its folder.
        ranks: how many processes.
        layout: that its environment follows from.
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
        """Events of progress that its rank 0 sends."""
        return sum(map(turns, self.job.blocks))

    @property
    def limit_s(self) -> float:
        """Longest that it may take, in seconds."""
        return START_S + TURN_S * self.turns


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run of the lab.

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
        return max(group.ranks for group in self.groups)


def plan(
    chosen: Sequence[Scenario],
    setting: Setting,
    rate_mbit: float | str | None,
    corpus: str | None,
) -> Plan:
    """Blocks put together by ranks and, on GPUs, by the environment that their layout needs."""
    together: dict[tuple[int, tuple[tuple[str, str], ...]], tuple[Layout, list[Block]]] = {}
    for scenario in chosen:
        for block in scenario.blocks(setting):
            layout = _layout(block)
            environment = _environment(layout, block.ranks, setting)
            key = (block.ranks, tuple(environment.items()))
            _, blocks = together.setdefault(key, (layout, []))
            if block not in blocks:
                blocks.append(block)
    groups: list[Group] = []
    # A stable sort: among as many ranks, the order in which they were asked for.
    for (ranks, variables), (layout, blocks) in sorted(together.items(), key=lambda it: it[0][0]):
        alike = sum(group.ranks == ranks for group in groups)
        groups.append(
            Group(
                name=f"ranks{ranks}" + (f"-{alike + 1}" if alike else ""),
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
    return Plan(
        scenarios=tuple(scenario.name for scenario in chosen),
        setting=setting,
        groups=tuple(groups),
    )


def _layout(block: Block) -> Layout:
    """The layout of a block's variants; where they have several, nothing in it is timed."""
    model: Mapping[str, Any] = block.variants[0].settings.get("model", {})
    return Layout(
        tp=model.get("tensor_model_parallel_size") or 1,
        cp=model.get("context_parallel_size") or 1,
        pp=model.get("pipeline_model_parallel_size") or 1,
    )


def _environment(layout: Layout, ranks: int, setting: Setting) -> dict[str, str]:
    """What overlap needs on GPUs; on CPUs nothing reads any of that."""
    if setting.device != "cuda":
        # Nothing is compiled there, and importing the compiler takes a quarter of a rank's start.
        return {"TORCHDYNAMO_DISABLE": "1"}
    settings = LaunchSettings(
        gpu_sm100_or_newer=blackwell(setting),
        tp_size=layout.tp,
        cp_size=layout.cp,
        pp_size=layout.pp,
        num_gpus=ranks,
    )
    needed = {variable.name: variable.value for variable in launch_environment(settings)}
    return {**needed, **_SAME_BITS}


_SAME_BITS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
"""Let cuBLAS and Transformer Engine compute the same bits in every run."""


def blackwell(setting: Setting) -> bool:
    """Whether the GPU is of compute capability 10.0 or above."""
    major = (setting.compute_capability or "0").partition(".")[0]
    return int(major) >= 10


def write_jobs(run: Plan, folder: Path) -> None:
    """A folder per group with its job, and the plan beside them."""
    for group in run.groups:
        place = folder / group.name
        place.mkdir()
        (place / JOB_FILE).write_bytes(msgspec.json.encode(group.job))
    (folder / PLAN_FILE).write_bytes(msgspec.json.encode(run))


def run_here(run: Plan, folder: Path, scratch: Path, on_event: Callable[[Any], None]) -> LinkUsed:
    """Run every group on this machine; how the ranks of the largest were connected.

    Args:
        run: what `write_jobs` has written.
        folder: where it has.
        scratch: removed by the caller; see `Launch`.
        on_event: takes what the ranks tell.

    Raises:
        LabError: a rank failed, hangs or was killed.
    """
    used = None
    for group in run.groups:
        used = run_ranks(
            Launch(
                ranks=group.ranks,
                module="overlapkit.lab.rank.__main__",
                args=(str(folder / group.name),),
                folder=folder / group.name,
                environment=group.environment,
                link="shaped" if run.setting.shaped and group.ranks > 1 else "none",
                timeout_s=group.limit_s,
                silence_s=START_S,
                scratch=scratch,
            ),
            on_event,
        )
    assert used is not None
    return used


def read_plan(folder: Path) -> Plan:
    """The plan in a folder.

    Raises:
        InputError: there is none, or it is of another version.
    """
    try:
        return msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Plan)
    except OSError as error:
        raise InputError(
            f"{folder}: holds no run of the lab ({PLAN_FILE}: {error.strerror}); name the folder "
            "that --executor was given with --out"
        ) from None
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{folder / PLAN_FILE}: {error}; it was written by another version of overlapkit: "
            "collect with that one"
        ) from None


def link_told(run: Plan, used: LinkUsed | None) -> dict[str, Any]:
    """What connected the ranks, as plain data.

    Args:
        run: the run.
        used: of ranks on this machine; None where nemo_run started them.
    """
    started = "the ranks were started by nemo_run's executor"
    kept = used.document()["isolation"] if used is not None else f"{started}, which ends them"
    if run.setting.device == "cuda":
        own = run.setting.gpus >= run.ranks
        return {
            "kind": "nccl" if own else "shared-gpu",
            "shaped": True,
            "reason": f"{run.setting.gpus} GPUs for {run.ranks} ranks",
            "meaning": (
                "each rank has a GPU of its own, and NCCL exchanges data over the links between "
                "them"
                if own
                else "ranks share a GPU, where NCCL refuses to connect them: data is copied to "
                "this machine's memory and exchanged by gloo"
            ),
            "isolation": kept,
        }
    if used is not None:
        return used.document()
    return {
        **LinkUsed(kind="unshaped", isolation="tree").document(),
        "reason": f"{started}, which makes no slow link",
        "isolation": kept,
    }


def judged(run: Plan, folder: Path, *, shaped: bool) -> list[Told]:
    """Read what every group left in its folder, analyse the profiles and judge the scenarios.

    Args:
        run: the run.
        folder: where its groups left their files.
        shaped: whether communication took a time that is worth hiding.

    Raises:
        InputError: a profile cannot be read, or the scenarios are no longer those of the plan.
    """
    seen: dict[str, SeenBlock] = {}
    folders: dict[str, Path] = {}
    for group in run.groups:
        place = folder / group.name
        for found in read_blocks(place, group.job, group.ranks):
            name = group.job.blocks[found.number].name
            seen[name] = with_profiles(place, found)
            folders[name] = place
    versions = next((block.versions for block in seen.values()), {})
    # Known for certain only where the ranks ran.
    setting = replace(
        run.setting,
        shaped=shaped,
        te=run.setting.te or (run.setting.device == "cuda" and "transformer-engine" in versions),
    )
    trained = {block.name: block for group in run.groups for block in group.job.blocks}
    told = []
    for name in run.scenarios:
        scenario = find(name)
        blocks = scenario.blocks(run.setting)
        if any(trained.get(block.name) != block for block in blocks):
            raise InputError(
                f"{folder}: scenario {name} trains other variants in this version of overlapkit; "
                "collect with the version that ran it"
            )
        one = Seen({block.name: seen[block.name] for block in blocks}, folders)
        told.append(Told(scenario, blocks, one, scenario.judge(one, setting)))
    return told
