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
    help="CONFIG is a launch script of Megatron-LM, which is read and never run; or Megatron-LM's "
    "arguments follow after --.",
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

core: Decorator = click.option(
    "--core",
    metavar="VERSION",
    help="The job's megatron-core, or the tag of Megatron-LM, such as 0.18.2 or main. By default "
    "inferred from the configuration.",
)

bridge: Decorator = click.option(
    "--bridge", metavar="VERSION", help="The job's Megatron-Bridge, such as 0.5.1 or main."
)

env_file: Decorator = click.option(
    "--env-file",
    metavar="FILE",
    help="The job's environment as NAME=value lines, instead of the current environment.",
)

steps: Decorator = click.option(
    "--steps",
    default="all",
    show_default=True,
    metavar="all|N|A:B",
    help="Steps by number; A:B is from A up to but not including B.",
)


def te(default: str | None) -> Decorator:
    """--te: which Transformer Engine the job has.

    Args:
        default: its value where it is not given; None leaves the choice to the command.
    """
    text = (
        "The job's Transformer Engine: assume a recent one, look for it here, none, or a version."
    )
    if default is None:
        text += " By default it is looked for where a GPU is visible, and else assumed."
    return click.option(
        "--te",
        default=default,
        show_default=default is not None,
        metavar="assume|here|none|VERSION",
        help=text,
    )


def as_json(schema: str) -> Decorator:
    """--json: the answer as one JSON document of this schema."""
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print one JSON document ({schema})."
    )


html: Decorator = click.option(
    "--html", metavar="OUT", help="Also write one self-contained HTML page to OUT."
)


def configuration(name: str, text: str) -> Decorator:
    """An option that names a configuration: a YAML file, or a launch script by its file name."""
    return click.option(name, metavar="CONFIG", help=text)
