"""Expansions of bash: from words to their values."""
