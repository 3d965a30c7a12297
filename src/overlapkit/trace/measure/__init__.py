"""From device work to exposed time, by dimension and by collective."""
