"""The commands, declared in one place. What a command needs is imported when it runs."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from overlapkit import __version__, options
from overlapkit.errors import EXIT_BAD_INPUT, InputError
from overlapkit.output.streams import open_standard_streams
from overlapkit.processes import ends_on_signals

EXIT_INTERRUPTED = 130

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


_DEBUG_HELP = "Show a traceback for bad input."


class _Command(click.Command):
    """A command that takes --debug as well, so that it can be anywhere on the line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, help=_DEBUG_HELP)
        self.params.append(debug)


class _WithSubcommands(_Command):
    """A command with positional arguments, of which some first ones are commands of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.subcommands: dict[str, click.Command] = {}

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the subcommand, where the first argument names one."""
        if args and args[0] in self.subcommands:
            name = f"{info_name} {args[0]}"
            return self.subcommands[args[0]].make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


class _Group(click.Group):
    command_class = _Command
    group_class = type


def _read_by(given: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters, with those of `options.reading` as one: its `reading`."""
    from overlapkit.config.reading import Reading

    reading = Reading(**{name: given.pop(name) for name in options.READING if name in given})
    return {**given, "reading": reading}


def _formed(given: dict[str, Any]) -> dict[str, Any]:
    """A command's parameters, with --format and --json as one: its `form`."""
    as_json = given.pop("as_json")
    return {**given, "form": options.chosen_form(given["form"], as_json=as_json)}


@click.group(cls=_Group, context_settings=_CONTEXT, invoke_without_command=True)
@click.version_option(__version__, prog_name="overlapkit")
@click.option("--debug", is_flag=True, expose_value=False, help=_DEBUG_HELP)
@click.pass_context
def cli(context: click.Context) -> None:
    """Communication overlap in Megatron training: what is in effect, and why.

    Exit status: 0 when everything is as requested, 1 when there is a finding, 2 for bad input or a
    missing dependency.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("arguments", nargs=-1, required=True, metavar="CONFIG [CONFIG_B] [KEY=VALUE]...")
@options.from_megatron_lm
@options.world_sizes
@options.gpu
@options.te("a recent one is assumed")
@options.readings
@options.env_file
@click.option(
    "--buckets",
    is_flag=True,
    help="Print every gradient bucket: its bytes, its parameters, and what can hide it.",
)
@options.brief
@options.form("overlapkit/explain/v1")
@options.fix
@options.diff
@options.html
def explain(**given: Any) -> int:
    """Show which overlap CONFIG really gets, and why not the rest.

    CONFIG is a run_config.yaml of Megatron-Bridge, or a YAML file with sections such as model, ddp
    and comm_overlap. KEY=VALUE overrides a key, such as model.tensor_model_parallel_size=4.

    With a second configuration, show only what differs and which key caused it. b:KEY=VALUE
    overrides the second configuration alone. Without a second one it overrides a copy of the first:
    this shows what the change would do.

    CONFIG can also be a launch script of Megatron-LM (train.sh): then the rules are Megatron-LM's
    own. NAME=value sets a variable that the script does not set, 1=value its first argument, and
    section.key=value overrides a setting. FILE:LINE selects one of several launches. A script can
    be compared with a YAML file.

    --fix writes the remedies of the findings into CONFIG and leaves the rest of the file as it is.
    --diff, with --fix or without, writes nothing and prints what would change.
    """
    from overlapkit.explain.versions.asked import asked_readings

    cores, bridges = given.pop("core"), given.pop("bridge")
    given = _read_by(_formed(given))
    package, readings = asked_readings(cores, bridges, given.pop("reading"))
    if len(readings) > 1:
        from overlapkit.explain.versions.command import run as run_versions

        return run_versions(package=package, readings=readings, **given)
    given["reading"] = readings[0]
    if given["fix"] or given["diff"]:
        from overlapkit.fix.command import run as run_fix

        return run_fix(**given)
    from overlapkit.explain.command import run

    return run(**{name: value for name, value in given.items() if name not in ("fix", "diff")})


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER...")
@click.option(
    "--world-size", type=int, metavar="N", help="Number of GPUs where a file does not state it."
)
@click.option(
    "--pass-over",
    is_flag=True,
    help="Pass over a named file as well where it has nothing to do with a Megatron run.",
)
@options.gpu
@options.te("a recent one is assumed")
@options.reading
@options.env_file
@options.form("overlapkit/audit/v1")
def audit(**given: Any) -> int:
    """Judge every configuration and launch script below FOLDER.

    Each has one line. A YAML file or a script that has nothing to do with a Megatron run is passed
    over, as are hidden files, virtual environments and links to folders. The exit status is 1 when
    one has a finding or cannot be read as it is.
    """
    from overlapkit.audit.command import run

    return run(**_read_by(_formed(given)))


@cli.command(cls=_WithSubcommands)
@options.overrides
@click.option("--model", metavar="NAME", help="A published model, such as llama3_70b, as CONFIG.")
@options.gpu
@options.te("a recent one is assumed")
@options.reading
@options.world_size
@click.option("--nodes", type=int, metavar="N", help="Number of machines of the job.")
@click.option("--network", type=float, metavar="GBPS", help="Network bandwidth, in Gbit/s.")
@click.option(
    "--network-per",
    metavar="WHAT",
    help="Whether --network is a gpu's, as assumed, or a node's: gpu or node.",
)
@click.option(
    "--network-kind",
    metavar="KIND",
    help="infiniband (as assumed), roce, or tcp, which is Ethernet without RDMA.",
)
@click.option(
    "--rates",
    metavar="FILE",
    help="Rates that were measured on such a machine, as calibrate writes them.",
)
@options.from_megatron_lm
@click.option(
    "--emit",
    "form",
    metavar="FORM",
    help="Print only the settings, as bridge, yaml, hydra or megatron-lm.",
)
@click.option(
    "--sweep",
    "swept",
    metavar="DIMS",
    help="Rank the layouts that fit over some of tp,pp,vp,cp,ep,mbs,recompute,cp_comm.",
)
@click.option("--show-work", is_flag=True, help="Derive every figure: formula, inputs, sources.")
@options.as_json("overlapkit/plan/v1")
@options.html
def plan(**given: Any) -> int:
    """Choose the overlap for a model on a cluster, with arithmetic.

    CONFIG is what explain reads. KEY=VALUE overrides a key. Short names exist for tp, pp, vp, cp,
    ep, etp, mbs, gbs, seq and precision (bf16, fp8, mxfp8 ...): tp=4 pp=8 vp=5. Where no
    layout is given, the fastest that fits is chosen.

    overlapkit plan calibrate --help: rates of your own machine, for --rates.
    """
    from overlapkit.plan.command import run

    return run(**_read_by(given))


@click.command(cls=_Command)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--from-trace",
    "traces",
    multiple=True,
    metavar="FILE",
    help="A profile of torch.profiler, or a folder or an archive of them. Further ones can follow.",
)
@click.option(
    "--gpu", metavar="NAME", help="What the profiles were recorded on, where they do not name it."
)
@click.option("--out", metavar="FILE", help="Write the rates to FILE; without, they are printed.")
@options.as_json("overlapkit/rates/v1")
def calibrate(**given: Any) -> int:
    """Read rates of your own machine from profiles of training.

    The profiles were recorded with record_shapes=True: matrix products and attention are read by
    the shapes of their operators, collectives by their sizes and groups. What could not be read is
    said. The file is for overlapkit plan --rates.
    """
    from overlapkit.calibrate.command import run

    return run(given.pop("files"), **given)


assert isinstance(plan, _WithSubcommands)
plan.subcommands["calibrate"] = calibrate


@cli.command()
@options.overrides
@click.option(
    "--to",
    metavar="FORM",
    required=True,
    help="bridge (Python), yaml, hydra (overrides) or megatron-lm (a launch script).",
)
@click.option("--out", metavar="FILE", help="Write the text to FILE instead.")
@options.from_megatron_lm
@options.world_size
@options.gpu
@options.te("a recent one is assumed")
@options.reading
@options.as_json("overlapkit/translate/v1")
def translate(**given: Any) -> int:
    """Write the run of CONFIG in another form, as it is.

    CONFIG is what explain reads. Defaults that differ between Megatron-LM and Megatron-Bridge are
    written out. The text is read back and explained: comments in it, and --json, name what the form
    does not express and what explain says differently of the two. Then the exit status is 1.
    """
    from overlapkit.translate.command import run

    return run(**_read_by(given))


@cli.command()
@click.argument("names", nargs=-1, metavar="[ID]...")
@options.versions
@options.as_json("overlapkit/rules/v1")
def rules(**given: Any) -> int:
    """List the rules, and the versions that each one holds for.

    With --core, --bridge or --stack only those that hold for these versions. ID shows one rule
    whole, and a pattern such as 'tp.*' lists several with their claims. Without either, plain text
    has the ids alone.
    """
    from overlapkit.explain.rules.list import run

    return run(**_read_by(given))


@cli.command()
@options.overrides
@options.from_megatron_lm
@click.option(
    "--trace",
    "traces",
    multiple=True,
    metavar="FILE",
    help="A profile, or a folder with one profile per rank. Can be given several times.",
)
@options.world_size
@options.gpu
@options.te("it is looked for where a GPU is visible, and else assumed")
@options.reading
@options.env_file
@options.as_json("overlapkit/doctor/v1")
@options.html
def doctor(**given: Any) -> int:
    """Find why communication is not hidden, likeliest cause first.

    Shows at most five causes. Examines the environment, the installed packages, the GPUs where they
    are visible, the configuration and the profile. The answer says what was not given. The exit
    status is 1 when there is a finding.
    """
    from overlapkit.doctor.command import run

    return run(**_read_by(given))


@cli.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schema of a document that --json prints.

    Without NAME, list the documents.
    """
    from overlapkit.output.console import write_text
    from overlapkit.output.schema import DOCUMENTS, schema_text

    write_text("".join(f"{each}\n" for each in DOCUMENTS) if name is None else schema_text(name))


@cli.group()
def skill() -> None:
    """The agent skill, and checks of anyone's skills and docs."""


@skill.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and show a diff on drift.")
@click.option("--root", metavar="DIR", help="The checkout; by default the current folder's.")
@click.option(
    "--against",
    metavar="CHECKOUT",
    help="Write the skill with the anchors of this checkout of Megatron-Bridge or Megatron-LM to "
    "the folder that --out names.",
)
@click.option("--out", metavar="DIR", help="With --against: a new folder, or a skill's folder.")
def render(check: bool, root: str | None, against: str | None, out: str | None) -> int:
    """Render SKILL.md, its references and docs/ from their templates.

    With --against, write the skill to --out, with the lines of CHECKOUT that decide on overlap,
    and say which version that is.
    """
    if (against is None) != (out is None) or (against is not None and (check or root is not None)):
        raise click.UsageError("--against and --out go together, without --check and --root")
    if against is not None and out is not None:
        from overlapkit.skill.command import render_against

        return render_against(against, out)
    from overlapkit.skill.command import render as run

    return run(check=check, root=root)


@skill.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--root",
    metavar="CHECKOUT",
    help="What the anchors point into; by default the repository of the first PATH, "
    "or the current folder.",
)
@click.option(
    "--fix", is_flag=True, help="Write anchors anew whose lines stand elsewhere, in one place."
)
@click.option(
    "--collect",
    is_flag=True,
    help="Compare promised numbers, such as '26 passed', with what pytest collects. This imports "
    "the tests of CHECKOUT.",
)
@click.option("--all", "everything", is_flag=True, help="Name what is right too, in the text.")
@options.form("overlapkit/skill-check/v1")
def check(**given: Any) -> int:
    """Check anchors and links of skills and docs against a checkout.

    PATH is a page of Markdown, or a folder with some. An anchor is a block that starts with
    ```START:END:path, or path:LINE, path:START-END or path#L10-L20 in the text, or such lines of
    the checkout's repository on GitHub. Quoted lines are compared with the file, and "..." stands
    for what was left out. Where none are quoted, git tells what the lines were when the page named
    them. Relative links and the frontmatter of a SKILL.md are checked too. The exit status is 1
    when something is not right.
    """
    from overlapkit.skill.check.command import run

    return run(**_formed(given))


@skill.command()
@click.argument("answers", required=False, metavar="[ANSWERS]")
@click.option("--file", metavar="FILE", help="evals.json, if not that of this skill.")
@options.as_json("overlapkit/skill-evals/v1")
def evals(**given: Any) -> int:
    """Show tasks that test an agent, or check its ANSWERS.

    A task is a question on files whose right answer the tool computes. ANSWERS is a JSON file. The
    exit status is 1 when an answer is wrong or missing.
    """
    from overlapkit.skill.evals.check import run

    return run(**given)


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@options.steps
@click.option(
    "--rank-from",
    type=click.Choice(["name", "json"]),
    help="Take ranks from the files' names, or from distributedInfo in them (tried first).",
)
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    metavar="N",
    help="Describe rank N in detail, not the slowest. JSON has the details of all.",
)
@options.configuration(
    "--config",
    "The run's configuration, a YAML file or a launch script (.sh, .bash, .slurm, .sbatch): "
    "parallel sizes identify dimensions.",
)
@options.stated
@options.reading
@options.as_json("overlapkit/trace/v1")
@options.html
@click.option(
    "--annotate",
    metavar="OUT",
    help="Also write the trace to OUT with tracks of exposed communication.",
)
@click.option(
    "--merge",
    is_flag=True,
    help="Each FILE is a document of trace --json, or a folder of them: merge them into that of "
    "the run.",
)
def trace(**given: Any) -> int:
    """Measure communication overlap in profiles, one FILE per rank.

    FILE is a trace of torch.profiler (.json, .json.gz, .json.zst), an Nsight Systems export (nsys
    export --type sqlite) or report (.nsys-rep, where nsys is installed), or a folder or an archive
    (.zip, .tar, .tar.gz) of such files.
    """
    from overlapkit.trace.command import run

    return run(**_read_by(given))


@cli.command()
@click.argument("base")
@click.argument("new")
@options.steps
@options.configuration("--config-base", "BASE's configuration; see --config of trace.")
@options.configuration(
    "--config-new", "NEW's configuration: the answer then lists the decisions that differ."
)
@options.stated
@options.te("a recent one is assumed")
@options.reading
@click.option(
    "--force", is_flag=True, help="Compare different runs: other GPU, other world size ..."
)
@options.as_json("overlapkit/compare/v1")
@options.html
def compare(**given: Any) -> int:
    """Explain why the median step of NEW differs from that of BASE.

    BASE and NEW are profiles: a trace file, or a folder with one per rank. The exit status is 1
    when NEW is slower by more than the spread of the steps, which takes three steps in both.
    """
    from overlapkit.trace.compare.command import run

    return run(**_read_by(given))


@cli.command(cls=_WithSubcommands)
@click.argument(
    "arguments",
    nargs=-1,
    metavar="[SCENARIO]... | CONFIG [KEY=VALUE]...",
    type=click.UNPROCESSED,
)
@options.from_megatron_lm
@click.option(
    "--as-written",
    is_flag=True,
    help="Train CONFIG although the rules refuse it, and show what happens: which tensors are "
    "wrong, by how much and from which step, beside the run with the remedy.",
)
@click.option(
    "--ranks",
    type=int,
    metavar="N",
    help="Number of processes: for CONFIG at most (8 by default), for scenarios that allow a "
    "choice exactly.",
)
@options.world_size
@options.gpu
@options.te("a recent one is assumed")
@options.reading
@options.env_file
@options.configuration("--config", "CONFIG, for scenarios that are named beside it.")
@click.option(
    "--link",
    metavar="RATE|none",
    help="Rate of the link between ranks, such as 400mbit. By default the rate is chosen so that "
    "communication takes about as long as compute.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What the ranks train on.",
)
@click.option("--steps", type=int, metavar="N", help="Timed steps of each variant.")
@click.option("--corpus", metavar="FILE", help="A text file to train on instead of synthetic data.")
@click.option(
    "--out", metavar="DIR", help="Write results.json, the profiles and report.html to DIR."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm"]),
    help="Run through nemo_run, in the folder that --out names.",
)
@click.option(
    "--slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the Slurm job: account, partition, nodes, gpus_per_node, time, "
    "container_image ...",
)
@click.option("--dry-run", is_flag=True, help="With --executor slurm: print the job's script.")
@click.option("--collect", metavar="FOLDER", help="Show the results of a finished run in FOLDER.")
@options.as_json("overlapkit/lab/v1")
def lab(**given: Any) -> int:
    """Prove a run, or overlap in general, by training here.

    CONFIG is what explain reads, for any number of GPUs. It is made small enough for a few
    processes on this machine, and keeps its structure. What was changed is said first. Then real
    Megatron-Core trains it, and its numbers are compared with those of the unpartitioned model in
    one process. Where the rules refuse CONFIG, that is the answer, unless --as-written is given.

    SCENARIO is one or more of dp, bucket, pp, tp, dp-pp, precision, silent, grid and predict, or
    all: claims about overlap in general. The default is dp and bucket.

    The exit status is 1 when a claim is not confirmed.
    """
    from overlapkit.lab.command import run
    from overlapkit.lab.request import LabRequest

    return run(LabRequest(**_read_by(given), debug="--debug" in sys.argv))


@click.command(cls=_Command)
@click.option(
    "--budget",
    default="30m",
    show_default=True,
    metavar="TIME",
    help="How long to hunt, such as 90s, 30m or 2h.",
)
@click.option(
    "--seed", type=int, metavar="N", help="Of the random numbers; by default another each time."
)
@options.configuration("--from", "Vary only a few features of this configuration.")
@click.option(
    "--ranks",
    type=int,
    metavar="N",
    help="Processes of each case, and with --from at most; by default 2, 4 and 8 in turn.",
)
@click.option("--cases", type=int, metavar="N", help="Try at most so many cases.")
@click.option(
    "--memory",
    metavar="FILE",
    help="Remember here what was tried, instead of overlapkit/lab-hunt.json in the user's cache.",
)
@click.option("--out", metavar="DIR", help="Write the configuration of each finding to DIR.")
@options.as_json("overlapkit/lab-hunt/v1")
def hunt(**given: Any) -> int:
    """Hunt for silent corruption in random configurations.

    Draws combinations of parallelism, schedules, overlap and model features that the rules allow,
    trains each of them on a few CPU ranks, and compares it with the unpartitioned model. A
    difference or an error is reduced to the smallest configuration that shows it. The exit status
    is 1 when there is a finding.
    """
    from overlapkit.lab.hunt.command import HuntRequest
    from overlapkit.lab.hunt.command import run as run_hunt

    return run_hunt(HuntRequest(around=given.pop("from"), **given))


@click.command(cls=_Command)
@options.overrides
@click.option("--model", metavar="NAME", help="A published model, such as llama3_70b, as CONFIG.")
@options.from_megatron_lm
@options.world_size
@options.reading
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What is measured.",
)
@click.option(
    "--ranks",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Processes, one for each GPU of this machine; collectives take several.",
)
@click.option(
    "--budget",
    default="5m",
    show_default=True,
    metavar="TIME",
    help="How long to measure, such as 90s or 10m.",
)
@click.option("--out", metavar="FILE", help="Write the rates to FILE; without, they are printed.")
@options.as_json("overlapkit/rates/v1")
def calibrate_here(**given: Any) -> int:
    """Measure rates of this machine: matrix products, attention, memory, collectives.

    CONFIG is what explain reads: the shapes are those of one of its ranks. Without it they are a
    grid that others lie between. The file is for overlapkit plan --rates.
    """
    from overlapkit.lab.calibrate.command import CalibrateRequest
    from overlapkit.lab.calibrate.command import run as run_calibrate

    return run_calibrate(CalibrateRequest(**_read_by(given)))


assert isinstance(lab, _WithSubcommands)
lab.subcommands["hunt"] = hunt
lab.subcommands["calibrate"] = calibrate_here


def main() -> NoReturn:
    """Run the command line; an error ends in one line on standard error and exit status 2."""
    debug = "--debug" in sys.argv
    open_standard_streams()
    status = 0
    try:
        with ends_on_signals():
            result: Any = cli.main(standalone_mode=False)
            sys.stdout.flush()
        status = result if isinstance(result, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except Exception as error:
        status = EXIT_BAD_INPUT
        if debug:
            import traceback

            traceback.print_exc()
        else:
            print(f"overlapkit: {InputError(_message(error))}", file=sys.stderr)
    sys.exit(status)


def _message(error: Exception) -> str:
    """What the user sees of an error, in one line."""
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

    remedy = foreign_megatron_bridge() or "a dependency is missing: reinstall overlapkit"
    return f"{error}; {remedy}"


if __name__ == "__main__":
    main()
