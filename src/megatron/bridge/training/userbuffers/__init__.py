"""Transformer Engine's userbuffers: their settings, what it accepts, and the facts for that."""
