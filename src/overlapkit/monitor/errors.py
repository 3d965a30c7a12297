"""Why the monitor cannot do its work."""

from __future__ import annotations


class Unavailable(Exception):
    """Something that does not change while the job runs, with the reason as its text."""
