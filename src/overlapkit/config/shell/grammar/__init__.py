"""The grammar of bash: from text to commands."""
