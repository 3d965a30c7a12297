"""Ranges on the host: steps, iterations, and what launched a kernel."""
