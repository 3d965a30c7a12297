"""`overlapkit lab calibrate`: rates that are measured on this machine."""
