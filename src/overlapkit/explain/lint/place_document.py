"""A place of a user's setting, as the JSON documents have it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from overlapkit.config.places import Place
from overlapkit.output.console import encodable


class ExplainUserPlace(Struct, frozen=True, kw_only=True):
    """Where the user set something: a place in a file, or an override of the command line."""

    file: Annotated[
        str | None, Meta(description="as the user named it; `null` for an override or a flag")
    ]
    line: Annotated[
        int | None,
        Meta(description="of the key, the flag or the export, from 1; `null` where not known"),
    ]
    column: Annotated[
        int | None, Meta(description="its first character, from 1; `null` where not known")
    ]
    override: Annotated[
        str | None,
        Meta(description="the override or the flag of the command line; `null` for a file"),
    ]


def place_document(place: Place) -> ExplainUserPlace:
    """A place as documents have it."""
    return ExplainUserPlace(
        file=None if place.file is None else encodable(place.file),
        line=place.line,
        column=place.column,
        override=None if place.argument is None else encodable(place.argument),
    )
