"""Remedies written into the user's own file: `overlapkit explain --fix` and `--diff`."""
