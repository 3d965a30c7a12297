"""Measures communication overlap in a profile, and finds what made a step slower."""
