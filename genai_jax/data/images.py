"""Images for a generative model: from the name of a source to rows for train, validation, test."""

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from genai_jax.data.captioned_shapes import open_shapes
from genai_jax.data.image_decoding import Fit
from genai_jax.data.image_files import FileOptions, open_files
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
from genai_jax.data.image_sets import SetOptions, open_set

SplitName = Literal["train", "validation", "test"]
_DIGITS_LEVELS = 17
_SHAPES_SIZE = 32
_KINDS = {
    "digits": "digits",
    "shapes": "shapes[:SEED]",
    "files": "files:FOLDER",
    "tfds": "tfds:NAME[:SPLIT]",
}


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Which images, how they are read, and how they are split.

    Attributes:
        source: digits (1,797 scans of 8x8 in 17 shades of grey, from scikit-learn); shapes[:SEED]
            (pictures of one to three coloured shapes, with captions); files:FOLDER or files:GLOB
            (PNG and JPEG); tfds:NAME[:SPLIT] (a prepared set of tensorflow-datasets: mnist,
            cifar10, ...).
        size: Height and width in pixels; 0: as the source has them (of shapes 32).
        channels: 1 (grey) or 3 (colour); 0: as the source has them.
        labels: Whether rows have the class of the image, if the source says it; the class of a file
            is the folder that it is in.
        resize: What to do with images of another size: crop them around the centre and resample
            them, or stop with an error.
        alpha: What to do with transparent images: lay them over white, or stop with an error.
        unreadable: What to do with files that are no images: skip them, or stop with an error.
        num_shapes: Pictures of shapes to train on; 1,024 others are for validation, 2,048 for test.
        validation_fraction: Share of the images that choices are made on, between 0 and 1; of
            files, digits, and sets that have no such split.
        test_fraction: Share of the images that is only reported on, between 0 and 1; of files,
            digits, and sets that have no such split.
        data_dir: Folder of prepared sets; none: $TFDS_DATA_DIR or ~/tensorflow_datasets.
        cache_dir: Folder for decoded images; none: $XDG_CACHE_HOME/genai_jax or
            ~/.cache/genai_jax.
        cache_megabytes: Sets of files that are larger, decoded, are decoded whenever they are read.
    """

    source: str = "digits"
    size: int = 0
    channels: Literal[0, 1, 3] = 0
    labels: bool = True
    resize: Literal["crop", "error"] = "crop"
    alpha: Literal["white", "error"] = "white"
    unreadable: Literal["skip", "error"] = "skip"
    num_shapes: int = 65_536
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    data_dir: str | None = None
    cache_dir: str | None = None
    cache_megabytes: int = 4096

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.size < 0 or self.cache_megabytes < 0:
            raise ValueError(
                "`size` and `cache_megabytes` must not be negative; got "
                f"{self.size} and {self.cache_megabytes}. 0 is the source's own size, and no cache."
            )
        if self.num_shapes < 1:
            raise ValueError(f"`num_shapes` must be at least 1; got {self.num_shapes}. Try 65536.")
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
        _parse_source(self.source)


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

    @property
    def vocab_size(self) -> int:
        """Count the token ids of captions, the padding included; 0 where there are none."""
        return len(self.vocabulary)

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


def _parse_source(source: str) -> tuple[str, str]:
    """Part the kind of a source from the rest of its name."""
    kind, _, rest = source.partition(":")
    bare, seeded = kind == "digits" and source == kind, kind == "shapes"
    if bare or (seeded and (source == kind or rest.isdecimal())):
        return kind, rest
    if kind in ("files", "tfds") and rest:
        return kind, rest
    near = difflib.get_close_matches(kind, _KINDS, n=1)
    if near:
        hint = f"Did you mean {_KINDS[near[0]]}?"
    elif Path(source).expanduser().exists() or "/" in source or "*" in source:
        hint = f"For images of your own write files:{source}."
    else:
        hint = f"For a set of tensorflow-datasets write tfds:{source}."
    raise ValueError(f"a source must be {', '.join(_KINDS.values())}; got {source!r}. {hint}")


def _open_source(config: ImageConfig) -> ImageSource:
    kind, rest = _parse_source(config.source)
    fit = Fit(config.size, config.size, config.channels, config.resize, config.alpha)
    cache_bytes = config.cache_megabytes * 1_000_000
    match kind:
        case "digits":
            _check_own(config, size=8, channels=1)
            return _digits(config)
        case "shapes":
            size = config.size or _SHAPES_SIZE
            _check_own(config, size=size, channels=3)
            return open_shapes(seed=int(rest or 0), size=size, num_train=config.num_shapes)
        case "files":
            options = FileOptions(
                fit,
                config.unreadable,
                config.labels,
                config.validation_fraction,
                config.test_fraction,
                config.cache_dir,
                cache_bytes,
            )
            return open_files(rest, options)
        case _:
            return open_set(
                rest,
                SetOptions(
                    fit,
                    config.labels,
                    config.validation_fraction,
                    config.test_fraction,
                    config.data_dir,
                    config.cache_dir,
                    cache_bytes,
                ),
            )


def _check_own(config: ImageConfig, *, size: int, channels: int) -> None:
    """Refuse to make a source's images other than they are."""
    if config.size not in (0, size) or config.channels not in (0, channels):
        raise ValueError(
            f"{config.source} are {size}x{size} pixels of {channels} channel{'s' * (channels > 1)};"
            f" got `size` {config.size} and `channels` {config.channels}. Leave both at 0."
        )


def _digits(config: ImageConfig) -> ImageSource:
    """The test set of the UCI handwritten digits: 43 people, each 4x4 block of pixels counted.

    Reference: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    examples = ArrayExamples(images, labels if config.labels else None)
    order = class_balanced_order(labels)
    train, validation, test = (
        Split(examples, numbers, _DIGITS_LEVELS)
        for numbers in divide(order, config.validation_fraction, config.test_fraction)
    )
    return ImageSource(
        train=train,
        validation=validation,
        test=test,
        shape=(8, 8, 1),
        class_names=tuple(str(name) for name in digits.target_names) if config.labels else (),
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
