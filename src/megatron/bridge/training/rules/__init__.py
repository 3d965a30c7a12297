"""The rules of overlap, one file for each dimension, and what they read."""
