"""The JSON document of `overlapkit translate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from overlapkit.config.emit.forms import Form
from overlapkit.config.run import Framework
from overlapkit.explain.stack_document import JobStack, stack_document
from overlapkit.output.numbers import plain
from overlapkit.output.printable import all_printable
from overlapkit.translate.agreement import Kind
from overlapkit.translate.translation import Translation


class TranslateLeftOut(Struct, frozen=True, kw_only=True):
    """A setting that the form does not express."""

    key: Annotated[str, Meta(description="the key, keys, flag or variables")]
    why: Annotated[str, Meta(description="why it is not in the text")]


class TranslateDisagreement(Struct, frozen=True, kw_only=True):
    """One thing that `explain` says differently of the run and of its translation."""

    kind: Annotated[
        Kind,
        Meta(
            description="`knob`: a key of `effective`; `env`: a variable of `launch_env`; "
            "`finding`: one that only one of them has"
        ),
    ]
    key: Annotated[str, Meta(description="dotted; `env.NAME` for a variable")]
    before: Annotated[
        Any, Meta(description="its value in the run; for a finding its outcome, or `null`")
    ]
    after: Annotated[Any, Meta(description="the same in the translation")]
    reason: Annotated[str, Meta(description="why; empty where no decision says so")]
    rule: Annotated[
        str | None,
        Meta(description="the rule of a finding, of the translation where both have one"),
    ]
    rule_before: Annotated[
        str | None,
        Meta(description="the rule of the run's finding about the same knob, where both have one"),
    ]
    framework: Annotated[
        Framework | None,
        Meta(description="the framework whose own rule that is; `null` for a rule of both"),
    ]


class TranslateDocument(Struct, frozen=True, kw_only=True):
    """The same run in another form."""

    schema: Annotated[
        Literal["overlapkit/translate/v1"], Meta(description="name and version of this document")
    ] = "overlapkit/translate/v1"
    config: Annotated[str, Meta(description="the configuration, as the command line names it")]
    framework: Annotated[Framework, Meta(description="of the configuration")]
    to: Annotated[Form, Meta(description="the form of `text`")]
    stack: Annotated[JobStack, Meta(description="the versions whose rules were applied to both")]
    world_size: Annotated[int, Meta(description="GPUs of the job that both were explained for")]
    text: Annotated[
        str, Meta(description="the run in the form, with `left_out` and `differs` as comments")
    ]
    left_out: Annotated[list[TranslateLeftOut], Meta(description="what the form does not express")]
    differs: Annotated[
        list[TranslateDisagreement],
        Meta(description="what `explain` says differently of the two; empty where they agree"),
    ]
    notes: Annotated[list[str], Meta(description="what was assumed in reading the configuration")]


def translate_document(translation: Translation) -> TranslateDocument:
    """The translation as the document `overlapkit/translate/v1`."""
    before = translation.before
    document = TranslateDocument(
        config=before.source,
        framework=before.framework,
        to=translation.form,
        stack=stack_document(before.basis),
        world_size=translation.world_size,
        text="",
        left_out=[TranslateLeftOut(key=key, why=why) for key, why in translation.left_out],
        differs=[
            TranslateDisagreement(
                kind=each.kind,
                key=each.key,
                before=plain(each.before),
                after=plain(each.after),
                reason=each.reason,
                rule=each.rule,
                rule_before=each.rule_before,
                framework=each.framework,
            )
            for each in translation.disagreements
        ],
        notes=list(before.launch.notes) if before.launch is not None else [],
    )
    # The text has line breaks, which a printable text has not.
    return _with_text(all_printable(document), translation.text)


def _with_text(document: TranslateDocument, text: str) -> TranslateDocument:
    from msgspec.structs import replace

    return replace(document, text=text)
