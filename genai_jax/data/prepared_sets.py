"""Prepared sets of tensorflow-datasets, opened without TensorFlow."""

import difflib
from typing import Any


def open_prepared_set(name: str, split: str, *, data_dir: str | None = None) -> Any:
    """Open a split of a set that tensorflow-datasets has prepared as array records.

    Args:
        name: As `tfds.builder` takes it: `mnist`, `imagenet_resized/64x64`, ...
        split: As `tfds` takes it: `train`, `train[:10%]`, ...
        data_dir: Where sets are; None is the place of tensorflow-datasets.

    Returns:
        A data source: `len`, examples by number, and `dataset_info`.

    Raises:
        ValueError: If there is no such set, it has no such split, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    place = {} if data_dir is None else {"data_dir": data_dir}
    try:
        source = tfds.data_source(name, split=split, download=False, **place)
        len(source)  # only now does it look whether it is prepared
        return source
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"tensorflow-datasets knows no set {name!r}, and none is prepared under that name. "
            f"{hint}Names are at https://www.tensorflow.org/datasets/catalog."
        ) from error
    except ValueError as error:
        raise ValueError(f"tfds:{name}:{split} cannot be read: {error}") from error
    except (AssertionError, KeyError, NotImplementedError, OSError) as error:
        where = "" if data_dir is None else f", data_dir={data_dir!r}"
        raise ValueError(
            f"tfds:{name} must be prepared in the format array_record, and is not. Run: python -c "
            f'"import tensorflow_datasets as t; t.builder({name!r}{where}, '
            "file_format='array_record').download_and_prepare()\". To prepare most sets of images "
            "takes TensorFlow; to read them does not."
        ) from error
