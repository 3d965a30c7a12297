"""Why the step of one profile differs from that of another."""
