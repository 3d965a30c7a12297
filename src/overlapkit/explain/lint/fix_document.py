"""The part of the JSON document that says what `--fix` and `--diff` change."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from overlapkit.explain.lint.place_document import ExplainUserPlace


class FixChange(Struct, frozen=True, kw_only=True):
    """A key that is changed."""

    key: Annotated[str, Meta(description="dotted; `env.NAME` for an environment variable")]
    was_set: Annotated[bool, Meta(description="whether the configuration set it")]
    is_set: Annotated[bool, Meta(description="whether it sets it after the change")]
    old: Annotated[Any, Meta(description="its value; `null` where it was not set")]
    new: Annotated[Any, Meta(description="its value; `null` where it is not set any more")]
    where: Annotated[
        ExplainUserPlace | None,
        Meta(description="where it is after the change; where it was, if it is removed"),
    ]


class ExplainFix(Struct, frozen=True, kw_only=True):
    """What `--fix` and `--diff` make of one finding."""

    rule: Annotated[str, Meta(description="id of the rule that found it")]
    knob: Annotated[str, Meta(description="the knob that it is about, dotted")]
    fixed: Annotated[bool, Meta(description="whether it is gone with the changes")]
    changes: Annotated[
        list[FixChange],
        Meta(
            description="the keys that are changed for it; empty where it goes with the changes "
            "for another, and where it is not fixed"
        ),
    ]
    why: Annotated[str | None, Meta(description="why it is not fixed; `null` where it is")]
