"""The skill and the docs page, rendered from templates and the source that they speak of."""
