"""Rules about what a layer computes: its experts, and what of it is computed again."""
