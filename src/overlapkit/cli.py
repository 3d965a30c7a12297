"""The commands, declared in one place. What a command needs is imported when it runs."""

from __future__ import annotations

import io
import sys
from typing import Any, NoReturn

import click

from overlapkit import __version__
from overlapkit.errors import EXIT_BAD_INPUT, InputError

EXIT_INTERRUPTED = 130

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


_DEBUG_HELP = "Show a traceback for bad input."


class _Command(click.Command):
    """A command that takes --debug as well, so that it may stand anywhere on the line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, help=_DEBUG_HELP)
        self.params.append(debug)


class _Group(click.Group):
    command_class = _Command
    group_class = type


@click.group(cls=_Group, context_settings=_CONTEXT, invoke_without_command=True)
@click.version_option(__version__, prog_name="overlapkit")
@click.option("--debug", is_flag=True, expose_value=False, help=_DEBUG_HELP)
@click.pass_context
def cli(context: click.Context) -> None:
    """Communication overlap in Megatron training: what is in effect, and why.

    Exit status: 0 all is as requested, 1 a finding, 2 bad input or a missing dependency.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("config")
@click.argument("more", nargs=-1, metavar="[CONFIG_B] [KEY=VALUE]...")
@click.option(
    "--from-megatron-lm",
    is_flag=True,
    help="CONFIG is a launch script of Megatron-LM, read and not run, or behind -- its arguments.",
)
@click.option(
    "--world-size",
    type=int,
    multiple=True,
    metavar="N",
    help="GPUs of the job. Twice, to compare two configurations on different numbers.",
)
@click.option("--gpu", metavar="NAME", help="The cluster's GPU, such as h100 or b200.")
@click.option(
    "--te",
    default="assume",
    show_default=True,
    metavar="assume|here|none|VERSION",
    help="Transformer Engine: assume it is there, look here, or state it.",
)
@click.option(
    "--env-file",
    metavar="FILE",
    help="The job's environment as NAME=value lines, instead of the present one.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/explain/v1).")
def explain(
    config: str,
    more: tuple[str, ...],
    from_megatron_lm: bool,
    world_size: tuple[int, ...],
    gpu: str | None,
    te: str,
    env_file: str | None,
    as_json: bool,
) -> int:
    """Tell which communication overlap CONFIG really gets, and why not the rest.

    CONFIG is a run_config.yaml of Megatron-Bridge or a YAML with sections such as model, ddp and
    comm_overlap. KEY=VALUE overrides a key, e.g. model.tensor_model_parallel_size=4. With a second
    configuration, tell only what differs, and which key caused it; b:KEY=VALUE overrides the second
    alone, or a copy of the first: what would change.

    With --from-megatron-lm the rules are Megatron-LM's own. NAME=value then gives a variable that
    the script does not set, 1=value its first argument, and section.key=value overrides.
    FILE:LINE names one of several launches.
    """
    from overlapkit.explain.command import run

    return run(
        config,
        more,
        world_size,
        gpu=gpu,
        te=te,
        env_file=env_file,
        as_json=as_json,
        from_megatron_lm=from_megatron_lm,
    )


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="A published model, such as llama3_70b, as CONFIG.")
@click.option("--gpu", metavar="NAME", help="The cluster's GPU, such as h100 or gb200.")
@click.option("--world-size", type=int, metavar="N", help="GPUs of the job.")
@click.option("--nodes", type=int, metavar="N", help="Machines of the job.")
@click.option("--network", type=float, metavar="GBPS", help="Gbit/s of network for each GPU.")
@click.option(
    "--from-megatron-lm",
    is_flag=True,
    help="CONFIG is a launch script of Megatron-LM, read and not run, or behind -- its arguments.",
)
@click.option(
    "--emit",
    "form",
    metavar="FORM",
    help="Print only the settings: bridge, yaml, hydra or megatron-lm.",
)
@click.option(
    "--sweep",
    "swept",
    metavar="DIMS",
    help="Rank the layouts that fit over some of tp,pp,vp,cp,ep,mbs.",
)
@click.option("--show-work", is_flag=True, help="Derive every figure: formula, inputs, sources.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/plan/v1).")
@click.option("--html", metavar="OUT", help="Also write one self-contained page.")
def plan(arguments: tuple[str, ...], **options: Any) -> int:
    """Choose the overlap for a model on a cluster, with the arithmetic shown.

    CONFIG is what explain reads. KEY=VALUE overrides a key, for short also tp, pp, vp, cp, ep, etp,
    mbs, gbs, seq and precision (bf16, fp8, mxfp8 ...): tp=4 pp=8 vp=5. With --model and no layout,
    the fastest one that fits is chosen.
    """
    from overlapkit.plan.command import run

    return run(arguments, **options)


@cli.command()
@click.argument("config", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option(
    "--from-megatron-lm",
    is_flag=True,
    help="CONFIG is a launch script of Megatron-LM, read and not run.",
)
@click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE",
    help="A profile, or a folder with one per rank; may be given several times.",
)
@click.option("--world-size", type=int, metavar="N", help="GPUs of the job.")
@click.option("--gpu", metavar="NAME", help="The cluster's GPU, such as h100 or b200.")
@click.option(
    "--te",
    metavar="assume|here|none|VERSION",
    help="Transformer Engine; by default assumed, or looked up where a GPU is visible.",
)
@click.option(
    "--env-file",
    metavar="FILE",
    help="The job's environment as NAME=value lines, instead of the present one.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/doctor/v1).")
def doctor(
    config: tuple[str, ...],
    from_megatron_lm: bool,
    traces: tuple[str, ...],
    world_size: int | None,
    gpu: str | None,
    te: str | None,
    env_file: str | None,
    as_json: bool,
) -> int:
    """Find why communication is not hidden: at most five causes, most likely first.

    Looks at the environment, the installed packages, the GPUs where they are visible, the
    configuration, and the profile; whatever is not given is left out and said. The exit status is
    1 when there is a finding.
    """
    from overlapkit.doctor.command import run

    return run(
        config,
        from_megatron_lm=from_megatron_lm,
        traces=traces,
        world_size=world_size,
        gpu=gpu,
        te=te,
        env_file=env_file,
        as_json=as_json,
    )


@cli.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schema of a document that --json prints; without NAME, list the documents."""
    from overlapkit.output.console import write_text
    from overlapkit.output.schema import DOCUMENTS, schema_text

    write_text("".join(f"{each}\n" for each in DOCUMENTS) if name is None else schema_text(name))


@cli.group()
def skill() -> None:
    """The agent skill: rendered from the source, so that it cannot rot."""


@skill.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and show a diff on drift.")
@click.option("--root", metavar="DIR", help="The checkout; by default the one you are in.")
def render(check: bool, root: str | None) -> int:
    """Render SKILL.md, its references and docs/ from their templates."""
    from overlapkit.skill.command import render as run

    return run(check=check, root=root)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--steps",
    default="all",
    show_default=True,
    metavar="all|N|A:B",
    help="Steps by their numbers; A:B goes from A up to, not including, B.",
)
@click.option(
    "--rank-from",
    type=click.Choice(["name", "json"]),
    help="Where ranks stand: the files' names, or distributedInfo in them (tried first).",
)
@click.option(
    "--config", metavar="YAML", help="The run's configuration, to tell dimensions by group sizes."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/trace/v1).")
@click.option("--html", metavar="OUT", help="Also write one self-contained page.")
@click.option(
    "--annotate", metavar="OUT", help="Also write the trace with tracks of exposed communication."
)
def trace(
    files: tuple[str, ...],
    steps: str,
    rank_from: str | None,
    config: str | None,
    as_json: bool,
    html: str | None,
    annotate: str | None,
) -> int:
    """Measure communication overlap in profiles, one FILE per rank.

    FILE is a trace of torch.profiler (.json, .json.gz), an Nsight Systems export (nsys export
    --type sqlite), or a folder of such files.
    """
    from overlapkit.trace.command import run

    return run(
        files,
        steps=steps,
        rank_from=rank_from,
        config=config,
        as_json=as_json,
        html=html,
        annotate=annotate,
    )


@cli.command()
@click.argument("base")
@click.argument("new")
@click.option(
    "--steps",
    default="all",
    show_default=True,
    metavar="all|N|A:B",
    help="Steps by their numbers; A:B goes from A up to, not including, B.",
)
@click.option("--config-base", metavar="YAML", help="BASE's configuration.")
@click.option(
    "--config-new", metavar="YAML", help="NEW's configuration, to name the decisions that differ."
)
@click.option("--force", is_flag=True, help="Compare unlike runs: other GPU, other world size …")
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/compare/v1).")
@click.option("--html", metavar="OUT", help="Also write one self-contained page.")
def compare(
    base: str,
    new: str,
    steps: str,
    config_base: str | None,
    config_new: str | None,
    force: bool,
    as_json: bool,
    html: str | None,
) -> int:
    """Explain why the median step of profile NEW differs from that of BASE.

    Each is a trace file, or a folder with one per rank. The exit status is 1 when NEW is slower
    beyond the spread of its own steps.
    """
    from overlapkit.trace.compare.command import run

    return run(
        base,
        new,
        steps=steps,
        config_base=config_base,
        config_new=config_new,
        force=force,
        as_json=as_json,
        html=html,
    )


@cli.command()
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option("--config", metavar="YAML", help="Train with this configuration's settings.")
@click.option("--ranks", type=int, metavar="N", help="Processes, where a scenario leaves it open.")
@click.option(
    "--link",
    metavar="RATE|none",
    help="Rate of the link between ranks, such as 400mbit; by default one at which communication "
    "is comparable with compute.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--steps", type=int, metavar="N", help="Counted steps of each variant.")
@click.option("--corpus", metavar="FILE", help="A text to train on, instead of a synthetic one.")
@click.option("--out", metavar="DIR", help="Keep results.json, the profiles and report.html there.")
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm"]),
    help="Hand the run to nemo_run; --out names its folder.",
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the Slurm job: account, partition, nodes, gpus_per_node, time, container_image …",
)
@click.option("--dry-run", is_flag=True, help="With --executor slurm: print the job's script.")
@click.option("--collect", metavar="FOLDER", help="Show what an executor's run left in FOLDER.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document (overlapkit/lab/v1).")
def lab(
    scenarios: tuple[str, ...],
    config: str | None,
    ranks: int | None,
    link: str | None,
    device: str,
    steps: int | None,
    corpus: str | None,
    out: str | None,
    as_json: bool,
    executor: str | None,
    slurm: tuple[str, ...],
    dry_run: bool,
    collect: str | None,
) -> int:
    """Prove overlap by training a real Megatron-Core model, here, on CPUs or GPUs.

    SCENARIO is one or several of dp, bucket, pp, tp, dp-pp, precision, silent and grid, or all; by
    default dp and bucket. The exit status is 1 when a claim is not confirmed.
    """
    from overlapkit.lab.command import Request, run

    return run(
        Request(
            scenarios,
            config,
            ranks,
            link,
            device,
            steps,
            corpus,
            out,
            as_json,
            executor,
            slurm,
            dry_run,
            collect,
        )
    )


def main() -> NoReturn:
    """Run the command line; bad input ends in one line on standard error and exit status 2."""
    debug = "--debug" in sys.argv
    status = 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file may have a name that the terminal cannot show: show its bytes.
            stream.reconfigure(errors="backslashreplace")
    try:
        result: Any = cli.main(standalone_mode=False)
        status = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        from overlapkit.output.console import discard_output

        discard_output()
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
            sys.exit(EXIT_BAD_INPUT)
        _fail(_told(error))
    sys.exit(status)


def _told(error: Exception) -> str:
    """What a user is told of an error, in one line."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "overlapkit"
        return f"{error.format_message()} (see {command} --help)"
    if isinstance(error, ImportError):
        return _missing(error)
    return (
        f"internal error: {type(error).__name__}: {error}; it is a bug in overlapkit: please "
        "report what --debug shows"
    )


def _missing(error: ImportError) -> str:
    """What to install, or to uninstall, for an import that failed."""
    from megatron.bridge.training.software import foreign_megatron_bridge

    mend = foreign_megatron_bridge() or "a dependency is missing: reinstall overlapkit"
    return f"{error}; {mend}"


def _fail(message: str) -> NoReturn:
    print(f"overlapkit: {InputError(message)}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
