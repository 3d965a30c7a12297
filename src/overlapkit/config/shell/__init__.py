"""Bash, followed and never executed; knows nothing of Megatron."""
