"""Options and arguments that several commands take, each declared once.

Every one is a decorator that adds a parameter to a command; `as_json` and `page` take what differs
from command to command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import click

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

overrides: Decorator = click.argument(
    "arguments", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...", type=click.UNPROCESSED
)
"""A configuration, where there is one, and its overrides."""

from_megatron_lm: Decorator = click.option(
    "--from-megatron-lm",
    is_flag=True,
    help="Megatron-LM's arguments follow after --; or CONFIG is a launch script, whatever its "
    "name. One that ends in .sh, .bash, .slurm or .sbatch, or begins with #!, needs no option. It "
    "is read and never run.",
)

gpu: Decorator = click.option(
    "--gpu", metavar="NAME", help="The cluster's GPU, such as h100 or b200."
)

world_size: Decorator = click.option(
    "--world-size", type=int, metavar="N", help="Number of GPUs of the job."
)

world_sizes: Decorator = click.option(
    "--world-size",
    "world_sizes",
    type=int,
    multiple=True,
    metavar="N",
    help="Number of GPUs of the job. Give it twice to compare configurations on different numbers.",
)

READING = ("core", "bridge", "stack", "allow_unknown")
"""The parameters of `reading`: the fields of `overlapkit.config.reading.Reading`."""

_READING: tuple[Decorator, ...] = (
    click.option(
        "--core",
        metavar="VERSION",
        help="The job's megatron-core, or the tag of Megatron-LM, such as 0.18.2 or main. By "
        "default inferred from the configuration.",
    ),
    click.option(
        "--bridge", metavar="VERSION", help="The job's Megatron-Bridge, such as 0.5.1 or main."
    ),
    click.option(
        "--stack",
        metavar="PATH",
        help="Read the job's versions in a checkout of Megatron-Bridge or Megatron-LM, a virtual "
        "environment, or a folder of installed packages. --core, --bridge and --te win.",
    ),
    click.option(
        "--allow-unknown",
        is_flag=True,
        help="Pass over a key that looks like a misspelt knob, as over any other unknown key.",
    ),
)


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """--core, --bridge, --stack and --allow-unknown: how every configuration is read."""
    for option in reversed(_READING):
        command = option(command)
    return command


_SEVERAL: tuple[Decorator, ...] = (
    click.option(
        "--core",
        multiple=True,
        metavar="VERSION",
        help="The job's megatron-core, or the tag of Megatron-LM, such as 0.18.2 or main. By "
        "default inferred from the configuration. Several (repeated, or 0.17.1,0.18.2) or all: "
        "which of them accept CONFIG, and what differs.",
    ),
    click.option(
        "--bridge",
        multiple=True,
        metavar="VERSION",
        help="The job's Megatron-Bridge, such as 0.5.1 or main; several or all likewise.",
    ),
)


def readings(command: Callable[..., Any]) -> Callable[..., Any]:
    """`reading`, where --core and --bridge may name several versions."""
    for option in reversed((*_SEVERAL, *_READING[2:])):
        command = option(command)
    return command


def versions(command: Callable[..., Any]) -> Callable[..., Any]:
    """--core, --bridge and --stack, for a command that reads no configuration."""
    for option in reversed(_READING[:3]):
        command = option(command)
    return command


env_file: Decorator = click.option(
    "--env-file",
    metavar="FILE",
    help="The job's environment as NAME=value lines, instead of the current environment. It wins "
    "over env_vars of the configuration.",
)

fix: Decorator = click.option(
    "--fix",
    is_flag=True,
    help="Write the remedies of the findings into CONFIG: comments, order and formatting stay. "
    "Exit status 0 when no finding is left.",
)

diff: Decorator = click.option(
    "--diff",
    is_flag=True,
    help="Write nothing; print what --fix would change as a unified diff for git apply, and what "
    "it would leave. Exit status 1 when something would change.",
)


def stated(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the user says of communication that the names in a profile do not tell."""
    for option in reversed(_STATED):
        command = option(command)
    return command


_STATED: tuple[Decorator, ...] = (
    click.option(
        "--comm",
        multiple=True,
        metavar="REGEX[=OPERATION[:DIMENSION]]",
        help="Kernels whose name matches are communication. OPERATION is such as all_reduce, by "
        "default what the name says. Can be repeated.",
    ),
    click.option(
        "--group",
        multiple=True,
        metavar="NAME=DIMENSION",
        help="Process groups with this description or name (or size:N, of N ranks; or the id of a "
        "communicator of NCCL) are TP, DP, PP, CP, EP, embedding or other. Can be repeated.",
    ),
)


steps: Decorator = click.option(
    "--steps",
    default="all",
    show_default=True,
    metavar="all|N|A:B",
    help="Steps by number; A:B is from A up to but not including B.",
)


def te(otherwise: str) -> Decorator:
    """--te: which Transformer Engine the job has.

    Args:
        otherwise: what is done where neither it nor --stack gives one.
    """
    return click.option(
        "--te",
        metavar="assume|here|none|VERSION",
        help="The job's Transformer Engine: assume a recent one, look for it here, none, or a "
        f"version. By default that of --stack; without one {otherwise}.",
    )


def as_json(schema: str) -> Decorator:
    """--json: the answer as one JSON document of this schema."""
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print one JSON document ({schema})."
    )


def form(schema: str) -> Decorator:
    """--format, with --json as its short form: how the answer is printed; the parameter `form`.

    Args:
        schema: of the JSON document.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        chosen = click.option(
            "--format",
            "form",
            type=click.Choice(["text", "json", "github", "sarif"]),
            help=f"text (the default), one JSON document ({schema}), GitHub's annotations, or "
            "SARIF 2.1.0.",
        )
        short = click.option(
            "--json", "as_json", is_flag=True, help="The short form of --format json."
        )
        return chosen(short(command))

    return add


def chosen_form(form: str | None, *, as_json: bool) -> str:
    """The form that --format and --json name.

    Raises:
        UsageError: they contradict each other.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json is --format json: leave it or --format {form} out")
    return "json" if as_json else form or "text"


brief: Decorator = click.option(
    "--brief", is_flag=True, help="Print the verdict and the findings alone."
)

html: Decorator = click.option(
    "--html", metavar="OUT", help="Also write one self-contained HTML page to OUT."
)


def configuration(name: str, text: str) -> Decorator:
    """An option that names a configuration: a YAML file, or a launch script by its file name."""
    return click.option(name, metavar="CONFIG", help=text)
