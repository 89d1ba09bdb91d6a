"""Images for a generative model: from the name of a source to rows for train, validation, test."""

import dataclasses
import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from genai_jax.data.image_rows import (
    ArrayExamples,
    ImageSource,
    ShuffledImages,
    Split,
    WholeImages,
    class_balanced_order,
    divide,
    read_field,
    read_levels,
)

SplitName = Literal["train", "validation", "test"]
_DIGITS_LEVELS = 17


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Which images, how they are read, and how they are split.

    Attributes:
        source: digits (1,797 scans of 8x8 in 17 shades of grey, from scikit-learn).
        validation_fraction: Share of the images that choices are made on, between 0 and 1.
        test_fraction: Share of the images that is only reported on, between 0 and 1.
    """

    source: str = "digits"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be between 0 and 1; got {getattr(self, name)}. Try 0.1."
                )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "`validation_fraction` and `test_fraction` must leave images to train on; got "
                f"{self.validation_fraction} and {self.test_fraction}. Try 0.1 and 0.2."
            )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images, ready for training.

    A row has `image`, float32 [h, w, c] in [-1, 1], and `label`, int32, where there are classes; or
    `tokens`, int32, and `attributes`, int32 [cells, 3], where there are captions. Rows of whole
    splits have `weight`, 0 for those past the end.

    Attributes:
        train: Rows by number, without end; `len` of them are an epoch.
        validation: Rows of the split that choices are made on, once.
        test: Rows of the split that is reported, once.
        shape: (h, w, c) of every image.
        levels: L, values that a channel of a pixel has; level k is 2 k / (L - 1) - 1 in `image`.
        class_names: Of the labels; none where there are no classes.
        vocabulary: Words of the captions by token id, the first being the padding; none where there
            are no captions.
        content_digest: SHA-256 of the images, in hexadecimal.
        summary: What was read, and what was done to it, for human eyes.
    """

    train: ShuffledImages
    validation: WholeImages
    test: WholeImages
    shape: tuple[int, int, int]
    levels: int
    class_names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    content_digest: str
    summary: str
    _source: ImageSource

    @property
    def num_classes(self) -> int:
        """Count the classes; 0 where there are none."""
        return len(self.class_names)

    def levels_of(self, split: SplitName) -> UInt8[np.ndarray, "n h w c"]:
        """Read all images of a split as integer levels, in its order."""
        return read_levels(self._split(split))

    def field_of(self, split: SplitName, name: str) -> Int32[np.ndarray, "n *shape"]:
        """Read `label`, `tokens` or `attributes` of all images of a split, in its order.

        Raises:
            ValueError: If its images have none.
        """
        return read_field(self._split(split), name)

    def _split(self, name: SplitName) -> Split:
        match name:
            case "train":
                return self._source.train
            case "validation":
                return self._source.validation
            case "test":
                return self._source.test


def load_images(config: ImageConfig, *, seed: int) -> ImageData:
    """Open a source of images and plan rows of it.

    Args:
        config: Which images.
        seed: Of the order of the training rows. Which image is in which split does not depend on
            it.

    Raises:
        ValueError: If the source, an image or a split is not as it must be.
        FileNotFoundError: If there are no such files.
    """
    source = _open_source(config)
    return ImageData(
        train=ShuffledImages(source.train, seed=seed),
        validation=WholeImages(source.validation),
        test=WholeImages(source.test),
        shape=source.shape,
        levels=source.train.levels,
        class_names=source.class_names,
        vocabulary=source.vocabulary,
        content_digest=source.content_digest,
        summary=_summary(config, source),
        _source=source,
    )


def _open_source(config: ImageConfig) -> ImageSource:
    if config.source == "digits":
        return _digits(config)
    raise ValueError(f"a source must be digits; got {config.source!r}.")


def _digits(config: ImageConfig) -> ImageSource:
    """The test set of the UCI handwritten digits: 43 people, each 4x4 block of pixels counted.

    Reference: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    examples = ArrayExamples(images, digits.target.astype(np.int32))
    order = class_balanced_order(digits.target.astype(np.int32))
    train, validation, test = (
        Split(examples, numbers, _DIGITS_LEVELS)
        for numbers in divide(order, config.validation_fraction, config.test_fraction)
    )
    return ImageSource(
        train=train,
        validation=validation,
        test=test,
        shape=(8, 8, 1),
        class_names=tuple(str(name) for name in digits.target_names),
        vocabulary=(),
        content_digest=hashlib.sha256(
            images.tobytes() + digits.target.astype(np.uint8).tobytes()
        ).hexdigest(),
        description="handwritten digits",
    )


def _summary(config: ImageConfig, source: ImageSource) -> str:
    sides = (source.train, source.validation, source.test)
    h, w, c = source.shape
    classes = f", {len(source.class_names)} classes" if source.class_names else ""
    words = f", captions of {len(source.vocabulary) - 1} words" if source.vocabulary else ""
    return "\n".join(
        [
            f"images: {config.source}: {source.description}, {h}x{w}, "
            f"{c} channel{'s' * (c > 1)} of {source.train.levels} levels{classes}{words}",
            "splits: train {:,}, validation {:,}, test {:,}".format(
                *(len(side.numbers) for side in sides)
            ),
        ]
    )
