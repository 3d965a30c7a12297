"""Operators with the shapes of their inputs, and the device work that each of them launched."""
