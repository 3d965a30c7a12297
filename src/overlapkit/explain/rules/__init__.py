"""The command `overlapkit rules`: every rule, or one of them in full."""
