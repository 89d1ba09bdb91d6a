"""From the bytes of a PNG or JPEG file to uint8 levels of the size and channels that are wanted."""

import io
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG")
GREY, COLOUR = 1, 3
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_WHITE = (255, 255, 255, 255)

Pixels = UInt8[np.ndarray, "h w c"]


class UnreadableImageError(ValueError):
    """What a file holds cannot be read as an image."""


class Fit(NamedTuple):
    """What an image is made to be.

    Attributes:
        height: In pixels; 0 with `width` 0 is the image's own.
        width: In pixels.
        channels: 1 grey or 3 colour.
        resize: Images of another size are cropped around their centre to the wanted proportions and
            resampled, or are an error.
        alpha: Transparent images are laid over white, or are an error.
    """

    height: int
    width: int
    channels: int
    resize: Literal["crop", "error"] = "crop"
    alpha: Literal["white", "error"] = "white"


def is_colour(data: bytes) -> bool:
    """Tell from the head of a file whether its image has colours, or a palette that may hold some.

    Raises:
        UnreadableImageError: If it is no PNG or JPEG.
    """
    return _open(data).mode not in _GREY_MODES


def decode_image(data: bytes, fit: Fit, *, name: str) -> Pixels:
    """Read an image, upright, and make it fit.

    Args:
        data: A PNG or JPEG file. 16 bits a channel are rounded to 8; EXIF says which way is up.
        fit: What it is made to be.
        name: What to call it in messages.

    Raises:
        UnreadableImageError: If it cannot be read whole.
        ValueError: If it has another size or alpha, and that is an error.
    """
    from PIL import ImageOps

    image = _open(data)
    try:
        # Upright at once: a turn swaps height and width.
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        plain = _eight_bits(image)
    except Exception as error:  # Pillow's decoders raise whatever they trip over
        raise UnreadableImageError(f"damaged: {error}") from error
    return _fit(plain, fit, name)


def fit_array(image: np.ndarray, fit: Fit, *, name: str) -> Pixels:
    """Make an array [h, w, c] of 8 or 16 bits fit, as `decode_image` does with a file.

    Raises:
        ValueError: If it is no such array; or it has another size or alpha, and that is an error.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"{name} must be an image [h, w, c] of 1 to 4 channels; got {list(image.shape)}."
        )
    if image.dtype == np.uint16:
        image = _rounded(image)
    if image.dtype != np.uint8:
        raise ValueError(f"{name} must hold 8-bit or 16-bit levels; got {image.dtype}.")
    if image.shape == (fit.height, fit.width, fit.channels):
        return image
    mode = ("L", "LA", "RGB", "RGBA")[image.shape[2] - 1]
    picture = Image.frombytes(mode, (image.shape[1], image.shape[0]), image.tobytes())
    return _fit(picture, fit, name)


def _open(data: bytes) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImageError("neither PNG nor JPEG" if data else "empty") from error
    except Exception as error:  # as above
        raise UnreadableImageError(f"damaged: {error}") from error


def _rounded(levels: np.ndarray) -> np.ndarray:
    """Take 0 ... 65535 to 0 ... 255."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Convert the modes of more or fewer bits; alpha stays."""
    from PIL import Image

    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise ValueError(f"levels must fit 16 bits; got {levels.min()} to {levels.max()}")
        return Image.fromarray(_rounded(levels))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")


def _fit(image: "Image.Image", fit: Fit, name: str) -> Pixels:
    image = _without_alpha(image, fit, name).convert("L" if fit.channels == GREY else "RGB")
    wanted = (fit.width, fit.height)
    if wanted != (0, 0) and image.size != wanted:
        if fit.resize == "error":
            raise ValueError(
                f"{name} must be {fit.height}x{fit.width} pixels (height x width); got "
                f"{image.height}x{image.width}. Give --data.size, with --data.resize crop, to "
                "bring all images to one size."
            )
        image = _resample(image, fit)
    return np.array(image).reshape(image.height, image.width, fit.channels)


def _without_alpha(image: "Image.Image", fit: Fit, name: str) -> "Image.Image":
    from PIL import Image

    if image.mode not in ("RGBA", "LA"):
        return image
    image = image.convert("RGBA")
    opaque = np.asarray(image.getchannel("A")).min() == 255
    if fit.alpha == "error" and not opaque:
        raise ValueError(
            f"{name} must be opaque; it has transparent pixels. Choose --data.alpha white to lay "
            "images over white."
        )
    return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)


def _resample(image: "Image.Image", fit: Fit) -> "Image.Image":
    """Crop around the centre, and resample by Lanczos' kernel, widened where pixels are merged."""
    from PIL import Image

    scale = min(image.width / fit.width, image.height / fit.height)
    width, height = scale * fit.width, scale * fit.height
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((fit.width, fit.height), Image.Resampling.LANCZOS, box=box)
