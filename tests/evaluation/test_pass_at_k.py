"""pass@k: by enumeration of all choices, unbiased, and with an interval that covers."""

import itertools
import math

import numpy as np
import pytest

from genai_jax.evaluation.pass_at_k import estimate_pass_at_k, pass_at_k


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_it_is_the_share_of_choices_with_a_right_one(samples):
    for correct in range(samples + 1):
        right = [i < correct for i in range(samples)]
        for k in range(1, samples + 1):
            choices = list(itertools.combinations(right, k))
            share = sum(map(any, choices)) / len(choices)
            assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(200, 3, 100), (1000, 1, 10), (10_000, 7, 5000)])
def test_it_is_the_ratio_of_binomials_where_these_are_huge(n, c, k):
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)  # of integers, divided once
    assert pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-10)


def test_it_has_no_bias():
    """Its mean over the number of right samples is 1 - (1 - p)^k; of p = c / n it is not."""
    n, p = 6, 0.3
    for k in range(1, n + 1):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0), (0, 0, 1)])
def test_what_cannot_be_is_refused(n, c, k):
    with pytest.raises(ValueError, match="at least k samples"):
        pass_at_k(n, c, k)


def test_estimate_averages_over_tasks():
    counts = [(4, 0), (4, 1), (4, 4), (8, 2)]
    found = estimate_pass_at_k(counts, 2)
    assert found.k == 2
    assert found.mean == pytest.approx((0 + 0.5 + 1 + (1 - 15 / 28)) / 4)
    assert found == estimate_pass_at_k(counts, 2, seed=0)
    few = {estimate_pass_at_k(counts, 2, seed=seed, resamples=20) for seed in range(9)}
    assert len(few) > 1
    assert found.low < found.mean < found.high
    narrow = estimate_pass_at_k(counts, 2, level=0.5)
    assert found.low <= narrow.low < narrow.high <= found.high
    assert estimate_pass_at_k([(3, 3)] * 5, 1)[1:] == (1, 1, 1)


def test_interval_is_that_of_all_resamples():
    """Of three tasks the 27 resamples can be listed: the ends are their percentiles."""
    counts = [(2, 0), (2, 1), (2, 2)]
    means = [np.mean(some) for some in itertools.product((0.0, 0.5, 1.0), repeat=3)]
    found = estimate_pass_at_k(counts, 1, level=0.8, resamples=20_000)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.RandomState(0)
    covered = 0
    for trial in range(200):
        chances = rng.beta(1, 2, size=60)
        counts = [(5, int(rng.binomial(5, p))) for p in chances]
        found = estimate_pass_at_k(counts, 1, seed=trial, level=0.9, resamples=300)
        covered += found.low <= 1 / 3 <= found.high
    assert 0.83 <= covered / 200 <= 0.96


def test_estimates_need_tasks_and_sense():
    with pytest.raises(ValueError, match="at least one task"):
        estimate_pass_at_k([], 1)
    with pytest.raises(ValueError, match="must lie in"):
        estimate_pass_at_k([(1, 1)], 1, level=1.0)
    with pytest.raises(ValueError, match="at least k samples"):
        estimate_pass_at_k([(4, 1), (2, 1)], 3)
