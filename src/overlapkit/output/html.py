"""The templates of a page: no network, no script, every name escaped."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from overlapkit.output.numbers import FILTERS
from overlapkit.output.svg import path

_FLAG = re.compile(r"(?<![\w-])(--[a-z]\w*)")


def breakable(name: str) -> Markup:
    """A kernel's or file's name that a browser can break after each part of it."""
    text = str(escape(name))
    for end in ("::", "_", "/"):
        text = text.replace(end, f"{end}<wbr>")
    return Markup(text)


def flags(text: str) -> Markup:
    """A sentence in which no line ends within the dashes that a flag begins with."""
    return Markup(_FLAG.sub(r'<span class="flag">\1</span>', str(escape(text))))


@cache
def environment(package: str, **filters: Callable[..., Any]) -> Environment:
    """Templates of a package's folder `templates`, on top of those that all pages share.

    They may extend ``base.html`` and import the macros of ``parts.html``. Every value is escaped;
    a name that is not defined is an error. Numbers become text through the functions of
    `output.numbers`, under their names; `filters` are the package's own.
    """
    templates = Environment(
        loader=ChoiceLoader(
            [PackageLoader(package, "templates"), PackageLoader("overlapkit.output", "templates")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(FILTERS, path=path, breakable=breakable, flags=flags, **filters)
    return templates
