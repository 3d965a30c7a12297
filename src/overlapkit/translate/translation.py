"""A run's settings in another form, as they are, compared with the run that they came from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from megatron.bridge.training.job_environment import APPLIED, ENV_VARS
from megatron.bridge.training.versions import MAIN
from overlapkit.config.emit.bridge_python import emit_bridge
from overlapkit.config.emit.forms import Form
from overlapkit.config.emit.megatron_lm_flags import emit_megatron_lm
from overlapkit.config.emit.scope import SECTIONS, LeftOut, Sections, every_section, for_bridge
from overlapkit.config.emit.yaml_text import emit_hydra, emit_yaml
from overlapkit.config.megatron_lm.flags import FLAGS
from overlapkit.config.run import Launch, Settings
from overlapkit.explain.report import Assumptions
from overlapkit.output.printable import printable
from overlapkit.translate.agreement import Disagreement, compare_reports
from overlapkit.translate.defaults import flags_against_defaults, with_megatron_lms
from overlapkit.translate.named_alike import flags_named_alike, keys_named_alike
from overlapkit.translate.read_back import read_back


@dataclass(frozen=True)
class Translation:
    """A run in another form.

    Attributes:
        form: the form.
        text: what to write into a file, with what it does not express as comments.
        left_out: what the form does not express.
        disagreements: what explain says differently of the two.
        world_size: GPUs of the job that both were explained for.
        before, after: the two as read.
    """

    form: Form
    text: str
    left_out: tuple[LeftOut, ...]
    disagreements: tuple[Disagreement, ...]
    world_size: int
    before: Settings
    after: Settings

    @property
    def differs(self) -> bool:
        """Whether the two runs differ, more than by the own rules of their frameworks."""
        return not all(each.is_frameworks for each in self.disagreements)


def translate(
    settings: Settings, form: Form, world_size: int | None, assumptions: Assumptions
) -> Translation:
    """Write a run's settings in another form, and explain both.

    Args:
        settings: the run.
        form: the form to write.
        world_size: GPUs of the job. None takes what a launch script states, and else the smallest
            job with data parallelism.
        assumptions: what the settings do not say; the same for both.

    Raises:
        InputError: the layout does not divide the world size, or a section cannot be built.
    """
    launch = settings.launch
    if launch is not None:
        # The two are compared in what is known of both; the notes say what is not.
        settings = replace(settings, launch=replace(launch, gaps=()))
    stated = launch.world_size if launch is not None else None
    size = world_size or stated or smallest_job(settings)
    if form == "megatron-lm":
        text, left_out = _as_script(settings, size, has_size=bool(world_size or stated))
    else:
        text, left_out = _for_bridge(settings, form)
    after = read_back(text, form, settings)
    differing = compare_reports(settings, after, size, assumptions)
    # What explain says of the two is said once, with its values.
    about = {each.key for each in differing}
    why = {each.key: each.why for each in left_out}
    differing = [replace(d, reason=why.get(d.key) or d.reason) for d in differing]
    left_out = [each for each in dict.fromkeys(left_out) if each.key not in about]
    head = _head(settings, form, left_out, differing)
    return Translation(
        form,
        "".join(f"# {line}\n" for line in head) + text,
        tuple(left_out),
        tuple(differing),
        size,
        settings,
        after,
    )


def smallest_job(settings: Settings) -> int:
    """GPUs of the smallest job of these settings that has data parallelism in every group."""
    model = settings.values.get("model") or {}
    names = ("tensor_model_parallel", "pipeline_model_parallel", "context_parallel")
    ranks = prod(model.get(f"{name}_size") or 1 for name in names)
    return int(2 * ranks * (model.get("expert_model_parallel_size") or 1))


def _head(
    settings: Settings, form: Form, left_out: list[LeftOut], differing: list[Disagreement]
) -> Iterator[str]:
    yield _one_line(f"{settings.source} as {form}, for {settings.basis.stack}")
    if settings.launch is not None:
        yield from (_one_line(f"note: {note}") for note in settings.launch.notes)
    for key, why in left_out:
        yield _one_line(f"not expressed: {key}: {why}")
    for each in differing:
        yield _one_line(f"differs: {each.sentence}")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _for_bridge(settings: Settings, form: Form) -> tuple[str, list[LeftOut]]:
    sections, left_out = bridge_sections(settings)
    variables: dict[str, str] = {}
    if settings.framework == "megatron-lm" and settings.launch is not None:
        variables = dict(settings.launch.environment)
        if variables and APPLIED.holds(settings.stack):
            sections[ENV_VARS] = {**variables}
            variables = {}
        elif variables:
            names = ", ".join(variables)
            left_out.append(
                LeftOut(
                    names,
                    f"Megatron-Bridge {settings.stack.bridge} has no {ENV_VARS}: export it where "
                    "the job is started",
                )
            )
    if settings.launch is not None and settings.launch.launcher is not None:
        name, size = settings.launch.launcher.name, settings.launch.world_size
        on = f" on {size} GPUs" if size is not None else ""
        left_out.append(LeftOut(name, f"the script starts the job with it{on}"))
    if form == "bridge":
        left_out += [
            LeftOut(section, "only the sections that matter to overlap are written as Python")
            for section, content in sections.items()
            if section not in SECTIONS and content
        ]
        sections = {s: content for s, content in sections.items() if s in SECTIONS}
    writers = {"bridge": emit_bridge, "yaml": emit_yaml, "hydra": emit_hydra}
    emitted = writers[form](sections, variables)
    return emitted.text, left_out + emitted.left_out


def bridge_sections(settings: Settings) -> tuple[Sections, list[LeftOut]]:
    """A run's settings as sections of Megatron-Bridge, and what these cannot express.

    Raises:
        InputError: a section cannot be built.
    """
    if settings.framework != "megatron-lm":
        return every_section(settings)
    sections, left_out = for_bridge(settings)
    others = settings.launch.others if settings.launch is not None else ()
    found, without_key = keys_named_alike(others)
    for section, content in found.items():
        sections[section] = {**(content or {}), **(sections.get(section) or {})}
    return with_megatron_lms(sections, settings), left_out + without_key


def _as_script(settings: Settings, size: int, *, has_size: bool) -> tuple[str, list[LeftOut]]:
    launch = settings.launch
    left_out: list[LeftOut] = []
    if settings.framework == "megatron-lm":
        others = list(launch.others) if launch is not None else []
        carried: frozenset[str] = frozenset()
        environment = dict(launch.environment) if launch is not None else {}
    else:
        others, carried = flags_named_alike(settings, settings.stack.core or MAIN)
        others = list(dict.fromkeys([*others, *flags_against_defaults(settings)]))
        environment, left_out = _env_vars(settings)
        left_out += _sections_without_flags(settings, carried)
    emitted = emit_megatron_lm(
        settings,
        environment,
        size if has_size else None,
        others=others,
        carried=carried,
    )
    line = _launch_line(launch) if launch is not None else None
    return emitted.text + (line or ""), left_out + emitted.left_out


def _env_vars(settings: Settings) -> tuple[dict[str, str], list[LeftOut]]:
    """The variables of env_vars, as the job's processes get them."""
    given: Mapping[str, Any] = settings.values.get(ENV_VARS) or {}
    if given and not APPLIED.holds(settings.stack):
        why = f"Megatron-Bridge {settings.stack.bridge} does not read it, so nothing is exported"
        return {}, [LeftOut(ENV_VARS, why)]
    return {name: str(value) for name, value in given.items() if value is not None}, []


def _sections_without_flags(settings: Settings, carried: frozenset[str]) -> list[LeftOut]:
    """Sections beside those of overlap, of which no flag is written, with their keys."""
    result = []
    # What a flag of the table sets is compared by its effect.
    expressed = {key.rpartition(".")[2] for flag in FLAGS.values() for key in flag.keys}
    for section, content in settings.values.items():
        if section in SECTIONS or section.startswith("_"):
            continue
        keys = [
            key
            for key, value in (content or {}).items()
            if f"{section}.{key}" not in carried
            and key not in expressed
            and f"{section}.{key}" in settings.asked
            and value is not None
        ]
        if keys:
            named = ", ".join(f"{section}.{key}" for key in keys)
            result.append(LeftOut(named, "Megatron-LM has no flag of this name: it is not written"))
    return result


def _launch_line(launch: Launch) -> str | None:
    """The line that starts the job on as many GPUs as the origin's; None where it states none."""
    launcher, size = launch.launcher, launch.world_size
    if launcher is None or size is None:
        return None
    each = launcher.processes_per_node
    program = 'pretrain_gpt.py "${MEGATRON_ARGS[@]}"'
    if launcher.name == "torchrun" and each:
        words = ["torchrun", "--nproc-per-node", str(each), "--nnodes", str(size // each)]
        return f"{shlex.join(words)} {program}\n"
    if launcher.name == "srun":
        words = ["srun", *(["--mpi=pmix"] if launcher.has_mpi else []), "--ntasks", str(size)]
        words += ["--ntasks-per-node", str(each)] if each else []
        return f"{shlex.join(words)} python {program}\n"
    if launcher.name == "mpirun":
        return f"mpirun -np {size} python {program}\n"
    return None
