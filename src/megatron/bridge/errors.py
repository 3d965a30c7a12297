"""The error for a configuration that must not run."""

from __future__ import annotations


class OverlapConfigError(AssertionError, ValueError):
    """A configuration that would fail, hang or train incorrectly.

    It is an AssertionError because callers of Megatron-Bridge catch that, and a ValueError because
    that is what it means.
    """
