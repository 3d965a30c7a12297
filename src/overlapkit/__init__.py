"""overlapkit: communication overlap in Megatron training, explained and proven."""

__version__ = "0.1.0"
