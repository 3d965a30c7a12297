"""Megatron-LM's launch scripts and arguments, read into settings."""
