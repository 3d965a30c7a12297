"""The answer as a linter gives it: the order, and forms that other programs read."""
