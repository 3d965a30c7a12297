"""What was fixed, as the document of `overlapkit explain --json`."""

from __future__ import annotations

import msgspec

from overlapkit.explain.document import ExplainDocument, explain_document
from overlapkit.explain.lint.fix_document import ExplainFix, FixChange
from overlapkit.explain.lint.place_document import place_document
from overlapkit.fix.diff import unified_diff
from overlapkit.fix.mend import UNSET, Change, Fix, Mended
from overlapkit.output.numbers import plain


def fix_document(mended: Mended) -> ExplainDocument:
    """The document of the configuration with its changes, and the changes."""
    document = explain_document(mended.report)
    return msgspec.structs.replace(
        document, fixes=[_fix(fix) for fix in mended.fixes], diff=diff_of(mended)
    )


def diff_of(mended: Mended) -> str:
    """The changes of the file as a unified diff; empty without one."""
    return unified_diff(mended.before.file, mended.before.text, mended.after.text)


def _fix(fix: Fix) -> ExplainFix:
    return ExplainFix(
        rule=fix.decision.rule,
        knob=fix.decision.knob,
        fixed=not fix.why,
        changes=[_change(change) for change in fix.changes],
        why=fix.why or None,
    )


def _change(change: Change) -> FixChange:
    return FixChange(
        key=change.key,
        was_set=change.old is not UNSET,
        is_set=change.new is not UNSET,
        old=None if change.old is UNSET else plain(change.old),
        new=None if change.new is UNSET else plain(change.new),
        where=None if change.place is None else place_document(change.place),
    )
