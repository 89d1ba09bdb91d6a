"""Pixels of files: every mode keeps its levels, and damage is said to be damage."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genai_jax.data.image_decoding import (
    Fit,
    UnreadableImageError,
    decode_image,
    fit_array,
    is_colour,
)

COLOUR, GREY = Fit(0, 0, 3), Fit(0, 0, 1)
_random = np.random.default_rng(0)
PIXELS = _random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
SHADES = _random.integers(0, 256, (5, 7), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decode(data, fit=COLOUR):
    pixels = decode_image(data, fit, name="x.png")
    assert pixels.dtype == np.uint8 and pixels.shape[2] == fit.channels
    return pixels


def test_colours_and_greys_are_what_they_were():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS))), PIXELS)
    grey = encoded(Image.fromarray(SHADES))
    np.testing.assert_array_equal(decode(grey, GREY)[..., 0], SHADES)
    np.testing.assert_array_equal(decode(grey), np.stack([SHADES] * 3, -1))
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    found = decode(encoded(Image.fromarray(PIXELS)), GREY)[..., 0]
    np.testing.assert_allclose(found, luma, atol=1)


def test_jpeg_is_close():
    smooth = np.linspace(0, 255, 16 * 16).reshape(16, 16).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95)
    np.testing.assert_allclose(decode(data, GREY)[..., 0].astype(int), smooth, atol=6)


def test_palettes_and_bilevel_images_are_looked_up():
    palette = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) % 4, "P")
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)], np.uint8)
    palette.putpalette(colours.ravel().tolist())
    data = encoded(palette)
    assert Image.open(io.BytesIO(data)).mode == "P"
    np.testing.assert_array_equal(decode(data), colours[np.arange(35).reshape(5, 7) % 4])
    data = encoded(Image.fromarray(SHADES > 99))
    assert Image.open(io.BytesIO(data)).mode == "1"
    np.testing.assert_array_equal(decode(data, GREY)[..., 0], np.where(SHADES > 99, 255, 0))


def test_sixteen_bits_are_rounded():
    deep = _random.integers(0, 1 << 16, (5, 7)).astype(np.uint16)
    deep[0, :3] = 0, 65535, 32768
    expected = np.rint(deep / 257)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep)), GREY)[..., 0], expected)
    np.testing.assert_array_equal(fit_array(deep[..., None], GREY, name="x")[..., 0], expected)


def test_cmyk_is_converted():
    data = encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG")
    assert is_colour(data)
    np.testing.assert_allclose(decode(data)[0, 0].astype(int), (255, 0, 0), atol=4)


def test_alpha_is_laid_over_white_or_refused():
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[0, :3] = 0, 128, 51
    data = encoded(Image.fromarray(np.dstack([PIXELS, alpha])))
    share = alpha[..., None] / 255
    np.testing.assert_allclose(decode(data), share * PIXELS + (1 - share) * 255, atol=1)
    grey = encoded(Image.fromarray(np.dstack([SHADES, alpha]), "LA"))
    expected = share[..., 0] * SHADES + (1 - share[..., 0]) * 255
    np.testing.assert_allclose(decode(grey, GREY)[..., 0], expected, atol=1)
    with pytest.raises(ValueError, match=r"x\.png must be opaque.*--data.alpha white"):
        decode(data, COLOUR._replace(alpha="error"))
    # A channel of alpha that hides nothing is no reason to refuse.
    opaque = encoded(Image.fromarray(np.dstack([PIXELS, np.full_like(alpha, 255)])))
    np.testing.assert_array_equal(decode(opaque, COLOUR._replace(alpha="error")), PIXELS)


def test_transparent_colours_of_palettes_and_of_plain_images_are_alpha_too():
    palette = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    found = decode(encoded(palette, transparency=1))
    assert found.reshape(4, 3).tolist() == [
        [10, 20, 30],
        [255, 255, 255],
        [70, 80, 90],
        [100, 110, 120],
    ]
    plain = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert decode(encoded(plain, transparency=9), GREY).ravel().tolist() == [7, 255]


# What the eight orientations of EXIF ask for, of rows and columns.
ORIENTATIONS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(decode(data), ORIENTATIONS[orientation](PIXELS))
    if orientation >= 5:  # the size that is wanted is that of the upright image
        assert decode(data, Fit(7, 5, 3, resize="error")).shape == (7, 5, 3)


def test_the_middle_is_kept_and_nothing_else():
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 6:14] = PIXELS[:4, :4].repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(wide)), Fit(8, 8, 3)), wide[:, 6:14]
    )
    tall = encoded(Image.fromarray(wide.swapaxes(0, 1)))
    np.testing.assert_array_equal(decode(tall, Fit(8, 8, 3)), wide[:, 6:14].swapaxes(0, 1))
    assert decode(encoded(Image.fromarray(wide)), Fit(4, 10, 3)).shape == (4, 10, 3)


@pytest.mark.parametrize("size", [6, 16, 50])
def test_other_sizes_keep_brightness_and_slope(size):
    flat = encoded(Image.fromarray(np.full((16, 24), 77, np.uint8)))
    assert (decode(flat, Fit(size, size, 1)) == 77).all()
    ramp = np.tile(40 + 8 * np.arange(16), (16, 1)).astype(np.uint8)
    found = decode(encoded(Image.fromarray(ramp)), Fit(size, size, 1))[..., 0]
    expected = 40 + 8 * ((np.arange(size) + 0.5) * 16 / size - 0.5)
    inner = slice(size // 4, -(size // 4))
    np.testing.assert_allclose(found[:, inner], np.tile(expected, (size, 1))[:, inner], atol=1.5)


def test_merged_pixels_are_averaged_and_not_picked():
    """Stripes finer than the new pixels become grey, where picking would leave some of them."""
    stripes = np.tile([0, 255], (64, 32)).astype(np.uint8)
    found = decode(encoded(Image.fromarray(stripes)), Fit(8, 8, 1))
    np.testing.assert_allclose(found[:, 1:-1], 127.5, atol=4)  # at the border the kernel is cut off


def test_other_sizes_are_refused_where_told():
    data = encoded(Image.fromarray(PIXELS))
    with pytest.raises(ValueError, match=r"must be 6x6 pixels .*; got 5x7. Give --data.size"):
        decode(data, Fit(6, 6, 3, resize="error"))
    np.testing.assert_array_equal(decode(data, Fit(5, 7, 3, resize="error")), PIXELS)


def test_colour_is_told_from_the_head():
    assert is_colour(encoded(Image.fromarray(PIXELS)))
    assert not is_colour(encoded(Image.fromarray(SHADES)))
    assert not is_colour(encoded(Image.fromarray(SHADES.astype(np.uint16))))
    assert not is_colour(encoded(Image.fromarray(SHADES), "JPEG"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am text", "neither PNG nor JPEG"),
        (encoded(Image.fromarray(PIXELS), "BMP"), "neither PNG nor JPEG"),
        (encoded(Image.fromarray(PIXELS), "GIF"), "neither PNG nor JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged|neither"),
        (encoded(Image.fromarray(PIXELS))[:60], "damaged: .*truncated"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:-40], "damaged: .*truncated"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(data, message):
    with pytest.raises(UnreadableImageError, match=message):
        decode(data)


SOUND = [
    encoded(Image.fromarray(PIXELS)),
    encoded(Image.fromarray(SHADES)),
    encoded(Image.fromarray(np.dstack([PIXELS, SHADES]))),
    encoded(Image.fromarray(PIXELS), "JPEG"),
    encoded(Image.fromarray(SHADES.astype(np.uint16) * 257)),
]


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it finds in damaged files
@settings(max_examples=200)
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    st.integers(0, 2**16),
    st.binary(max_size=20),
)
def test_damage_of_any_kind_is_an_image_or_an_error_of_one_kind(data, changes, cut, more):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    cut = cut % (2 * len(damaged))  # half of the time, nothing is cut off
    damaged = bytes(damaged[:cut] + more if cut < len(damaged) else damaged)
    try:
        pixels = decode(damaged, Fit(4, 4, 3))
    except UnreadableImageError as error:
        assert str(error)
    else:
        assert pixels.shape == (4, 4, 3)
    if damaged == data:
        assert pixels.any()


def test_arrays_are_made_to_fit():
    np.testing.assert_array_equal(fit_array(PIXELS, Fit(5, 7, 3), name="x"), PIXELS)
    grey = fit_array(SHADES[..., None], Fit(5, 7, 3), name="x")
    np.testing.assert_array_equal(grey, np.stack([SHADES] * 3, -1))
    clear = np.dstack([PIXELS, np.zeros_like(SHADES)])
    assert (fit_array(clear, Fit(4, 4, 3), name="x") == 255).all()
    np.testing.assert_array_equal(
        fit_array(PIXELS, Fit(4, 4, 3), name="x"),
        decode(encoded(Image.fromarray(PIXELS)), Fit(4, 4, 3)),
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (SHADES, r"1 to 4 channels; got \[5, 7\]"),
        (np.zeros((5, 7, 5), np.uint8), r"got \[5, 7, 5\]"),
        (np.zeros((0, 7, 3), np.uint8), r"got \[0, 7, 3\]"),
        (PIXELS.astype(np.float32), "8-bit or 16-bit levels; got float32"),
        (PIXELS.astype(np.int64), "got int64"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        fit_array(array, Fit(4, 4, 3), name="the image of x")
