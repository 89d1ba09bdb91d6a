"""Precision and recall by hand, by loops, and where they must be 0 or 1."""

import numpy as np
import pytest

from genai_jax.evaluation import precision_recall as module
from genai_jax.evaluation.precision_recall import precision_recall


def points(n, seed, d=2, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def test_one_dimension_by_hand():
    real = np.array([[0.0], [1.0], [3.0]])  # with k = 1, balls of radius 1, 1 and 2
    samples = np.array([[-1.0], [-1.5], [5.0], [5.25]])  # of radius 1/2, 1/2, 1/4 and 1/4
    found = precision_recall(samples, real, k=1)
    assert found.precision == 2 / 4  # -1 and 5, on the edges of two balls
    assert found.recall == 0


@pytest.mark.parametrize("k", [1, 3])
def test_general_sets_are_those_of_loops(k, monkeypatch):
    samples, real = points(30, 0, shift=0.7), points(25, 1)

    def share(of, manifold):
        within = 0
        for x in of:
            within += any(
                np.linalg.norm(x - m)
                <= sorted(np.linalg.norm(m - o) for j, o in enumerate(manifold) if j != i)[k - 1]
                for i, m in enumerate(manifold)
            )
        return within / len(of)

    expected = (share(samples, real), share(real, samples))
    assert precision_recall(samples, real, k=k) == pytest.approx(expected)
    monkeypatch.setattr(module, "_CHUNK", 60)
    assert precision_recall(samples, real, k=k) == pytest.approx(expected)


def test_equal_sets_have_all_and_sets_far_apart_nothing():
    x = points(20, 0)
    assert precision_recall(x, x[::-1]) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_a_mode_that_is_left_out_costs_recall_and_an_invented_one_precision():
    one, other = points(40, 0), points(40, 1, shift=50.0)
    both = np.concatenate([one, other])
    dropped = precision_recall(one, both)
    assert dropped.precision == 1
    assert dropped.recall == 0.5
    assert precision_recall(both, one) == (0.5, 1)


def test_sets_smaller_than_their_balls_need_are_refused():
    with pytest.raises(ValueError, match="at least 4 sampled images; got 3"):
        precision_recall(points(3, 0), points(10, 1))
