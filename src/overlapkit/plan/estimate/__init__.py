"""How long a step takes on a machine, and how much memory it needs."""
