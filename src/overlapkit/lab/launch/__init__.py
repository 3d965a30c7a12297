"""Processes of a run: starts and supervises them, and determines why they failed."""
