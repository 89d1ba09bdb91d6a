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
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.6 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    shown = zip(figure.axes, to_uint8(images), captions, strict=False)
    for axes, image, caption in shown:
        grey = image.shape[-1] == 1
        axes.imshow(
            image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255
        )
        axes.set_title(textwrap.fill(caption, 24), fontsize=8, color=_INK, y=-0.02, va="top")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
