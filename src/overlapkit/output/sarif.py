"""The parts of a log of SARIF 2.1.0, which code scanning services and editors read.

The fields are those of the OASIS standard "Static Analysis Results Interchange Format (SARIF)
Version 2.1.0", sections 3.13 (log), 3.19 (tool), 3.27 (result) and 3.29 (physical location).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from overlapkit import __version__

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_FINGERPRINT = "overlapkit/v1"


def log(
    rules: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    *,
    help_uri: str,
    notifications: Sequence[dict[str, Any]] = (),
    successful: bool = True,
) -> dict[str, Any]:
    """A log of one run.

    Args:
        rules: that the results refer to by their index.
        results: what was found.
        help_uri: where the subject of the rules is documented.
        notifications: about what could not be examined.
        successful: whether everything could be examined that is not wrong in itself.
    """
    driver = {
        "name": "overlapkit",
        "version": __version__,
        "informationUri": help_uri,
        "rules": list(rules),
    }
    invocation = {
        "executionSuccessful": successful,
        "toolExecutionNotifications": list(notifications),
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": list(results),
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def fingerprints(*parts: str) -> dict[str, str]:
    """The fingerprint of a result, from what stays the same where lines of its file move."""
    return {_FINGERPRINT: hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]}


def location(file: str, line: int | None, column: int | None = None) -> dict[str, Any]:
    """A place in a file; the line and the column, from 1, where they are known."""
    region = {"startLine": line, "startColumn": column if line else None}
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri(file)}}
    if line:
        physical["region"] = {key: value for key, value in region.items() if value}
    return {"physicalLocation": physical}


def uri(file: str) -> str:
    """A file as a URI: relative to the current folder where it is below it."""
    path = Path(os.path.abspath(file))  # noqa: PTH100 - a link stays as the user named it
    here = Path.cwd()
    if path.is_relative_to(here):
        return quote(os.fsencode(path.relative_to(here).as_posix()))
    return "file://" + quote(os.fsencode(path.as_posix()))
