"""The slow link between ranks and its kernel calls; does not import torch."""
