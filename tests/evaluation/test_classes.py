"""Accuracies and confusions of predictions, counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.evaluation.classes import (
    agreement,
    confusion_counts,
    describe_attributes,
    describe_classes,
    make_predict,
)


def test_prediction_is_the_likeliest_class_of_every_head():
    table = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    images = table.reshape(5, 1, 7, 1)

    def logits(model, images):
        flat = images.reshape(len(images), -1) * model
        return flat[:, :3], flat[:, 3:]

    predict = make_predict(logits, jnp.float32(-1.0), batch_size=2)
    expected = np.stack([table[:, :3].argmin(1), table[:, 3:].argmin(1)], axis=1)
    np.testing.assert_array_equal(predict(images), expected)


def test_agreement_counts_what_is_wanted():
    predicted = np.array([[0, 1], [2, 2], [1, 0]])
    assert agreement(predicted, np.array([[0, 1], [2, 0], [1, 1]])) == pytest.approx(4 / 6)
    assert agreement(predicted, np.array([[[0], [-1]], [[0], [2]], [[-1], [-1]]])) == 2 / 3
    assert agreement(predicted[:, :1], np.array([0, 2, 2])) == pytest.approx(2 / 3)


def test_classes_are_described_with_counts():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 1, 0, 2])
    counts = [[2, 2, 0], [1, 2, 0], [0, 0, 1]]
    np.testing.assert_array_equal(confusion_counts(predicted, truth, 3), counts)
    text = describe_classes(predicted[:, None], truth, ("cat", "dog", "cow"))
    assert "62.50% (5 of 8 images)" in text
    assert "cat (2 of 4 right)" in text
    assert "dog for cat 2x, cat for dog 1x" in text
    assert "none for another" in describe_classes(truth[:, None], truth, ("cat", "dog", "cow"))
    # A class without images is not the hardest.
    without = describe_classes(predicted[:7, None], truth[:7], ("cat", "dog", "cow"))
    assert "hardest class: cat" in without


def test_attributes_are_counted_where_they_exist():
    truth = np.array([[1, 2, 0, -1], [1, 1, 0, -1]])
    predicted = np.array([[1, 2, 0, 5], [1, 0, 1, 5]])
    text = describe_attributes(predicted, truth, ("shape", "colour"))
    assert "shape:         75.00% right (3 of 4)" in text
    assert "colour:        50.00% right (1 of 2)" in text
    assert "all of it:     50.00% of images (1 of 2)" in text
