"""Two-sample accuracies by hand, by loops, and where they must be 0, 1/2 or 1."""

import numpy as np
import pytest

from genai_jax.evaluation.two_sample import (
    nearest_neighbour_accuracy,
    train_on_samples_test_on_real,
)


def points(n, seed, d=4, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def test_one_dimension_by_hand():
    real, samples = np.array([[0.0], [1.0], [10.0]]), np.array([[1.5], [2.5], [9.0]])
    # 0 -> 1 own; 1 -> 1.5 other; 10 -> 9 other; 1.5 -> 1 other; 2.5 -> 1.5 own; 9 -> 10 other.
    found = nearest_neighbour_accuracy(samples, real)
    assert found == pytest.approx((2 / 6, 1 / 3, 1 / 3))


def test_general_sets_are_those_of_loops():
    samples, real = points(30, 0, shift=0.3), points(30, 1)
    pooled, own = np.concatenate([samples, real]), np.repeat([0, 1], 30)
    distances = np.linalg.norm(pooled[:, None] - pooled, axis=-1)
    np.fill_diagonal(distances, np.inf)
    right = own[distances.argmin(1)] == own
    found = nearest_neighbour_accuracy(samples, real)
    assert found == pytest.approx((right.mean(), right[30:].mean(), right[:30].mean()))


def test_sets_far_apart_are_told_apart_and_copies_give_themselves_away():
    x = points(20, 0)
    assert nearest_neighbour_accuracy(x, x + 100).accuracy == 1
    assert nearest_neighbour_accuracy(x[::-1].copy(), x).accuracy == 0


def test_equally_near_neighbours_count_half_so_that_no_set_is_preferred():
    x = np.zeros((5, 2))
    assert nearest_neighbour_accuracy(x, x) == (0.5, 0.5, 0.5)


def test_one_distribution_gives_a_half_within_its_deviation():
    n, draws = 100, 100
    values = [
        nearest_neighbour_accuracy(points(n, 2 * i), points(n, 2 * i + 1)).accuracy
        for i in range(draws)
    ]
    spread = 0.5 / np.sqrt(2 * n)
    assert abs(np.mean(values) - 0.5) < 4 * spread / np.sqrt(draws)
    assert np.std(values) == pytest.approx(spread, rel=0.5)  # neighbours are not independent


def test_samples_that_crowd_together_are_recognised_and_the_real_around_them_are_not():
    real = points(200, 0)
    samples = np.repeat(real[:20] + 0.01, 10, axis=0) + 1e-3 * points(200, 1)
    found = nearest_neighbour_accuracy(samples, real)
    assert found.samples == 1  # each has nine others beside it
    assert found.real <= 0.9  # the first 20 have a sample beside them
    assert found.accuracy == pytest.approx((found.samples + found.real) / 2)


def test_sets_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"got 4 samples and 5 real images\. Take 4 of each\."):
        nearest_neighbour_accuracy(points(4, 0), points(5, 1))


def labelled(n, seed, shift=4.0):
    labels = np.arange(n) % 3
    return points(n, seed) + shift * np.eye(4)[labels], labels


def test_labelled_samples_of_the_right_classes_teach_the_real_ones():
    samples, labels = labelled(90, 0)
    real, truth = labelled(60, 1)
    right = train_on_samples_test_on_real(samples, labels, real, truth)
    assert right > 0.95
    # Wrong labels teach wrong answers, always the same ones.
    wrong = train_on_samples_test_on_real(samples, (labels + 1) % 3, real, truth)
    assert wrong < 0.05
    assert train_on_samples_test_on_real(samples, labels, real, (truth + 1) % 3) < 0.05


def test_order_does_not_matter_and_a_single_class_is_always_guessed():
    samples, labels = labelled(90, 0, shift=1.0)
    real, truth = labelled(60, 1, shift=1.0)
    order = np.random.default_rng(0).permutation(90)
    assert train_on_samples_test_on_real(
        samples, labels, real, truth
    ) == train_on_samples_test_on_real(samples[order], labels[order], real, truth)
    only = labels == 2
    guessed = train_on_samples_test_on_real(samples[only], labels[only], real, truth)
    assert guessed == pytest.approx(1 / 3)
