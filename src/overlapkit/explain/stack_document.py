"""The versions that an answer is for, in JSON documents and in words."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from megatron.bridge.training.versions import Stack
from overlapkit.config.reading import StackBasis, StackSource


class JobStack(Struct, frozen=True, kw_only=True):
    """The versions whose rules were applied."""

    core: Annotated[
        str | None, Meta(description="megatron-core's, or the tag of Megatron-LM of that number")
    ]
    bridge: Annotated[
        str | None, Meta(description="Megatron-Bridge's; `null` for a run of Megatron-LM")
    ]
    source: Annotated[
        StackSource,
        Meta(
            description="how they are known: `given` on the command line, in the checkout or "
            "installation at `path`, from the `fields` of the configuration, or `unknown`, where "
            "the newest known ones are taken"
        ),
    ]
    candidates: Annotated[
        list[str],
        Meta(
            description="the megatron-core versions that the configuration may be for, oldest "
            "first; several where its fields fit several, empty where nothing shows them"
        ),
    ]
    path: Annotated[
        str | None, Meta(description="the checkout or installation of `--stack`; `null` without")
    ]


def stack_document(basis: StackBasis) -> JobStack:
    """The versions of an answer as JSON documents contain them."""
    return JobStack(
        core=basis.stack.core,
        bridge=basis.stack.bridge,
        source=basis.source,
        candidates=[stack.core for stack in basis.candidates if stack.core is not None],
        path=basis.path,
    )


def stack_text(basis: StackBasis) -> str:
    """The versions whose rules were applied, and how they are known."""
    return configured_for(stack_document(basis))


def configured_for(stack: JobStack) -> str:
    """The same, of a document."""
    series = [_series(core) for core in stack.candidates]
    if stack.source == "fields" and len(series) > 1:
        return f"core {', '.join(series[:-1])} or {series[-1]}, by its fields"
    how = {
        "path": f"as in {stack.path}",
        "given": "given" if stack.path is None else f"given and as in {stack.path}",
        "fields": "by its fields",
        "unknown": "assumed: see --core",
    }
    return f"{versions_text(stack)}, {how[stack.source]}"


def versions_text(stack: Stack | JobStack) -> str:
    """Versions in words: ``0.5.1 on core 0.18.2``."""
    core = f"core {stack.core}"
    return core if stack.bridge is None else f"{stack.bridge} on {core}"


def _series(core: str) -> str:
    """A version without its patch release: the fields of a file show no more."""
    return ".".join(core.split(".")[:2])
