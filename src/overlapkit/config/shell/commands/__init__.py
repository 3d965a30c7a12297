"""The commands of bash itself, and programs that only turn text into text."""
