"""overlapkit: communication overlap in Megatron training, explained and proven."""

__version__ = "0.2.0.dev0"
