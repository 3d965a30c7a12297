"""Tokens to train on: the bytes of a text, or a small synthetic one; the same on every rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from overlapkit.errors import InputError
from overlapkit.input_file import read_input

VOCABULARY = 256
"""A token is a byte."""

LEAST_BYTES = 4096
"""Shortest text to sample from."""

MOST_BYTES = 256 << 20
"""Longest text: every rank keeps eight bytes for each of its bytes."""

_SYNTHETIC_TOKENS = 1 << 16


def synthetic() -> NDArray[np.int64]:
    """Tokens of a deterministic first-order Markov chain, which a model can learn."""
    generator = np.random.default_rng(2024)
    # Each token has four likely followers; one token in eight is noise.
    followers = generator.integers(VOCABULARY, size=(VOCABULARY, 4))
    choice = generator.integers(4, size=_SYNTHETIC_TOKENS)
    noise = generator.random(_SYNTHETIC_TOKENS) < 1 / 8
    other = generator.integers(VOCABULARY, size=_SYNTHETIC_TOKENS)
    tokens = np.zeros(_SYNTHETIC_TOKENS, dtype=np.int64)
    for i in range(1, _SYNTHETIC_TOKENS):
        tokens[i] = other[i] if noise[i] else followers[tokens[i - 1], choice[i]]
    return tokens


def read_text(path: str) -> bytes:
    """The bytes of a text file.

    Raises:
        InputError: it cannot be read, is too short to sample from, or longer than `MOST_BYTES`.
    """
    text = read_input(path, "text of --corpus", most=MOST_BYTES)
    if len(text) < LEAST_BYTES:
        raise InputError(
            f"--corpus {path}: the text has {len(text)} bytes; give one of at least {LEAST_BYTES}"
        )
    return text


def read(path: str) -> NDArray[np.int64]:
    """The tokens of a text file.

    Raises:
        InputError: as `read_text`.
    """
    return np.frombuffer(read_text(path), dtype=np.uint8).astype(np.int64)


def sample(tokens: NDArray[np.int64], index: int, length: int) -> NDArray[np.int64]:
    """Sample `index`: `length` + 1 tokens, of which inputs and labels are taken one apart.

    Consecutive samples start far apart in the text: the stride is a prime.
    """
    starts = max(1, len(tokens) - length - 1)
    start = (index * 7919) % starts
    return tokens.take(np.arange(start, start + length + 1) % len(tokens))
