"""What to ask for, and why."""
