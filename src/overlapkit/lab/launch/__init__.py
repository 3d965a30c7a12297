"""Processes of a run: started, supervised, and why they failed."""
