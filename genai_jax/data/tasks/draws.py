"""A short stream of random choices: a function of (seed, purpose, number)."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from genai_jax.data.random_order import random_bits

T = TypeVar("T")

_MOST = 64  # choices of a stream


class Draws:
    """Random choices, one after the other, the same with every library and on every machine."""

    def __init__(self, seed: int, purpose: str, number: int) -> None:
        """Open a stream.

        Args:
            seed: Any integer.
            purpose: What is drawn; other purposes give independent choices.
            number: Of the stream; from 0 to 2^57 - 1.
        """
        if not 0 <= number < 1 << 57:
            raise ValueError(f"a number must lie in 0 ... 2^57 - 1; got {number}.")
        counters = np.uint64(number * _MOST) + np.arange(_MOST, dtype=np.uint64)
        self._bits = iter(random_bits(seed, purpose, counters).tolist())

    def below(self, n: int) -> int:
        """Choose one of 0 ... n - 1; of 64 bits, so that none is likelier by more than n / 2^64."""
        return int(next(self._bits) % n)

    def between(self, least: int, most: int) -> int:
        """Choose an integer; both ends may come."""
        return least + self.below(most - least + 1)

    def choose(self, options: Sequence[T]) -> T:
        """Choose one."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], k: int) -> tuple[T, ...]:
        """Choose k different ones, in random order (the beginning of a Fisher-Yates shuffle)."""
        left = list(options)
        for i in range(k):
            j = i + self.below(len(left) - i)
            left[i], left[j] = left[j], left[i]
        return tuple(left[:k])
