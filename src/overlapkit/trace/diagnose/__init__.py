"""What the measurements mean, and what to do about it."""
