"""Images as rows: every one once an epoch, levels and floats to and fro, and splits apart."""

import hashlib

import jax
import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from genai_jax.data.image_rows import (
    ArrayExamples,
    ShuffledImages,
    Split,
    WholeImages,
    check_batch_fits,
    check_images,
    check_labels,
    class_balanced_order,
    divide,
    float_to_levels,
    levels_to_float,
    read_field,
)
from genai_jax.data.images import ImageConfig, load_images
from genai_jax.data.loader import Loader

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits():
    return load_images(ImageConfig(), seed=0)


def numbered_split(count):
    """Images of one pixel, whose level is their number, and whose label is twice that."""
    numbers = np.arange(count)
    images = numbers.astype(np.uint8).reshape(-1, 1, 1, 1)
    return Split(ArrayExamples(images, 2 * numbers.astype(np.int32)), numbers, 256)


def numbers_of(rows, which):
    return [int(rows[i]["label"]) // 2 for i in which]


def test_digits_are_those_of_scikit_learn(digits):
    truth = load_digits()
    found = {
        image.tobytes(): int(label)
        for split in SPLITS
        for image, label in zip(
            digits.levels_of(split), digits.field_of(split, "label"), strict=True
        )
    }
    assert found == {
        image.astype(np.uint8).tobytes(): int(label)
        for image, label in zip(truth.images, truth.target, strict=True)
    }
    assert digits.shape == (8, 8, 1) and digits.levels == 17
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    assert digits.vocabulary == () and digits.vocab_size == 0


def test_splits_of_digits_are_apart_and_fair(digits):
    counts = {split: np.bincount(digits.field_of(split, "label")) for split in SPLITS}
    assert {split: int(n.sum()) for split, n in counts.items()} == {
        "train": 1258,
        "validation": 180,
        "test": 359,
    }
    # No two scans are the same, so that none of the test split can be known from training.
    images = [image.tobytes() for split in SPLITS for image in digits.levels_of(split)]
    assert len(set(images)) == 1797
    whole = sum(counts.values())
    for n in counts.values():
        np.testing.assert_allclose(n, whole * n.sum() / 1797, atol=1.1)


def test_splits_of_digits_never_change(digits):
    """Every figure that was measured on them so far speaks of these images."""
    other = load_images(ImageConfig(), seed=7)
    assert other.content_digest == digits.content_digest
    for split in SPLITS:
        np.testing.assert_array_equal(other.levels_of(split), digits.levels_of(split))
    digest = hashlib.sha256(digits.levels_of("test").tobytes()).hexdigest()
    assert digest[:16] == "5516f4ab60ecdac0"
    assert digits.content_digest[:16] == "87ff0c9e40dc7e2c"


def test_rows_are_floats_with_labels(digits):
    row, held_out = digits.train[3], digits.validation[3]
    assert row.keys() == {"image", "label"} and held_out.keys() == {"image", "label", "weight"}
    assert row["image"].shape == (8, 8, 1) and row["image"].dtype == np.float32
    assert row["label"].shape == () and row["label"].dtype == np.int32
    assert held_out["weight"].shape == () and held_out["weight"].dtype == np.float32
    values = np.unique([digits.train[i]["image"] for i in range(300)])
    np.testing.assert_array_equal(values, np.arange(17, dtype=np.float32) / 8 - 1)
    unlabelled = load_images(ImageConfig(labels=False), seed=0)
    assert unlabelled.train[3].keys() == {"image"} and unlabelled.num_classes == 0
    np.testing.assert_array_equal(unlabelled.train[3]["image"], row["image"])
    with pytest.raises(ValueError, match="must have a 'label'; they have none"):
        unlabelled.field_of("test", "label")
    with pytest.raises(ValueError, match="must have a 'tokens'; they have none"):
        digits.field_of("test", "tokens")


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_holds_every_image_once(count, seed, epoch):
    rows = ShuffledImages(numbered_split(count), seed=seed)
    assert len(rows) == count
    numbers = numbers_of(rows, range(epoch * count, (epoch + 1) * count))
    assert sorted(numbers) == list(range(count))


def test_epochs_and_seeds_differ_and_nothing_depends_on_what_was_read():
    split = numbered_split(200)
    rows = ShuffledImages(split, seed=1)
    epochs = [numbers_of(rows, range(200 * e, 200 * e + 200)) for e in range(3)]
    epochs.append(numbers_of(ShuffledImages(split, seed=2), range(200)))
    for i, one in enumerate(epochs):
        for other in epochs[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    backward = ShuffledImages(split, seed=1)
    for i in reversed(range(600)):
        row = backward[i]
        assert int(row["label"]) == 2 * epochs[i // 200][i % 200]
        # Image and label belong together.
        np.testing.assert_array_equal(
            row["image"], levels_to_float(np.uint8(row["label"] // 2).reshape(1, 1, 1), 256)
        )


def test_whole_splits_are_in_order_and_filled_up():
    rows = WholeImages(numbered_split(5))
    assert len(rows) == 5 == len(list(rows))
    assert numbers_of(rows, range(8)) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert [float(rows[i]["weight"]) for i in range(12)] == [1.0] * 5 + [0.0] * 7


def test_empty_splits_are_refused():
    for kind in (WholeImages, lambda split: ShuffledImages(split, seed=0)):
        with pytest.raises(ValueError, match="must hold an image; got none"):
            kind(numbered_split(5)._replace(numbers=np.zeros(0, np.int64)))


def test_rows_are_grain_datasets(digits):
    labels = digits.train.map(lambda row: {"label": row["label"]})
    batches = labels.repeat().batch(4)
    expected = [int(digits.train[i]["label"]) for i in range(1300)]
    for step in (0, 7, 314):  # the last straddles two epochs
        assert batches[step]["label"].tolist() == expected[4 * step : 4 * step + 4]
    assert [int(row["label"]) for row in labels[5:9]] == expected[5:9]
    with pytest.raises(IndexError, match="from 0 on; got -1"):
        _ = digits.train[-1]


def test_batches_are_the_same_on_eight_devices(digits):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with (
        Loader(digits.validation, 64) as one,
        Loader(digits.validation, 64, sharding=sharding) as many,
    ):
        for step in (0, 2):
            whole, dealt = one.batch(step), many.batch(step)
            assert whole.keys() == dealt.keys() == {"image", "label", "weight"}
            for name, value in whole.items():
                np.testing.assert_array_equal(np.asarray(dealt[name]), value)
    assert whole["weight"].sum() == 180 - 128


@given(st.integers(2, 256))
def test_levels_and_floats_are_inverse(levels):
    every = np.arange(levels, dtype=np.uint8).reshape(1, -1, 1)
    values = levels_to_float(every, levels)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
    np.testing.assert_allclose(np.diff(values.ravel()), 2 / (levels - 1), rtol=1e-4)
    np.testing.assert_array_equal(float_to_levels(values, levels), every)
    # Up to almost half a step away, that is the nearest.
    shift = np.float32(0.98 / (levels - 1))
    for moved in (values - shift, values + shift):
        np.testing.assert_array_equal(float_to_levels(moved, levels), every)


def test_floats_outside_are_clipped_and_nan_is_refused():
    image = np.array([[[-7.0], [7.0], [np.inf]]], np.float32)
    assert float_to_levels(image, 17).ravel().tolist() == [0, 16, 16]
    with pytest.raises(ValueError, match="must hold numbers; got 1 NaN of 3 values"):
        float_to_levels(np.array([[[0.0], [np.nan], [1.0]]], np.float32), 17)
    for levels in (1, 257):
        with pytest.raises(ValueError, match=f"between 2 and 256; got {levels}"):
            levels_to_float(np.zeros((1, 1, 1), np.uint8), levels)


fractions = st.floats(0.01, 0.3)


@given(st.integers(1, 60), fractions, fractions)
def test_sides_hold_every_image_once(count, validation, test):
    order = np.random.default_rng(count).permutation(count)
    if count < 3:
        with pytest.raises(ValueError, match=rf"beside 1 for validation and 1 .* got {count} in"):
            divide(order, validation, test)
        return
    sides = divide(order, validation, test)
    assert sorted(np.concatenate(sides).tolist()) == list(range(count))
    assert all(len(side) and (np.diff(side) > 0).all() for side in sides)
    for side, share in zip(sides[1:], (validation, test), strict=True):
        assert len(side) == max(1, round(share * count))


def test_nothing_is_held_out_where_a_split_is_given():
    train, validation, test = divide(np.arange(10)[::-1], 0.2, 0.0)
    assert (train.tolist(), validation.tolist(), test.tolist()) == (
        list(range(8)),
        [8, 9],
        [],
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80))
def test_any_beginning_of_a_balanced_order_has_its_share_of_every_class(classes):
    labels = np.array(classes, np.int32)
    order = class_balanced_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    seen = np.cumsum(np.eye(5)[labels[order]], axis=0)
    wanted = np.arange(1, len(labels) + 1)[:, None] * np.bincount(labels, minlength=5) / len(labels)
    # Half an image each way of its own, and its part of the half images of the others.
    assert abs(seen - wanted).max() <= 0.5 + 5 / 2


def test_fields_of_generated_examples_are_read_one_by_one():
    data = load_images(ImageConfig("shapes:3", num_shapes=5), seed=0)
    assert data.levels_of("train").shape == (5, 32, 32, 3) and data.levels == 256
    tokens, attributes = (data.field_of("train", name) for name in ("tokens", "attributes"))
    assert data.vocab_size == 32 and tokens.shape == (5, 32) and attributes.shape == (5, 4, 3)
    seen = {tuple(data.train[i]["tokens"].tolist()) for i in range(5)}
    assert seen == {tuple(row) for row in tokens.tolist()}
    with pytest.raises(ValueError, match="must have a 'label'"):
        read_field(data._source.train, "label")
    larger = load_images(ImageConfig("shapes:3", num_shapes=5, size=64), seed=0)
    assert larger.shape == (64, 64, 3)
    # The same truth, drawn larger; another seed is another set.
    np.testing.assert_array_equal(larger.field_of("train", "attributes"), attributes)
    other = load_images(ImageConfig("shapes:4", num_shapes=5), seed=0)
    assert len({data.content_digest, larger.content_digest, other.content_digest}) == 3
    assert (other.levels_of("train") != data.levels_of("train")).any()


def test_summaries_say_what_was_read(digits):
    assert "digits: handwritten digits, 8x8, 1 channel of 17 levels, 10 classes" in digits.summary
    assert "train 1,258, validation 180, test 359" in digits.summary
    shapes = load_images(ImageConfig("shapes"), seed=0)
    assert "32x32, 3 channels of 256 levels, captions of 31 words" in shapes.summary
    assert "train 65,536, validation 1,024, test 2,048" in shapes.summary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "digit"}, "got 'digit'. Did you mean digits"),
        ({"source": "digits:3"}, "got 'digits:3'. Did you mean digits"),
        ({"source": "shapes:x"}, r"Did you mean shapes\[:SEED\]"),
        ({"source": "file:photos"}, "Did you mean files:FOLDER"),
        ({"source": "files:"}, "got 'files:'"),
        ({"source": "photos/*.png"}, "your own write files:photos"),
        ({"source": "cifar10"}, "write tfds:cifar10"),
        ({"size": -1}, "must not be negative; got -1"),
        ({"cache_megabytes": -1}, "must not be negative; got 0 and -1"),
        ({"num_shapes": 0}, "at least 1; got 0"),
        ({"validation_fraction": 0.0}, "between 0 and 1; got 0.0"),
        ({"test_fraction": 1.5}, "between 0 and 1; got 1.5"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "leave images to train on"),
    ],
)
def test_configs_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, "digits are 8x8 pixels of 1 channel; got `size` 16"),
        ({"channels": 3}, "digits are 8x8 .* and `channels` 3. Leave both at 0"),
        ({"source": "shapes", "channels": 1}, "shapes are 32x32 pixels of 3 channels"),
        ({"source": "shapes", "size": 16}, "at least 32 pixels; got 16"),
    ],
)
def test_drawn_images_have_their_own_size(options, message):
    with pytest.raises(ValueError, match=message):
        load_images(ImageConfig(**options), seed=0)


def test_config_is_read_from_the_command_line():
    config = tyro.cli(ImageConfig, args=["--source", "shapes:2", "--size", "64", "--no-labels"])
    assert config == ImageConfig("shapes:2", 64, labels=False)


def test_data_sets_smaller_than_a_batch_are_refused(digits):
    check_batch_fits(digits.train, 1258)
    with pytest.raises(
        ValueError, match=r"training split .* got 1258 images and `batch_size` 1259"
    ):
        check_batch_fits(digits.train, 1259)
    with pytest.raises(ValueError, match="the test split must hold at least a batch; got 359"):
        check_batch_fits(digits.test, 512, what="test split")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), r"\[n, 8, 8, 3\]; got \[2, 8, 8\]"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"got \[2, 8, 9, 3\]. Cut or resize"),
        (np.zeros((2, 8, 8, 1), np.uint8), "3 channels; got 1.$"),
        (np.zeros((2, 8, 8, 4), np.uint8), "got 4. Lay images with alpha over white"),
        (np.zeros((2, 8, 8, 3), np.int64), "uint8 levels or float32 .* got int64"),
        (np.zeros((2, 8, 8, 3), np.float64), "got float64"),
        (np.full((2, 8, 8, 3), 17, np.uint8), r"in \[0, 16\]; got \[17, 17\]. Levels are 0 to 16"),
        (np.full((2, 8, 8, 3), 255, np.float32), r"\[-1.0, 1.0\]; got .* Divide 8-bit values"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), "got .nan"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        check_images(array, (8, 8, 3), 17)


def test_arrays_that_are_images_pass(digits):
    check_images(digits.levels_of("test"), digits.shape, digits.levels)
    check_images(levels_to_float(digits.levels_of("test"), 17), digits.shape, 17)
    check_images(np.zeros((0, 8, 8, 1), np.uint8), digits.shape, 17)


def test_labels_out_of_range_are_refused():
    check_labels(np.array([0, 9]), 10)
    with pytest.raises(ValueError, match=r"in 0 \.\.\. 9; got 10. There are 10 classes"):
        check_labels(np.array([3, 10]), 10)
    with pytest.raises(ValueError, match=r"the label of x must lie in 0 \.\.\. 9; got -1"):
        check_labels(np.array([-1]), 10, what="the label of x")
    with pytest.raises(ValueError, match="must be integers; got float64"):
        check_labels(np.array([1.0]), 10)
