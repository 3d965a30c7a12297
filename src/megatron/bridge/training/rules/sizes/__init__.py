"""Sizes that must divide each other: layers into stages and chunks, a batch into microbatches."""
