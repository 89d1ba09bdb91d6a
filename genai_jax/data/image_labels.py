"""What a classifier is asked about images: one class, or the attributes of every cell of shapes."""

import numpy as np
from jaxtyping import Int32

from genai_jax.data.image_rows import ShuffledImages, WholeImages
from genai_jax.data.images import ImageData, SplitName
from genai_jax.data.rows import NumberedRows, Row
from genai_jax.data.shape_captions import CELLS, COLOURS, SHAPES, SIZES

ATTRIBUTES = ("shape", "colour", "size")
_CLASSES = (("nothing", *SHAPES), COLOURS, SIZES)


def head_names(data: ImageData) -> tuple[tuple[str, ...], ...]:
    """Name the classes of every question that is asked of an image.

    Raises:
        ValueError: If nothing is known of the images.
    """
    if data.class_names:
        return (data.class_names,)
    if data.vocabulary:
        return _CLASSES * len(CELLS)
    raise ValueError(
        "a classifier needs images with classes or attributes; these have none. Choose digits, "
        "shapes, or a folder with one folder a class."
    )


def labels_from_attributes(
    attributes: Int32[np.ndarray, "*n cells attributes"],
) -> Int32[np.ndarray, "*n heads"]:
    """Turn attributes into labels, cell by cell; colour and size of an empty cell are -1."""
    empty = attributes[..., :1] == 0
    nothing = np.arange(attributes.shape[-1]) > 0
    labels = np.where(empty & nothing, -1, attributes).astype(np.int32)
    return labels.reshape(*attributes.shape[:-2], -1)


class LabelledRows(NumberedRows):
    """Rows of which each has a `label`, an integer or one for each head."""

    def __init__(self, rows: ShuffledImages | WholeImages) -> None:
        """Wrap rows; none is read yet."""
        super().__init__()
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, i: int) -> Row:
        row = self._rows[i]
        kept = {name: row[name] for name in ("image", "label", "weight") if name in row}
        if "label" not in kept:
            kept["label"] = labels_from_attributes(row["attributes"])
        return kept


def labels_of(data: ImageData, split: SplitName) -> Int32[np.ndarray, "n *heads"]:
    """Read the labels of all images of a split, in its order."""
    if data.class_names:
        return data.field_of(split, "label")
    return labels_from_attributes(data.field_of(split, "attributes"))
