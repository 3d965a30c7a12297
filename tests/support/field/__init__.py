"""Profiles as frameworks write them: a small machine that runs a program and records it."""
