"""Runs of the lab through nemo_run, on this machine or on Slurm."""
