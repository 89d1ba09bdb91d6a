"""Captioned shapes: pictures of one to three coloured shapes, drawn from exact truth.

Example i is a function of (seed, purpose, i). Only additions, products, quotients and square roots
are used, which every machine rounds alike: the same bytes everywhere.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8, UInt64

from genai_jax.data.image_rows import ImageSource, Split
from genai_jax.data.random_order import random_bits
from genai_jax.data.rows import Row
from genai_jax.data.shape_captions import (
    CELLS,
    COLOURS,
    MAX_OBJECTS,
    NUM_CAPTION_DRAWS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Attributes,
    check_attributes,
    encode_caption,
    write_caption,
)

_RGB = np.array(
    [
        (230, 40, 40),  # red
        (245, 220, 40),  # yellow
        (40, 180, 60),  # green
        (60, 210, 230),  # cyan
        (50, 80, 230),  # blue
        (225, 60, 210),  # magenta
    ],
    np.float64,
)
_RADII = (0.19, 0.35)  # of small and large shapes, in cells
_JITTER = 0.09  # of the centre, in cells, either way
_DARKEST, _LIGHTEST = 40, 190  # of the background, a grey
_OBJECT_DRAWS = 1 + len(CELLS) + 3 * MAX_OBJECTS
NUM_LOOK_DRAWS = 1 + 2 * len(CELLS)
_DRAWS = _OBJECT_DRAWS + NUM_LOOK_DRAWS + NUM_CAPTION_DRAWS
_MIN_SIZE = 32
_LEVELS = 256
_FORMAT = 1
NUM_VALIDATION, NUM_TEST = 1024, 2048

Offsets = Float64[np.ndarray, " pixels"]
Coverage = Float64[np.ndarray, "pixels pixels"]


class ShapeExample(NamedTuple):
    """A picture and all that is to be said about it.

    Attributes:
        image: Levels, RGB.
        caption: In English.
        attributes: Of each cell: shape + 1 or 0 for none, colour, size.
    """

    image: UInt8[np.ndarray, "size size 3"]
    caption: str
    attributes: Attributes


def make_example(seed: int, purpose: str, index: int, *, size: int = 32) -> ShapeExample:
    """Make example `index` of one to three objects, each in a cell of its own.

    Args:
        seed: Of the set.
        purpose: Which examples: those of different purposes are drawn independently.
        index: Number of the example, from 0 on.
        size: Height and width in pixels.
    """
    counters = np.uint64(index * _DRAWS) + np.arange(_DRAWS, dtype=np.uint64)
    bits = random_bits(seed, f"shapes for {purpose}", counters)
    objects, look, words = np.split(bits, [_OBJECT_DRAWS, _OBJECT_DRAWS + NUM_LOOK_DRAWS])
    attributes = _draw_attributes(objects)
    return ShapeExample(
        render(attributes, look, size=size), write_caption(attributes, words), attributes
    )


def _draw_attributes(draws: UInt64[np.ndarray, " draws"]) -> Attributes:
    number = 1 + int(draws[0]) % MAX_OBJECTS
    cells = np.argsort(draws[1 : 1 + len(CELLS)], kind="stable")[:number]
    kinds = np.array([len(SHAPES), len(COLOURS), len(SIZES)], np.uint64)
    drawn = (draws[1 + len(CELLS) :].reshape(MAX_OBJECTS, 3)[:number] % kinds).astype(np.int32)
    attributes = np.zeros((len(CELLS), 3), np.int32)
    attributes[cells] = drawn
    attributes[cells, 0] += 1
    return attributes


def render(
    attributes: Attributes,
    look: UInt64[np.ndarray, "looks=9"] | None = None,
    *,
    size: int = 32,
) -> UInt8[np.ndarray, "size size 3"]:
    """Draw objects on a grey ground, their edges smoothed by how much of a pixel they cover.

    Args:
        attributes: Of each cell.
        look: Random numbers: of the shade of the ground, and of where in its cell each object is.
            None puts all in the middle of its range.
        size: Height and width in pixels; even.

    Raises:
        ValueError: If the attributes mean nothing, or the size is too small to tell shapes apart.
    """
    check_attributes(attributes)
    check_size(size)
    # 53 bits fill a float64's mantissa exactly.
    uniform = np.full(NUM_LOOK_DRAWS, 0.5) if look is None else (look >> np.uint64(11)) * 2.0**-53
    ground = np.floor(_DARKEST + (_LIGHTEST - _DARKEST + 1) * uniform[0])
    shifts = (2 * uniform[1:].reshape(len(CELLS), 2) - 1) * _JITTER
    image = np.full((size, size, 3), ground, np.uint8)
    pixels = size // 2
    centres = _pixel_centres(pixels)
    for cell in np.flatnonzero(attributes[:, 0]).tolist():
        shape, colour, big = attributes[cell].tolist()
        y, x = centres - shifts[cell, 0] * pixels, centres - shifts[cell, 1] * pixels
        covered = _COVERAGES[shape - 1](y, x, _RADII[big] * pixels)
        blend = ground + covered[..., None] * (_RGB[colour] - ground)
        row, column = cell // 2 * pixels, cell % 2 * pixels
        image[row : row + pixels, column : column + pixels] = (blend + 0.5).astype(np.uint8)
    return image


def check_size(size: int) -> None:
    """Refuse sizes at which shapes cannot be drawn.

    Raises:
        ValueError: If it is odd or too small.
    """
    if size < _MIN_SIZE or size % 2:
        raise ValueError(
            f"pictures of shapes must be of an even size of at least {_MIN_SIZE} pixels; got "
            f"{size}. Choose 32 or 64."
        )


@functools.cache
def _pixel_centres(pixels: int) -> Offsets:
    """Where the pixels of a cell are, from its centre."""
    return np.arange(pixels) + 0.5 - pixels / 2


def _overlap(x: Offsets, half: float) -> Offsets:
    """How much of the pixels around x lies within [-half, half]."""
    return np.clip(np.minimum(x + 0.5, half) - np.maximum(x - 0.5, -half), 0, 1)


def _inside(distance: Coverage) -> Coverage:
    """How much of a pixel lies inside of an edge, given the distance of its centre from it."""
    return np.clip(0.5 - distance, 0, 1)


def _circle(y: Offsets, x: Offsets, radius: float) -> Coverage:
    return _inside(np.sqrt(np.square(y)[:, None] + np.square(x)) - radius)


def _square(y: Offsets, x: Offsets, radius: float) -> Coverage:
    half = 0.9 * radius
    return _overlap(y, half)[:, None] * _overlap(x, half)


def _triangle(y: Offsets, x: Offsets, radius: float) -> Coverage:
    """Apex up: 2.2 radii wide, 2 radii high."""
    # The sides run from (0, -radius) to (+-1.1 radius, radius): slope 1.1 / 2, so their distance is
    # (|x| - 0.55 (y + radius)) / sqrt(1 + 0.55^2).
    sides = (np.abs(x) - (0.55 * (y + radius))[:, None]) / np.sqrt(1.3025)
    return np.minimum(_inside(sides), _overlap(y, radius)[:, None])


def _cross(y: Offsets, x: Offsets, radius: float) -> Coverage:
    """Two bars, a third as wide as they are long."""
    tall, wide = _overlap(y, radius)[:, None], _overlap(x, radius)
    low, narrow = _overlap(y, radius / 3)[:, None], _overlap(x, radius / 3)
    return tall * narrow + low * wide - low * narrow


_COVERAGES = (_circle, _square, _triangle, _cross)  # in the order of SHAPES


class ShapeExamples(NamedTuple):
    """The examples of a purpose, as rows: image, tokens, attributes.

    Attributes:
        seed: Of the set.
        purpose: Which examples.
        size: Height and width in pixels.
    """

    seed: int
    purpose: str
    size: int

    def example(self, i: int) -> Row:
        """Make example i."""
        example = make_example(self.seed, self.purpose, i, size=self.size)
        tokens = encode_caption(example.caption)
        return {"image": example.image, "tokens": tokens, "attributes": example.attributes}


def open_shapes(*, seed: int, size: int, num_train: int) -> ImageSource:
    """Open the captioned shapes.

    Args:
        seed: Of the set.
        size: Height and width in pixels.
        num_train: Pictures to train on; those for validation and test are others, always the same.

    Raises:
        ValueError: If they cannot be drawn.
    """
    check_size(size)
    counts = {"train": num_train, "validation": NUM_VALIDATION, "test": NUM_TEST}
    train, validation, test = (
        Split(ShapeExamples(seed, purpose, size), np.arange(count), _LEVELS)
        for purpose, count in counts.items()
    )
    digest = hashlib.sha256(f"shapes {_FORMAT} {seed} {size} {num_train}".encode())
    for split in (train, validation, test):
        for value in split.examples.example(0).values():
            digest.update(value.tobytes())
    return ImageSource(
        train=train,
        validation=validation,
        test=test,
        shape=(size, size, 3),
        class_names=(),
        vocabulary=VOCABULARY,
        content_digest=digest.hexdigest(),
        description="captioned shapes, drawn",
    )
