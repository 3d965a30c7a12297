"""Checks of Megatron-LM's argument parser; `megatron_lm_rules` applies them."""
