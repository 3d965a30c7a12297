"""Tests overlap by training with real Megatron-Core: what is hidden, and that results are equal."""
