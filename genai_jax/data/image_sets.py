"""Images of tensorflow-datasets: `mnist`, `fashion_mnist`, `cifar10`, `imagenet_resized/64x64`, ...

Read through `tfds.data_source`, without TensorFlow. A set's own test split is used as such; where
it has only one beside `train`, that is the test split, as it is for ImageNet.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genai_jax.data.corpora import file_stamps
from genai_jax.data.image_cache import open_cache
from genai_jax.data.image_decoding import Fit, Pixels, fit_array
from genai_jax.data.image_rows import (
    ArrayExamples,
    Examples,
    ImageSource,
    Sides,
    Split,
    check_labels,
    divide,
)
from genai_jax.data.prepared_sets import open_prepared_set
from genai_jax.data.random_order import permutation
from genai_jax.data.rows import Row

_LEVELS = 256


class SetOptions(NamedTuple):
    """How a set is read and split.

    Attributes:
        fit: What images are made to be; size and channels 0 are those of the set.
        labels: Whether rows have the set's labels.
        validation_fraction: Share of the training images, unless the set has a split for it.
        test_fraction: Share of the training images, unless the set has a split for it.
        data_dir: Where prepared sets are; none is the place of tensorflow-datasets.
        cache_dir: Folder for decoded images; none is the default one.
        cache_bytes: Sets that are larger are decoded whenever they are read.
    """

    fit: Fit
    labels: bool
    validation_fraction: float
    test_fraction: float
    data_dir: str | None
    cache_dir: str | None
    cache_bytes: int


class PreparedExamples(NamedTuple):
    """Examples of one or more splits, one after the other, decoded whenever they are read.

    Attributes:
        name: Of the set, for messages.
        sources: The splits.
        fit: What images are made to be.
        num_classes: How many there are; 0 leaves labels out.
    """

    name: str
    sources: tuple[Any, ...]
    fit: Fit
    num_classes: int

    def total(self) -> int:
        """Count the examples."""
        return sum(map(len, self.sources))

    def example(self, i: int) -> Row:
        """Decode example i."""
        where = f"{self.name}[{i}]"
        for source in self.sources:
            if i < len(source):
                example = source[i]
                break
            i -= len(source)
        else:
            raise IndexError(f"there is no {where}: the set has {self.total()} examples.")
        row: Row = {"image": fit_array(example["image"], self.fit, name=where)}
        if self.num_classes:
            label = np.asarray(example["label"])
            check_labels(label.reshape(1), self.num_classes, what=f"the label of {where}")
            row["label"] = label.astype(np.int32)
        return row


def open_set(spec: str, options: SetOptions) -> ImageSource:
    """Open a prepared set by `NAME[:SPLIT]`.

    Args:
        spec: A name as tensorflow-datasets takes it; with a split, all three are cut from that.
        options: How it is read.

    Raises:
        ValueError: If there is no such set, it is not prepared, or it holds no images.
    """
    name, _, only = spec.partition(":")
    train = open_prepared_set(name, only or "train", data_dir=options.data_dir)
    info = train.dataset_info
    given = {} if only else _given_splits(info.splits)
    sources = [train] + [
        open_prepared_set(name, split, data_dir=options.data_dir) for split in given.values()
    ]
    features = dict(info.features)
    _check_features(features, spec)
    names = _class_names(features) if options.labels else ()
    fit = _settle_fit(features["image"].shape, options.fit, spec)
    examples = PreparedExamples(f"tfds:{spec}", tuple(sources), fit, len(names))
    opened, content = _open_examples(examples, Path(info.data_dir), options)
    sides = _sides([len(source) for source in sources], list(given), options)
    held = [Split(opened, numbers, _LEVELS) for numbers in sides]
    return ImageSource(
        train=held[0],
        validation=held[1],
        test=held[2],
        shape=(fit.height, fit.width, fit.channels),
        class_names=names,
        vocabulary=(),
        content_digest=content,
        description=f"{info.full_name}, test split "
        + (f"{given['test']!r}, as given" if "test" in given else "cut from train"),
    )


def _given_splits(splits: Any) -> dict[str, str]:
    """Which of a set's splits are for test and for validation."""
    own = [name for name in ("test", "validation") if name in splits]
    match own:
        case ["test", "validation"]:
            return {"test": "test", "validation": "validation"}
        case [one]:
            return {"test": one}
    return {}


def _check_features(features: dict[str, Any], spec: str) -> None:
    if "image" not in features or len(features["image"].shape) != 3:
        raise ValueError(
            f"tfds:{spec} must have a feature `image` of shape [h, w, c]; its features are: "
            f"{', '.join(features)}. Choose another set."
        )


def _class_names(features: dict[str, Any]) -> tuple[str, ...]:
    return tuple(getattr(features.get("label"), "names", None) or ())


def _settle_fit(shape: Sequence[int | None], fit: Fit, spec: str) -> Fit:
    h, w, c = shape
    if fit.height == 0:
        if not h or not w:
            raise ValueError(
                f"tfds:{spec} has images of many sizes. Choose one: --data.size 64, say."
            )
        fit = fit._replace(height=h, width=w)
    return fit._replace(channels=fit.channels or (1 if c in (1, 2) else 3))


def _open_examples(
    examples: PreparedExamples, folder: Path, options: SetOptions
) -> tuple[Examples, str]:
    """Decode a set into the cache, if it is small enough; and digest it."""
    fit, total = examples.fit, examples.total()
    shape = (fit.height, fit.width, fit.channels)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if total * int(np.prod(shape)) > options.cache_bytes:
        sizes = [f"{path.name} {path.stat().st_size}" for path in files]
        content = "\n".join([examples.name, str(total), *sizes])
        return examples, hashlib.sha256(content.encode()).hexdigest()

    def images(notes: dict[str, Any]) -> Iterator[Pixels]:
        labels = notes["labels"] = []
        for i in range(total):
            row = examples.example(i)
            labels.extend(row["label"].reshape(-1).tolist() if "label" in row else [])
            yield row["image"]

    recipe = [examples.name, examples.num_classes, fit, file_stamps(files)]
    cache = open_cache(recipe, shape, images, cache_dir=options.cache_dir, keep=True)
    assert cache.images is not None
    labels = np.array(cache.notes["labels"], np.int32) if examples.num_classes else None
    all_of_it = f"{cache.notes['digest']} {cache.notes['labels']}"
    return ArrayExamples(cache.images, labels), hashlib.sha256(all_of_it.encode()).hexdigest()


def _sides(lengths: list[int], given: list[str], options: SetOptions) -> Sides:
    """Number the examples of train, validation and test: given splits come after train."""
    ends = np.cumsum(lengths)
    own = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(given)}
    train, validation, test = divide(
        permutation(0, "images of a prepared set", lengths[0]),
        0.0 if "validation" in own else options.validation_fraction,
        0.0 if "test" in own else options.test_fraction,
    )
    return train, own.get("validation", validation), own.get("test", test)
