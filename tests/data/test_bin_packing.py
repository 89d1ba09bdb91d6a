"""Packing: everything once, nothing over the brim, and as few bins as the theorem says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.bin_packing import pack_best_fit


def packed(sizes, capacity):
    return [held.tolist() for held in pack_best_fit(np.array(sizes, np.int64), capacity)]


def test_each_goes_where_it_leaves_the_least_room():
    # By size: 7 | 6 | 4 fits beside 6 only | 3 fills 7 | 1 opens a bin.
    assert packed([3, 7, 1, 6, 4], 10) == [[1, 0], [3, 4], [2]]
    # The third would fit into the first too; the second is fuller. Equals keep their order.
    assert packed([5, 6, 3], 9) == [[1, 2], [0]]
    assert packed([2, 2, 2], 4) == [[0, 1], [2]]
    assert packed([], 4) == []


@given(st.lists(st.integers(1, 20), max_size=60))
def test_everything_is_packed_once_into_few_bins(sizes):
    bins = packed(sizes, 20)
    assert sorted(i for held in bins for i in held) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in held) for held in bins]
    assert all(0 < load <= 20 for load in loads)
    # Of any two bins the contents would not fit into one.
    assert all(a + b > 20 for n, a in enumerate(loads) for b in loads[:n])
    # At least the volume, and one bin for each of those over half.
    fewest = max(-(-sum(sizes) // 20), sum(size > 10 for size in sizes))
    assert 9 * len(bins) <= 11 * fewest + 36


def test_what_fits_nowhere_is_refused():
    for wrong in ([5], [0]):
        with pytest.raises(ValueError, match="sizes must be from 1 to the capacity 4"):
            packed(wrong, 4)
