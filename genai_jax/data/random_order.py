"""Random numbers by counter: a function of (seed, purpose, index), the same with every library.

NumPy may change what its generators draw from one version to the next; the order of the data of a
run must outlive that.
"""

import zlib

import numpy as np
from jaxtyping import Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def _mixed(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The output function of SplitMix64: a bijection whose every output bit feels every input bit.

    Reference: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of D. Stafford's variant 13.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(
    seed: int, purpose: str, indices: UInt64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """Draw 64 bits for each index.

    Args:
        seed: Of the run; any integer.
        purpose: What the numbers are for: different purposes get independent numbers.
        indices: Counters.
    """
    words = np.array([seed & _MASK, zlib.crc32(purpose.encode())], np.uint64)
    keys = _mixed(words + _GOLDEN)
    key = _mixed(keys[:1] + _GOLDEN) ^ keys[1:]
    return _mixed(key + (indices + np.uint64(1)) * _GOLDEN)


def permutation(seed: int, purpose: str, n: int) -> Int64[np.ndarray, " n"]:
    """Draw a permutation of 0 ... n-1.

    Args:
        seed: Of the run.
        purpose: What it is for, such as `documents of epoch 3`.
        n: How many things are put in order.
    """
    bits = random_bits(seed, purpose, np.arange(n, dtype=np.uint64))
    return np.argsort(bits, kind="stable").astype(np.int64)
