"""The rules of overlap, one file a dimension, and what they look at."""
