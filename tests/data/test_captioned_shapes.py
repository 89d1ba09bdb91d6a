"""Captioned shapes: pictures are read back by other means, and captions say what is in them."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from genai_jax.data.captioned_shapes import make_example, open_shapes, render
from genai_jax.data.loader import Loader
from genai_jax.data.random_order import random_bits
from genai_jax.data.shape_captions import (
    COLOURS,
    MAX_LENGTH,
    SHAPES,
    SIZES,
    VOCABULARY,
    decode_caption,
    encode_caption,
    parse_caption,
    write_caption,
)

RGB = {
    "red": (230, 40, 40),
    "yellow": (245, 220, 40),
    "green": (40, 180, 60),
    "cyan": (60, 210, 230),
    "blue": (50, 80, 230),
    "magenta": (225, 60, 210),
}
RADII = {"small": 0.19, "large": 0.35}  # in cells
MIDDLE_GREY = 115


def one_object(cell, shape, colour, size):
    attributes = np.zeros((4, 3), np.int32)
    attributes[cell] = SHAPES.index(shape) + 1, COLOURS.index(colour), SIZES.index(size)
    return attributes


def cells_of(image):
    half = image.shape[0] // 2
    return [image[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]


def is_inside(shape, y, x, radius):
    """Whether points lie in a shape, by geometry: corners, half-planes and squares of distances."""
    if shape == "circle":
        return y * y + x * x <= radius * radius
    if shape == "square":
        return (abs(y) <= 0.9 * radius) & (abs(x) <= 0.9 * radius)
    if shape == "cross":
        arm = radius / 3
        tall = (abs(x) <= arm) & (abs(y) <= radius)
        return tall | ((abs(y) <= arm) & (abs(x) <= radius))
    corners = np.array([(-1.0, 0.0), (1.0, 1.1), (1.0, -1.1)]) * radius  # (y, x), in a turn
    turns = [
        (x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)
        for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    return np.all([turn <= 0 for turn in turns], axis=0)


def supersampled(shape, radius, pixels, *, y=0.0, x=0.0, samples=16):
    """How much of each pixel a shape covers, by counting points."""
    points = (np.arange(pixels * samples) + 0.5) / samples - pixels / 2
    inside = is_inside(shape, points[:, None] - y, points[None] - x, radius)
    return inside.reshape(pixels, samples, pixels, samples).mean(axis=(1, 3))


def coverage(cell, ground, colour):
    """How much of each pixel is of a colour, the rest being ground, by least squares."""
    direction = np.array(RGB[colour], np.float64) - ground
    return (cell.astype(np.float64) - ground) @ direction / (direction @ direction)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("big", SIZES)
def test_edges_are_smoothed_by_the_area_they_cover(shape, big, size):
    image = render(one_object(3, shape, "cyan", big), size=size)
    found = coverage(cells_of(image)[3], MIDDLE_GREY, "cyan")
    expected = supersampled(shape, RADII[big] * size / 2, size // 2)
    assert abs(found - expected).max() < 0.16  # where two edges meet in a pixel
    assert found.sum() == pytest.approx(expected.sum(), rel=0.015)
    assert all((cell == MIDDLE_GREY).all() for cell in cells_of(image)[:3])


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_in_the_middle_of_its_object(colour):
    for cell in range(4):
        image = render(one_object(cell, "circle", colour, "small"))
        assert tuple(cells_of(image)[cell][8, 8]) == RGB[colour]
        assert tuple(image[cell // 2 * 31, cell % 2 * 31]) == (MIDDLE_GREY,) * 3


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_larger_by_the_square_of_the_radii(shape):
    areas = [
        coverage(cells_of(render(one_object(0, shape, "red", size), size=64))[0], 115, "red").sum()
        for size in SIZES
    ]
    assert areas[1] / areas[0] == pytest.approx((0.35 / 0.19) ** 2, rel=0.03)


@pytest.mark.parametrize("extreme", [0, 2**64 - 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_stays_whole_in_its_cell_wherever_it_is(shape, extreme):
    look = np.full(9, extreme, np.uint64)
    ground = 190 if extreme else 40
    for cell in range(4):
        attributes = one_object(cell, shape, "blue", "large")
        moved = cells_of(render(attributes, look))
        still = cells_of(render(attributes))[cell]
        assert all((moved[other] == ground).all() for other in range(4) if other != cell)
        area = coverage(moved[cell], ground, "blue").sum()
        assert area == pytest.approx(coverage(still, MIDDLE_GREY, "blue").sum(), rel=0.02)


def read_cell(cell, ground):
    """Tell what is in a cell: its colour explains it, its shape is the one most like it."""
    if (cell == ground).all():
        return (0, 0, 0)
    explained = {}
    for colour in COLOURS:
        covered = coverage(cell, ground, colour)
        painted = ground + covered[..., None] * (np.array(RGB[colour]) - ground)
        explained[colour] = np.square(painted - cell).sum()
    colour = min(explained, key=explained.get)
    covered = coverage(cell, ground, colour)
    pixels = len(cell)
    places = np.arange(pixels) + 0.5 - pixels / 2
    y, x = covered.sum(1) @ places / covered.sum(), covered.sum(0) @ places / covered.sum()

    def unlike(what):
        shape, size = what
        radius = RADII[size] * pixels
        down = radius / 3 if shape == "triangle" else 0.0  # its middle is not its centre of mass
        template = supersampled(shape, radius, pixels, y=y - down, x=x, samples=4)
        return np.square(template - covered).sum()

    shape, size = min([(s, z) for s in SHAPES for z in SIZES], key=unlike)
    return SHAPES.index(shape) + 1, COLOURS.index(colour), SIZES.index(size)


@pytest.mark.parametrize("size", [32, 64])
def test_truth_can_be_read_off_the_picture(size):
    for index in range(60):
        example = make_example(5, "train", index, size=size)
        values, counts = np.unique(example.image.reshape(-1, 3), axis=0, return_counts=True)
        ground = values[counts.argmax()].astype(np.float64)
        found = [read_cell(cell, ground) for cell in cells_of(example.image)]
        assert found == [tuple(cell) for cell in example.attributes.tolist()]


def test_pictures_never_change():
    """These bytes are the data of every run so far, on every machine."""
    digests = []
    for size in (32, 64):
        digest = hashlib.sha256()
        for index in range(64):
            example = make_example(0, "train", index, size=size)
            digest.update(example.image.tobytes() + example.caption.encode())
        digests.append(digest.hexdigest()[:16])
    assert digests == ["9ec3fba9ff158cfe", "11358494f1577401"]


def test_an_example_is_a_function_of_seed_purpose_and_index():
    first = [make_example(3, "train", i) for i in range(20)]
    for i in reversed(range(20)):
        again = make_example(3, "train", i)
        np.testing.assert_array_equal(again.image, first[i].image)
        np.testing.assert_array_equal(again.attributes, first[i].attributes)
        assert again.caption == first[i].caption
    for other in (
        [make_example(4, "train", i) for i in range(20)],
        [make_example(3, "test", i) for i in range(20)],
    ):
        assert not any((a.image == b.image).all() for a, b in zip(first, other, strict=True))


def test_splits_share_no_picture():
    source = open_shapes(seed=0, size=32, num_train=200)
    seen = {
        name: {split.examples.example(i)["image"].tobytes() for i in range(200)}
        for name, split in source._asdict().items()
        if name in ("train", "validation", "test")
    }
    assert len(set.union(*seen.values())) == 600


def test_objects_are_drawn_evenly():
    examples = [make_example(0, "train", i) for i in range(1500)]
    attributes = np.stack([example.attributes for example in examples])
    present = attributes[..., 0] > 0
    counts = np.bincount(present.sum(1), minlength=4) / 1500
    np.testing.assert_allclose(counts, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.05)
    np.testing.assert_allclose(present.mean(0), 0.5, atol=0.05)
    for column, kinds in enumerate((len(SHAPES), len(COLOURS), len(SIZES))):
        values = attributes[present][:, column] - (column == 0)
        shares = np.bincount(values, minlength=kinds) / present.sum()
        np.testing.assert_allclose(shares, 1 / kinds, atol=0.03)
    assert not attributes[~present].any()
    grounds = [int(example.image[15, 15, 0]) for example in examples]  # between the cells
    assert min(grounds) == 40 and max(grounds) == 190
    used = {word for example in examples for word in encode_caption(example.caption).tolist()}
    assert used == set(range(len(VOCABULARY)))


@st.composite
def attributes_of_cells(draw):
    cells = draw(st.permutations(range(4)))[: draw(st.integers(1, 3))]
    attributes = np.zeros((4, 3), np.int32)
    for cell in cells:
        kind = st.tuples(*(st.integers(0, n - 1) for n in (len(SHAPES), len(COLOURS), len(SIZES))))
        attributes[cell] = draw(kind)
        attributes[cell, 0] += 1
    return attributes


@settings(max_examples=150)
@given(attributes_of_cells(), arrays.arrays(np.uint64, 8, elements=st.integers(0, 2**64 - 1)))
def test_captions_are_parsed_to_the_truth_they_were_written_from(attributes, draws):
    caption = write_caption(attributes, draws)
    np.testing.assert_array_equal(parse_caption(caption), attributes)
    tokens = encode_caption(caption)
    assert tokens.shape == (MAX_LENGTH,) and tokens.dtype == np.int32
    assert decode_caption(tokens) == caption
    length = int((tokens > 0).sum())
    assert tokens[:length].all() and not tokens[length:].any()


def test_captions_of_users_are_understood():
    wanted = one_object(0, "circle", "red", "small") + one_object(3, "cross", "blue", "large")
    for caption in (
        "a small red circle at the top left and a large blue cross at the bottom right",
        "A little red circle in the upper left corner, and a big blue cross in the lower right.",
        "top left red small circle, bottom right large cross blue",
        "There is a large blue cross at the bottom right and there is, at the left top a small "
        "red circle",
    ):
        caption = caption.replace("is, at", "is at")
        np.testing.assert_array_equal(parse_caption(caption), wanted)
    assert not encode_caption("").any()
    assert decode_caption(np.zeros(5, np.int32)) == ""


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a small crimson circle at the top left", "got 'crimson'. Did you mean"),
        ("a small red cirlce at the top left", "Did you mean 'circle'"),
        ("a small red circle at the top-left", "got '-'"),
        ("", "1 to 3 objects; got 0"),
        ("there is a", "1 to 3 objects; got 0"),
        ("a red circle at the top left", r"one size \(small, large\); got none"),
        ("a small circle at the top left", "one colour .*; got none"),
        ("a small red circle at the left", r"one row \(top, bottom\); got none"),
        ("a small red circle at the top", "one column .*; got none"),
        ("a small red blue circle at the top left", "one colour .*; got red and blue"),
        (
            "a small red circle at the top left a large red cross at the top right",
            "one shape .*; got circle and cross",
        ),
        (
            "a small red circle at the top left and a large red cross at the top left",
            "one object; got two at the top left",
        ),
        (
            " and ".join(f"a small red circle at the {place}" for place in ("top left",) * 4),
            "1 to 3 objects; got 4",
        ),
    ],
)
def test_captions_that_mean_nothing_are_refused(caption, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(caption)


def test_tokens_that_are_none_are_refused():
    with pytest.raises(ValueError, match="at most 32 words and commas; got 33"):
        encode_caption("red " * 33)
    with pytest.raises(ValueError, match="Did you mean 'square'"):
        encode_caption("a sqare")
    with pytest.raises(ValueError, match=r"in 0 \.\.\. 31; got 3 to 32"):
        decode_caption(np.array([3, 32]))


def test_attributes_and_sizes_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="got 4 empty cells"):
        render(np.zeros((4, 3), np.int32))
    for wrong in ((5, 0, 0), (1, 6, 0), (1, 0, 2), (-1, 0, 0)):
        attributes = np.zeros((4, 3), np.int32)
        attributes[2] = wrong
        with pytest.raises(ValueError, match=r"below \(5, 6, 2\); got"):
            render(attributes)
    for size in (16, 33):
        with pytest.raises(ValueError, match=f"at least 32 pixels; got {size}. Choose 32 or 64"):
            render(one_object(0, "circle", "red", "small"), size=size)
        with pytest.raises(ValueError, match=f"got {size}"):
            open_shapes(seed=0, size=size, num_train=10)


def test_looks_are_those_of_the_draws():
    attributes = one_object(1, "square", "green", "small")
    looks = [random_bits(0, "looks", np.arange(9 * i, 9 * i + 9, dtype=np.uint64)) for i in (0, 1)]
    images = [render(attributes, look) for look in (*looks, looks[0])]
    assert (images[0] == images[2]).all() and (images[0] != images[1]).any()


def test_rows_make_batches():
    source = open_shapes(seed=0, size=32, num_train=10)
    rows = [source.validation.row(i) for i in range(4)]

    class Four:
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return rows[i % 4]

    with Loader(Four(), 4) as loader:
        batch = loader.batch(0)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "image": ((4, 32, 32, 3), "float32"),
        "tokens": ((4, MAX_LENGTH), "int32"),
        "attributes": ((4, 4, 3), "int32"),
    }
    for tokens, attributes in zip(batch["tokens"], batch["attributes"], strict=True):
        np.testing.assert_array_equal(parse_caption(decode_caption(tokens)), attributes)
    assert len(source.vocabulary) == len(set(source.vocabulary)) == 32
    assert not source.class_names and source.shape == (32, 32, 3)
