"""The slow link between ranks and its kernel calls; imports no torch."""
