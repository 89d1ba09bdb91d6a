"""Images as rows: integer levels become floats in [-1, 1], epochs are shuffled, splits are whole.

Level k of L is 2 k / (L - 1) - 1: black is -1, white is 1. Letters: n images, h height, w width,
c channels.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from genai_jax.data.random_order import permutation
from genai_jax.data.rows import NumberedRows, Row, Rows

Levels = UInt8[np.ndarray, "n h w c"]
Labels = Int32[np.ndarray, " n"]
Numbers = Int64[np.ndarray, " n"]
Sides = tuple[
    Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"], Int64[np.ndarray, " test"]
]


@runtime_checkable
class Examples(Protocol):
    """Images by number, with what is known of each: `image` as uint8 levels, and `label`, ..."""

    def example(self, i: int) -> Row:
        """Make example i."""
        ...


class ArrayExamples(NamedTuple):
    """Images that lie in memory, or in a file that is mapped into it.

    Attributes:
        images: Levels of all of them.
        labels: Their classes; None where they have none.
    """

    images: Levels
    labels: Labels | None = None

    def example(self, i: int) -> Row:
        """Give example i."""
        row = {"image": np.asarray(self.images[i])}
        if self.labels is not None:
            row["label"] = np.asarray(self.labels[i], np.int32)
        return row


class Split(NamedTuple):
    """The examples that belong to one side.

    Attributes:
        examples: Of all sides.
        numbers: Which of them are of this one, in their order.
        levels: L, values that a channel of a pixel can have.
    """

    examples: Examples
    numbers: Numbers
    levels: int

    def row(self, position: int) -> Row:
        """Make the row of one of its examples, the image as float32 in [-1, 1]."""
        row = self.examples.example(int(self.numbers[position]))
        return row | {"image": levels_to_float(row["image"], self.levels)}


@functools.cache
def _values(levels: int) -> Float32[np.ndarray, " levels"]:
    if not 2 <= levels <= 256:
        raise ValueError(f"`levels` must be between 2 and 256; got {levels}. 8 bits have 256.")
    return (2 * np.arange(levels) / (levels - 1) - 1).astype(np.float32)


def levels_to_float(
    images: UInt8[np.ndarray, "*n h w c"], levels: int
) -> Float32[np.ndarray, "*n h w c"]:
    """Map levels 0 ... L-1 onto [-1, 1]: level k is 2 k / (L - 1) - 1."""
    return _values(levels)[images]


def float_to_levels(
    images: Float32[np.ndarray, "*n h w c"], levels: int
) -> UInt8[np.ndarray, "*n h w c"]:
    """Map [-1, 1] onto the nearest levels 0 ... L-1: the inverse of `levels_to_float`.

    What lies outside, as samples may, is clipped.

    Raises:
        ValueError: If there is a NaN, which has no nearest level.
    """
    if np.isnan(images).any():
        raise ValueError(
            f"an image must hold numbers; got {int(np.isnan(images).sum())} NaN of {images.size} "
            "values. Look for the step at which the samples or the loss became NaN."
        )
    scaled = (images.astype(np.float64) + 1) / 2 * (levels - 1)
    return np.rint(np.clip(scaled, 0, levels - 1)).astype(np.uint8)


class ShuffledImages(NumberedRows):
    """A split for training: epoch after epoch without end, each in an order of its own.

    The order of epoch e is a function of (seed, e); every image is seen once in an epoch.
    """

    def __init__(self, split: Split, *, seed: int) -> None:
        """Plan the order; no image is read yet.

        Args:
            split: The images.
            seed: Of the order.

        Raises:
            ValueError: If there are none.
        """
        super().__init__()
        if not len(split.numbers):
            raise ValueError("a training split must hold an image; got none.")
        self._split, self._seed = split, seed
        # Two, since a batch may straddle the end of an epoch.
        self._order = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> Numbers:
        return permutation(self._seed, f"images of epoch {epoch}", len(self))

    def __len__(self) -> int:
        return len(self._split.numbers)

    def _row(self, i: int) -> Row:
        epoch, position = divmod(i, len(self))
        return self._split.row(int(self._order(epoch)[position]))


class WholeImages(NumberedRows):
    """A split from its first image to its last, for validation and test.

    Every row has a `weight`: 1 for its images; 0 for rows past the end, so that a last batch can be
    as large as the others. Those hold the first images once more, so that nothing computed on them
    is out of the ordinary.
    """

    def __init__(self, split: Split) -> None:
        """Plan the rows; no image is read yet.

        Raises:
            ValueError: If there are none.
        """
        super().__init__()
        if not len(split.numbers):
            raise ValueError(
                "a validation or test split must hold an image; got none. Give more images, or a "
                "larger fraction."
            )
        self._split = split

    def __len__(self) -> int:
        return len(self._split.numbers)

    def _row(self, i: int) -> Row:
        row = self._split.row(i % len(self))
        return row | {"weight": np.asarray(i < len(self), np.float32)}


def read_levels(split: Split) -> Levels:
    """Read the images of a split as integers, in its order."""
    if isinstance(split.examples, ArrayExamples):
        return np.asarray(split.examples.images[split.numbers])
    return np.stack([row["image"] for row in _examples(split)])


def read_field(split: Split, name: str) -> Int32[np.ndarray, "n *shape"]:
    """Read `label`, `tokens` or `attributes` of a split, in its order.

    Raises:
        ValueError: If its images have none.
    """
    if isinstance(split.examples, ArrayExamples) and name == "label":
        if split.examples.labels is not None:
            return np.asarray(split.examples.labels[split.numbers])
    else:
        rows = [row.get(name) for row in _examples(split)]
        if all(value is not None for value in rows):
            return np.stack([value for value in rows if value is not None])
    raise ValueError(
        f"the images must have a {name!r}; they have none. Digits and folders named for classes "
        "have `label`; shapes have `tokens` and `attributes`."
    )


def _examples(split: Split) -> Iterator[Row]:
    return (split.examples.example(int(number)) for number in split.numbers)


class ImageSource(NamedTuple):
    """What a source of images gives.

    Attributes:
        train: The split that is trained on.
        validation: The split that choices are made on.
        test: The split that is reported, once.
        shape: (h, w, c) of every image.
        class_names: Of the labels; none where there are none.
        vocabulary: Words of the captions by token id, the first being the padding; none where there
            are none.
        content_digest: Of all that the images depend on, in hexadecimal.
        description: What was read, and what was left out, in lines for human eyes.
    """

    train: Split
    validation: Split
    test: Split
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    content_digest: str
    description: str


def divide(order: Numbers, validation_fraction: float, test_fraction: float) -> Sides:
    """Cut an order of images into (train, validation, test), each sorted.

    The first of them are for test, the next for validation, at least one for each; a fraction of 0
    holds out none.

    Raises:
        ValueError: If there is not an image for each side.
    """
    validation, test = (
        max(1, round(fraction * len(order))) if fraction else 0
        for fraction in (validation_fraction, test_fraction)
    )
    if len(order) <= test + validation:
        raise ValueError(
            f"there must be images to train on beside {validation} for validation and {test} for "
            f"test; got {len(order)} in all. Give more images that differ, or smaller fractions."
        )
    sides = np.split(order, [test, test + validation])
    return np.sort(sides[2]), np.sort(sides[1]), np.sort(sides[0])


def class_balanced_order(labels: Labels) -> Numbers:
    """Shuffle images so that any stretch of the order has every class by its share.

    The order is fixed: it is the same for every seed, so that runs share their splits.
    """
    places = np.empty(len(labels), np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank = np.argsort(permutation(0, f"images of class {label}", len(members)))
        places[members] = (rank + 0.5) / len(members)
    return np.argsort(places, kind="stable").astype(np.int64)


def check_batch_fits(rows: Rows, batch_size: int, *, what: str = "training split") -> None:
    """Refuse a data set that is smaller than a batch, which would hold images twice.

    Raises:
        ValueError: If it is.
    """
    if len(rows) < batch_size:
        raise ValueError(
            f"the {what} must hold at least a batch; got {len(rows)} images and `batch_size` "
            f"{batch_size}. Choose a batch of at most {len(rows)}, or give more images."
        )


def check_images(
    images: np.ndarray, shape: tuple[int, int, int], levels: int, *, what: str = "images"
) -> None:
    """Refuse an array of images that is not what it should be.

    Args:
        images: [n, h, w, c]; unsigned integers, levels 0 ... L-1; or float32 in [-1, 1].
        shape: (h, w, c) that each must have.
        levels: L, of integers.
        what: What they are, for the message.

    Raises:
        ValueError: If size, channels, dtype or range is another.
    """
    h, w, c = shape
    if images.ndim != 4 or images.shape[1:3] != (h, w):
        raise ValueError(
            f"{what} must be [n, {h}, {w}, {c}]; got {list(images.shape)}. "
            "Cut or resize them first."
        )
    if images.shape[3] != c:
        alpha = " Lay images with alpha over white first." if images.shape[3] in (2, 4) else ""
        raise ValueError(
            f"{what} must have {c} channel{'s' * (c > 1)}; got {images.shape[3]}.{alpha}"
        )
    if images.dtype == np.float32:
        low, high, scale = -1.0, 1.0, "Divide 8-bit values by 127.5 and subtract 1."
    elif images.dtype == np.uint8:
        low, high, scale = 0, levels - 1, f"Levels are 0 to {levels - 1}."
    else:
        raise ValueError(
            f"{what} must be uint8 levels or float32 in [-1, 1]; got {images.dtype}. Convert them."
        )
    if images.size and not (images.min() >= low and images.max() <= high):
        raise ValueError(
            f"{what} must lie in [{low}, {high}]; got [{images.min()}, {images.max()}]. {scale}"
        )


def check_labels(labels: np.ndarray, num_classes: int, *, what: str = "labels") -> None:
    """Refuse class labels that are not integers 0 ... num_classes-1.

    Raises:
        ValueError: If one is not.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be integers; got {labels.dtype}.")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise ValueError(
            f"{what} must lie in 0 ... {num_classes - 1}; got {int(labels[wrong][0])}. "
            f"There are {num_classes} classes."
        )
