"""Other launchers over Megatron-Core, read into the same settings.

Each launcher has a file here, with what it passes on, its own defaults and where they are known
from. What a launcher decides that cannot be read is said; nothing about it is guessed.
"""
