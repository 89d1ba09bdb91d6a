"""What classifiers are asked: classes as they are, attributes without those of empty cells."""

import numpy as np
import pytest

from genai_jax.data.image_labels import LabelledRows, head_names, labels_from_attributes, labels_of
from genai_jax.data.images import ImageConfig, load_images

ATTRIBUTES = np.array([[[1, 5, 1], [0, 0, 0], [4, 0, 0], [0, 0, 0]]], np.int32)


def test_colour_and_size_of_an_empty_cell_are_not_asked():
    labels = labels_from_attributes(ATTRIBUTES)
    np.testing.assert_array_equal(labels, [[1, 5, 1, 0, -1, -1, 4, 0, 0, 0, -1, -1]])
    np.testing.assert_array_equal(labels_from_attributes(ATTRIBUTES[0]), labels[0])
    assert labels.dtype == np.int32


def test_classes_are_asked_as_they_are():
    data = load_images(ImageConfig(), seed=0)
    assert head_names(data) == (tuple("0123456789"),)
    rows = LabelledRows(data.validation)
    assert len(rows) == len(data.validation)
    assert set(rows[0]) == {"image", "label", "weight"}
    assert rows[len(rows)]["weight"] == 0
    read = [int(rows[i]["label"]) for i in range(len(rows))]
    np.testing.assert_array_equal(read, labels_of(data, "validation"))
    train = LabelledRows(data.train)
    np.testing.assert_array_equal(train[7]["image"], data.train[7]["image"])


def test_shapes_are_asked_cell_by_cell():
    data = load_images(ImageConfig(source="shapes"), seed=0)
    names = head_names(data)
    assert len(names) == 12
    assert names[:3] == names[9:]
    labels = labels_of(data, "validation")
    sizes = np.array([len(classes) for classes in names])
    assert (labels.max(axis=0) == sizes - 1).all()
    shapes = labels[:, ::3]
    assert (shapes.min(axis=0) == 0).all()
    empty = shapes == 0
    np.testing.assert_array_equal(labels[:, 1::3] == -1, empty)
    np.testing.assert_array_equal(labels[:, 2::3] == -1, empty)
    rows = LabelledRows(data.validation)
    np.testing.assert_array_equal(rows[3]["label"], labels[3])
    assert "tokens" not in rows[3]


def test_images_of_which_nothing_is_known_are_refused():
    class Nothing:
        class_names = ()
        vocabulary = ()

    with pytest.raises(ValueError, match="classes or attributes; these have none"):
        head_names.__wrapped__(Nothing())
