"""Caches of prompts that were read before: what a new prompt has in common with one is not read."""

from typing import NamedTuple

import numpy as np

from genai_jax.types import PyTree


class Prefix(NamedTuple):
    """A text that was read.

    Attributes:
        tokens: Its ids.
        cache: Of one row, with all of them in it.
    """

    tokens: np.ndarray
    cache: PyTree


class Prefixes:
    """The caches that were used last.

    A prompt is read in chunks that end at places of their own, so that its numbers are the same to
    the last bit wherever reading begins: at the end of a chunk, or where the very same text ends.
    """

    def __init__(self, most: int, chunk: int, *, whole: bool) -> None:
        """Begin with none.

        Args:
            most: How many are kept.
            chunk: Tokens that are read at a time.
            whole: Whether a cache can only be gone on with where it ends, since its layers have
                forgotten what they saw before.
        """
        self._most, self._chunk, self._whole = most, chunk, whole
        self._kept: list[Prefix] = []  # the newest last

    def longest(self, tokens: np.ndarray) -> tuple[int, PyTree | None]:
        """Find the cache that spares the most reading, and say how much: (0, None) if none does."""
        best, spared = None, 0
        for prefix in self._kept:
            length = self._usable(prefix, tokens)
            if length > spared:
                best, spared = prefix, length
        if best is None:
            return 0, None
        self._kept = [prefix for prefix in self._kept if prefix is not best] + [best]
        return spared, best.cache

    def _usable(self, prefix: Prefix, tokens: np.ndarray) -> int:
        shared, length = _in_common(prefix.tokens, tokens), len(prefix.tokens)
        if shared == len(tokens) == length:
            return shared
        whole_chunks = shared - shared % self._chunk
        return whole_chunks if not self._whole or whole_chunks == length else 0

    def branch(self, tokens: np.ndarray) -> int:
        """Say where to keep a cache on the way, since others have gone on differently from there.

        Returns:
            A number of tokens, in whole chunks; 0 where caches can be gone on with from anywhere.
        """
        if not self._whole:
            return 0
        shared = max((_in_common(prefix.tokens, tokens) for prefix in self._kept), default=0)
        return shared - shared % self._chunk

    def keep(self, tokens: np.ndarray, cache: PyTree) -> None:
        """Keep a cache, and forget what was not used for longest."""
        same = (prefix.tokens.tobytes() == tokens.tobytes() for prefix in self._kept)
        if self._most and len(tokens) and not any(same):
            self._kept = [*self._kept, Prefix(tokens, cache)][-self._most :]


def _in_common(a: np.ndarray, b: np.ndarray) -> int:
    """Count the tokens with which two texts begin alike."""
    shortest = min(len(a), len(b))
    differ = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differ[0]) if differ.size else shortest
