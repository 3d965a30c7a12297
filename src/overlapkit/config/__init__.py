"""Readers: from the files and arguments that configure a run to the run that they describe."""
