"""The library: what the commands answer, as typed documents. See docs/library.md.

A function takes what its command takes: a configuration, overrides, and the command's options as
keywords. It prints nothing, writes nothing and never exits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from overlapkit.errors import InputError

if TYPE_CHECKING:
    from overlapkit.config.reading import Reading
    from overlapkit.config.run import Settings
    from overlapkit.config.yaml_file import Document
    from overlapkit.explain.document import ExplainDocument
    from overlapkit.explain.versions.document import ExplainVersionsDocument
    from overlapkit.plan.document import PlanDocument
    from overlapkit.trace.compare.document import CompareDocument
    from overlapkit.trace.document import TraceDocument
    from overlapkit.trace.read.stated import Stated
    from overlapkit.translate.document import TranslateDocument

__all__ = ["compare", "explain", "explain_versions", "plan", "trace", "translate"]

File: TypeAlias = "str | os.PathLike[str]"
Config: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Sequence[str]"
"""A YAML file, its sections as a mapping, a Megatron-LM launch script, or a list of arguments."""
Overrides: TypeAlias = "Mapping[str, Any] | Iterable[str]"
"""Dotted keys and their values, or ``KEY=VALUE`` texts as on the command line."""

_GIVEN = "the given settings"
"""What messages and documents call a configuration that is not a file."""


def explain(
    config: Config,
    *,
    overrides: Overrides = (),
    world_size: int | None = None,
    gpu: str | None = None,
    te: str | None = None,
    core: str | None = None,
    bridge: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    env: Mapping[str, str] | File | None = None,
    from_megatron_lm: bool = False,
    diff: bool = False,
) -> ExplainDocument:
    """Which communication overlap a run really gets, and why not the rest.

    Args:
        config: a run_config.yaml of Megatron-Bridge or a YAML file with such sections, or the
            sections as a mapping. With `from_megatron_lm` a launch script, or a list of
            Megatron-LM's arguments.
        overrides: keys and values on top, such as ``{"model.tensor_model_parallel_size": 4}``.
        world_size: GPUs of the job. A launch script can state it; otherwise it is required.
        gpu: the cluster's GPU, such as "h100"; None assumes h100.
        te: Transformer Engine: "assume" (a recent version), "here" (the installed one), "none", or
            a version. None is the one at `stack`, and else a recent one.
        core: the job's megatron-core, such as "0.18.2", or "main"; None infers it from `config`.
        bridge: the job's Megatron-Bridge, likewise.
        stack: a checkout of Megatron-Bridge or Megatron-LM, a virtual environment, or a folder of
            installed packages, in which the versions are read. `core`, `bridge` and `te` win.
        allow_unknown: whether a key that looks like a misspelt knob is passed over.
        env: the job's environment, as a mapping or a file of ``NAME=value`` lines; None compares
            with the environment of this process.
        from_megatron_lm: whether `config` is for Megatron-LM, whose own rules then apply.
        diff: whether the document is of the configuration as ``--fix`` would leave it, with
            `fixes`, and with `diff` as a unified diff. `config` is then no mapping. Nothing is
            written.

    Returns:
        The document `overlapkit/explain/v1`. It has a finding where `findings` is not 0.

    Raises:
        InputError: the configuration or an option is invalid.
    """
    from overlapkit.config.sources import world_size_of
    from overlapkit.explain.assumptions import assume
    from overlapkit.explain.document import explain_document
    from overlapkit.explain.report import explain as explain_settings

    reading = _reading(core, bridge, stack, allow_unknown)
    variables = dict(env) if isinstance(env, Mapping) else None
    env_file = None if env is None or isinstance(env, Mapping) else os.fspath(env)
    assumptions = assume(gpu, te, env_file, variables, reading.installation)
    if diff:
        from overlapkit.fix.command import mend_named
        from overlapkit.fix.document import fix_document

        if isinstance(config, Mapping):
            raise InputError("diff=True takes a file or arguments: a mapping has no place to fix")
        arguments = _before_flags(_arguments(config), _texts(overrides))
        return fix_document(
            mend_named(
                arguments,
                [] if world_size is None else [world_size],
                assumptions,
                reading,
                from_megatron_lm=from_megatron_lm,
            )
        )
    settings = _settings("explain", config, overrides, reading, from_megatron_lm=from_megatron_lm)
    size = world_size_of(settings, world_size)
    return explain_document(explain_settings(settings, size, assumptions))


def explain_versions(
    config: Config,
    *,
    core: str | Iterable[str] = (),
    bridge: str | Iterable[str] = (),
    overrides: Overrides = (),
    world_size: int | None = None,
    gpu: str | None = None,
    te: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    env: Mapping[str, str] | File | None = None,
    from_megatron_lm: bool = False,
) -> ExplainVersionsDocument:
    """Which versions accept a run, and what differs among them.

    Args:
        core: versions of megatron-core, or "all": every version that the rules were checked
            against.
        bridge: versions of Megatron-Bridge, likewise, instead; or the one that goes with `core`.
        config, overrides, world_size, gpu, te, stack, allow_unknown, env, from_megatron_lm: as in
            `explain`.

    Returns:
        The document `overlapkit/explain-versions/v1`.

    Raises:
        InputError: the configuration or an option is invalid, or no version is given.
    """
    from overlapkit.config.sources import world_size_of
    from overlapkit.explain.assumptions import assume
    from overlapkit.explain.versions.asked import asked_readings
    from overlapkit.explain.versions.document import versions_document
    from overlapkit.explain.versions.matrix import judge_versions

    cores, bridges = ([each] if isinstance(each, str) else list(each) for each in (core, bridge))
    reading = _reading(None, None, stack, allow_unknown)
    if not cores and not bridges:
        raise InputError("no version is given: name some in core or bridge, or all")
    package, readings = asked_readings(cores, bridges, reading)
    variables = dict(env) if isinstance(env, Mapping) else None
    env_file = None if env is None or isinstance(env, Mapping) else os.fspath(env)
    assumptions = assume(gpu, te, env_file, variables, reading.installation)

    def read(each: Reading) -> tuple[Settings, int]:
        settings = _settings("explain", config, overrides, each, from_megatron_lm=from_megatron_lm)
        return settings, world_size_of(settings, world_size)

    return versions_document(judge_versions(package, readings, read, assumptions))


def translate(
    config: Config,
    *,
    to: Literal["bridge", "yaml", "hydra", "megatron-lm"],
    overrides: Overrides = (),
    world_size: int | None = None,
    gpu: str | None = None,
    te: str | None = None,
    core: str | None = None,
    bridge: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    from_megatron_lm: bool = False,
) -> TranslateDocument:
    """The same run in another form, as it is.

    Args:
        config: as in `explain`.
        to: the form: Python for Megatron-Bridge, YAML, Hydra overrides, or a launch script of
            Megatron-LM.
        overrides, gpu, te, core, bridge, stack, allow_unknown, from_megatron_lm: as in `explain`.
        world_size: GPUs of the job; None takes what a launch script states, and else the smallest
            job with data parallelism.

    Returns:
        The document `overlapkit/translate/v1`, with the text.

    Raises:
        InputError: the configuration or an option is invalid.
    """
    from overlapkit.translate.command import form_of, translated
    from overlapkit.translate.document import translate_document

    reading = _reading(core, bridge, stack, allow_unknown)
    settings = _settings("translate", config, overrides, reading, from_megatron_lm=from_megatron_lm)
    return translate_document(translated(settings, form_of(to), world_size, gpu, te, reading))


def plan(
    config: Config | None = None,
    *,
    gpu: str,
    model: str | None = None,
    overrides: Overrides = (),
    te: str | None = None,
    core: str | None = None,
    bridge: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    world_size: int | None = None,
    nodes: int | None = None,
    network: float | None = None,
    network_per: Literal["gpu", "node"] | None = None,
    network_kind: Literal["infiniband", "roce", "tcp"] | None = None,
    rates: File | None = None,
    sweep: str | Iterable[str] | None = None,
    show_work: bool = False,
    from_megatron_lm: bool = False,
) -> PlanDocument:
    """Which overlap to set for a model on a cluster, with the arithmetic.

    Args:
        config: as in `explain`; None with `model`.
        gpu: the cluster's GPU, such as "h100".
        model: a published model instead of `config`, such as "llama3_70b".
        overrides: as in `explain`; the short names of the command, such as ``tp``, can be used.
        te: as in `explain`.
        core, bridge, stack, allow_unknown: as in `explain`.
        world_size: GPUs of the job.
        nodes: machines of the job.
        network: Gbit/s of network; None takes that of the GPU's reference system.
        network_per: whether that is each GPU's, which None means, or a node's.
        network_kind: the transport; "tcp" is Ethernet without RDMA.
        rates: a file of rates that were measured on such a machine (`overlapkit plan calibrate`).
        sweep: dimensions over which to rank the layouts that fit: some of tp, pp, vp, cp, ep, mbs.
        show_work: whether the document contains the derivation of every figure.
        from_megatron_lm: as in `explain`.

    Returns:
        The document `overlapkit/plan/v1`.

    Raises:
        InputError: the configuration or an option is invalid, or no layout can run.
    """
    from overlapkit.plan.command import read_and_plan
    from overlapkit.plan.document import plan_document
    from overlapkit.plan.network import Network

    given = isinstance(config, Mapping) and not from_megatron_lm
    arguments = [] if given or config is None else _arguments(config)
    planned = read_and_plan(
        [*arguments, *_texts(overrides)],
        document=_document(config) if given and isinstance(config, Mapping) else None,
        model=model,
        gpu=gpu,
        te=te,
        reading=_reading(core, bridge, stack, allow_unknown),
        world_size=world_size,
        nodes=nodes,
        network=Network(network, network_per, network_kind),
        rates=None if rates is None else os.fspath(rates),
        from_megatron_lm=from_megatron_lm,
        swept=sweep if sweep is None or isinstance(sweep, str) else ",".join(sweep),
    )
    return plan_document(planned, show_work=show_work)


def trace(
    files: File | Iterable[File],
    *,
    steps: str | int = "all",
    rank_from: Literal["name", "json"] | None = None,
    config: Config | None = None,
    comm: Iterable[str] = (),
    group: Mapping[str, str] | None = None,
    core: str | None = None,
    bridge: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    merge: bool = False,
) -> TraceDocument:
    """Where the time of each step goes, and which communication is exposed.

    Args:
        files: profiles, one per rank, or folders of profiles: traces of torch.profiler, or SQLite
            exports of Nsight Systems.
        steps: "all", the number of a step, or "A:B" from A up to but not including B.
        rank_from: where the ranks are stated: in the files' names, or in the files ("json"); None
            tries the files first.
        config: the run's configuration, to tell the parallel dimensions apart by the sizes of
            process groups. A path that ends in .sh, .bash, .slurm or .sbatch is a launch script.
        comm: regular expressions; kernels whose name matches one are communication. Each can end
            in "=OPERATION" or "=OPERATION:DIMENSION", such as "=all_to_all:EP".
        group: descriptions or names of process groups, or "size:N" for those of N ranks, each with
            its dimension, such as {"size:8": "TP"}.
        core, bridge, stack, allow_unknown: as in `explain`, for `config`.
        merge: whether `files` are documents of `overlapkit trace --json`, or folders of them, to
            make one document of; of the options only `rank_from` belongs to that.

    Returns:
        The document `overlapkit/trace/v1`.

    Raises:
        InputError: a file cannot be read, or an option is invalid.
    """
    from overlapkit.output.progress import no_progress
    from overlapkit.trace.analyse import analyse_each, layout_of
    from overlapkit.trace.document import trace_document
    from overlapkit.trace.rank_report import Options
    from overlapkit.trace.ranks import settle_ranks
    from overlapkit.trace.read.files.folders import find_traces

    if rank_from not in (None, "name", "json"):
        raise InputError(f"rank_from={rank_from!r}: give 'name', 'json' or None")
    each = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not each:
        raise InputError("files is empty: name at least one profile")
    names = [os.fspath(file) for file in each]
    if merge:
        from overlapkit.trace.merge import check_options
        from overlapkit.trace.merge import merge as merge_documents

        check_options(("steps", str(steps)), {"config": config, "comm": comm, "group": group})
        return merge_documents(names, rank_from)
    traces = find_traces(names)
    reading = _reading(core, bridge, stack, allow_unknown)
    settings = None if config is None else _configuration(config, reading)
    layout = None if settings is None else layout_of(settings)
    options = Options(steps=str(steps), layout=layout, stated=_stated(comm, group), packed=True)
    with no_progress():
        by_file = analyse_each(traces.paths, options, forking=_can_fork())
    reports = [report for reports in by_file for report in reports]
    return trace_document(settle_ranks(reports, rank_from), settings, traces.notes)


def compare(
    base: File,
    new: File,
    *,
    steps: str | int = "all",
    config_base: Config | None = None,
    config_new: Config | None = None,
    comm: Iterable[str] = (),
    group: Mapping[str, str] | None = None,
    te: str | None = None,
    core: str | None = None,
    bridge: str | None = None,
    stack: File | None = None,
    allow_unknown: bool = False,
    force: bool = False,
) -> CompareDocument:
    """Why the median step of one profile differs from that of another.

    Args:
        base: a profile, or a folder with one per rank.
        new: the profile to compare with it.
        steps: as in `trace`.
        config_base: BASE's configuration, as in `trace`.
        config_new: NEW's configuration. With both, the document lists the decisions that differ.
        comm, group: as in `trace`, for both profiles.
        te: as in `explain`, for both configurations.
        core, bridge, stack, allow_unknown: likewise.
        force: whether to compare runs that differ in GPU, world size or number of ranks.

    Returns:
        The document `overlapkit/compare/v1`.

    Raises:
        InputError: a file cannot be read, an option is invalid, or the runs are not comparable.
    """
    from overlapkit.output.progress import no_progress
    from overlapkit.trace.compare.command import compare_runs
    from overlapkit.trace.compare.decisions import Installed, read_configurations
    from overlapkit.trace.read.files.folders import find_traces

    names = os.fspath(base), os.fspath(new)
    reading = _reading(core, bridge, stack, allow_unknown)
    given = (config_base, config_new)
    configurations = [None if c is None else _configuration(c, reading) for c in given]
    settings = read_configurations(configurations[0], configurations[1])
    with no_progress():
        return compare_runs(
            names,
            [find_traces([name]) for name in names],
            steps=str(steps),
            stated=_stated(comm, group),
            settings=settings,
            software=Installed(te, reading.installation if settings else None),
            force=force,
            forking=_can_fork(),
        )


def _stated(comm: Iterable[str], group: Mapping[str, str] | None) -> Stated:
    """What is said of communication, as on the command line."""
    from overlapkit.trace.read.stated import read_stated

    if isinstance(comm, str):
        raise InputError(f"comm={comm!r}: give a list of regular expressions")
    return read_stated(list(comm), [f"{name}={d}" for name, d in (group or {}).items()])


def _can_fork() -> bool:
    """Whether this program has one thread only: see `trace.analyse.analyse_each`."""
    from threading import active_count

    return active_count() == 1


def _reading(
    core: str | None, bridge: str | None, stack: File | None, allow_unknown: bool
) -> Reading:
    """The keywords of how a configuration is read."""
    from overlapkit.config.reading import Reading

    return Reading(core, bridge, None if stack is None else os.fspath(stack), allow_unknown)


def _settings(
    command: str,
    config: Config,
    overrides: Overrides,
    reading: Reading,
    *,
    from_megatron_lm: bool,
) -> Settings:
    """The settings of a configuration in any form, with overrides on top."""
    from overlapkit.config.sources import read_document, read_sources

    texts = _texts(overrides)
    if isinstance(config, Mapping):
        if from_megatron_lm:
            raise InputError("from_megatron_lm=True takes a launch script or its arguments")
        return read_document(_document(config), texts, reading)
    (settings,) = read_sources(
        _before_flags(_arguments(config), texts),
        command=command,
        from_megatron_lm=from_megatron_lm,
        reading=reading,
    )
    return settings


def _configuration(config: Config, reading: Reading) -> Settings:
    """The settings of a configuration given with a profile; a launch script is known by name."""
    from overlapkit.config.sources import read_configuration, read_document

    if isinstance(config, Mapping):
        return read_document(_document(config), (), reading)
    (name,) = _arguments(config)
    return read_configuration(name, reading)


def _arguments(config: Config) -> list[str]:
    """A configuration that is not a mapping, as on the command line."""
    if isinstance(config, (str, os.PathLike)):
        return [os.fspath(config)]
    if isinstance(config, Mapping):
        raise InputError("from_megatron_lm=True takes a launch script or its arguments")
    return list(config)


def _before_flags(arguments: list[str], overrides: list[str]) -> list[str]:
    """Overrides come after a file, and before Megatron-LM's arguments."""
    if arguments and arguments[0].startswith("-"):
        return [*overrides, *arguments]
    return [arguments[0], *overrides, *arguments[1:]] if arguments else overrides


def _texts(overrides: Overrides) -> list[str]:
    """Overrides as ``KEY=VALUE``."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return list(overrides)
    from overlapkit.config.emit.yaml_text import flow

    return [f"{key}={flow(_plain(value, str(key)))}" for key, value in overrides.items()]


def _document(config: Mapping[str, Any]) -> Document:
    """A mapping as if it had been read from a file."""
    from overlapkit.config.yaml_file import Document

    data = _plain(config, _GIVEN)
    assert isinstance(data, dict)
    return Document(_GIVEN, data)


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """A value of the types that YAML has.

    Raises:
        InputError: it contains another type, or a number of more than 64 bits.
    """
    # Covers the numbers of numpy.
    from numbers import Integral, Real

    from overlapkit.config.yaml_file import MAX_DEPTH
    from overlapkit.output.console import encodable

    if depth > MAX_DEPTH:
        raise InputError(f"{place}: is nested more than {MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        number = int(value)
        if not -(2**63) <= number < 2**63:
            raise InputError(f"{place}: an integer of more than 64 bits")
        return number
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{n}]", depth + 1) for n, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise InputError(
            f"{place}: a {type(value).__name__} is not a setting; give a bool, a number, a string, "
            "None, a list or a mapping"
        )
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{place}: the key {key!r} is not a string")
    return {key: _plain(item, f"{place}: {key}", depth + 1) for key, item in value.items()}
