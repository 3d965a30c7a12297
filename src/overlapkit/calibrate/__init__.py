"""Rates of the user's own machine, read from profiles of its training."""
