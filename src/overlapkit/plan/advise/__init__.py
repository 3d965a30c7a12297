"""What to request, and why."""
