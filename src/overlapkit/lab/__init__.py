"""Proves overlap by running real Megatron-Core: what is hidden, and that the numbers stay."""
