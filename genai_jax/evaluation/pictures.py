"""Images as PNG: grids, and grids with a caption under each."""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

_GAP = 1  # pixels of the image between two of them, before they are enlarged
_INK = "#333333"
_CAPTION_WIDTH = 26  # characters of a line of a caption
_LINE = 0.15  # inches of one, at 8 points


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Map [-1, 1] to 0 ... 255; what lies outside is clipped."""
    return np.round(np.clip(images * 127.5 + 127.5, 0, 255)).astype(np.uint8)


def grid_png(images: Float[np.ndarray, "n h w c"], *, columns: int, min_width: int = 480) -> bytes:
    """Lay images out row by row and enlarge them by a whole number, so that pixels stay sharp.

    Args:
        images: In [-1, 1]; one channel (grey) or three.
        columns: Images of a row.
        min_width: The picture is enlarged until it is at least as wide, in pixels.

    Returns:
        A PNG file.
    """
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, c), 255, np.uint8)
    for i, image in enumerate(to_uint8(images)):
        top = _GAP + i // columns * (h + _GAP)
        left = _GAP + i % columns * (w + _GAP)
        sheet[top : top + h, left : left + w] = image
    picture = Image.fromarray(sheet[:, :, 0] if c == 1 else sheet)
    scale = max(1, -(-min_width // picture.width))
    size = (picture.width * scale, picture.height * scale)
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(file, "PNG", optimize=True)
    return file.getvalue()


def captioned_png(
    images: Float[np.ndarray, "n h w c"], captions: Sequence[str], *, columns: int
) -> bytes:
    """Draw images with the caption of each under it.

    Args:
        images: In [-1, 1].
        captions: One an image.
        columns: Images of a row.

    Returns:
        A PNG file.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    texts = [textwrap.fill(caption, _CAPTION_WIDTH) for caption in captions]
    lines = max(text.count("\n") + 1 for text in texts)
    # In inches: an image, and below it room for the longest caption.
    side, gap = 1.7, 0.1
    width, height = side + gap, side + gap + lines * _LINE + gap
    size = columns * width + gap, rows * height + gap
    figure = Figure(figsize=size, dpi=100)
    FigureCanvasAgg(figure)
    for i, (image, text) in enumerate(zip(to_uint8(images), texts, strict=True)):
        left, top = gap + i % columns * width, size[1] - gap - i // columns * height
        box = left / size[0], (top - side) / size[1], side / size[0], side / size[1]
        axes = figure.add_axes(box)
        axes.set_axis_off()
        grey = image.shape[-1] == 1
        axes.imshow(
            image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255
        )
        below = (left + side / 2) / size[0], (top - side - gap / 2) / size[1]
        figure.text(*below, text, fontsize=8, color=_INK, ha="center", va="top")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
