"""Images of a folder: PNG and JPEG files, their classes named by the folders that they are in.

Copies of a file are always in the same split: a split is a share of the hashes of the files.
"""

import glob
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from genai_jax.data.corpora import file_stamps
from genai_jax.data.image_cache import ImageCache, open_cache
from genai_jax.data.image_decoding import (
    COLOUR,
    GREY,
    Fit,
    Pixels,
    UnreadableImageError,
    decode_image,
    is_colour,
)
from genai_jax.data.image_rows import (
    ArrayExamples,
    Examples,
    ImageSource,
    Labels,
    Sides,
    Split,
    divide,
)
from genai_jax.data.rows import Row

_LEVELS = 256
_SHOWN = 5  # names of skipped files in a message
_AT_ONCE = 256  # files whose pixels may be waiting in memory


class FileOptions(NamedTuple):
    """How files are read and split.

    Attributes:
        fit: What images are made to be; size and channels 0 are those of the files.
        unreadable: What to do with files that are no images: skip them, or stop with an error.
        labels: Whether folders name classes.
        validation_fraction: Share of the files.
        test_fraction: Share of the files.
        cache_dir: Folder for decoded images; none is the default one.
        cache_bytes: Sets that are larger are decoded whenever they are read.
    """

    fit: Fit
    unreadable: Literal["skip", "error"]
    labels: bool
    validation_fraction: float
    test_fraction: float
    cache_dir: str | None
    cache_bytes: int


class FileExamples(NamedTuple):
    """Images that are decoded whenever they are read.

    Attributes:
        paths: Of the files.
        fit: What they are made to be.
        labels: Their classes; None where they have none.
    """

    paths: tuple[Path, ...]
    fit: Fit
    labels: Labels | None

    def example(self, i: int) -> Row:
        """Decode example i."""
        path = self.paths[i]
        result = _decode(path, self.fit)
        if isinstance(result, str):
            raise UnreadableImageError(f"{path} could be read at the start, and now is {result}.")
        row: Row = {"image": result[1]}
        return row if self.labels is None else row | {"label": np.asarray(self.labels[i], np.int32)}


def open_files(pattern: str, options: FileOptions) -> ImageSource:
    """Read all images of a folder, or those that a glob matches.

    Args:
        pattern: A folder, with all that is in it; or a glob, where ** is any folders.
        options: How they are read.

    Raises:
        FileNotFoundError: If there are no files.
        ValueError: If none is an image, or one is not as it must be.
    """
    from PIL import __version__ as pillow_version

    root, paths = image_files(pattern)
    fit = _settle_fit(pattern, paths, options.fit)
    shape = (fit.height, fit.width, fit.channels)
    cache = open_cache(
        [pillow_version, fit, options.unreadable, file_stamps(paths)],
        shape,
        lambda notes: _decode_all(root, paths, fit, options.unreadable, notes),
        cache_dir=options.cache_dir,
        keep=len(paths) * int(np.prod(shape)) <= options.cache_bytes,
    )
    kept = tuple(paths[i] for i in cache.notes["kept"])
    names, labels = _classes(root, kept) if options.labels else ((), None)
    examples: Examples = FileExamples(kept, fit, labels)
    if cache.images is not None:
        examples = ArrayExamples(cache.images, labels)
    train, validation, test = (
        Split(examples, numbers, _LEVELS)
        for numbers in _sides(cache, options.validation_fraction, options.test_fraction)
    )
    return ImageSource(
        train=train,
        validation=validation,
        test=test,
        shape=shape,
        class_names=names,
        vocabulary=(),
        content_digest=cache.notes["content"],
        description=_describe(cache),
    )


def image_files(pattern: str) -> tuple[Path, list[Path]]:
    """List the files of a folder or of a glob, sorted, and the folder that all of them are in.

    Raises:
        FileNotFoundError: If there are none.
    """
    root = Path(pattern).expanduser()
    if root.is_dir():
        found = [p for p in root.rglob("*") if not _hidden(p.relative_to(root))]
    else:
        found = [Path(name) for name in glob.glob(str(root), recursive=True)]
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), root.parent.parts)
        root = Path(*fixed)
    files = sorted((p for p in found if p.is_file()), key=lambda p: p.as_posix())
    if not files:
        what = "holds no file" if Path(pattern).expanduser().is_dir() else "matches no file"
        raise FileNotFoundError(
            f"files:{pattern} {what}, seen from {Path.cwd()}. Give a folder of PNG or JPEG files; "
            "or a glob, where ** matches folders of any depth, as in files:photos/**/*.jpg."
        )
    return root, files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _settle_fit(pattern: str, paths: list[Path], fit: Fit) -> Fit:
    """Put in the size of the first image, and colour if any has some, where they were left open."""
    if fit.channels and fit.height:
        return fit
    colour: bool | None = None
    for path in paths:
        try:
            data = path.read_bytes()
            if fit.height == 0:
                h, w, _ = decode_image(data, fit._replace(channels=COLOUR), name=str(path)).shape
                # Without a size to be brought to, every image must have that of the first.
                fit = fit._replace(height=h, width=w, resize="error")
            colour = is_colour(data)
        except (OSError, UnreadableImageError):
            continue
        if fit.channels or colour:
            break
    if colour is None:
        raise ValueError(
            f"files:{pattern} must hold PNG or JPEG images; none of {len(paths)} files can be "
            f"read as one: {_list_names([str(path) for path in paths])}."
        )
    return fit._replace(channels=fit.channels or (COLOUR if colour else GREY))


def _decode_all(
    root: Path, paths: list[Path], fit: Fit, unreadable: str, notes: dict[str, Any]
) -> Iterator[Pixels]:
    """Decode what can be read, and note which files, their hashes, and why others were skipped."""
    kept, hashes, skipped = [], [], []
    content = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            batch = paths[start : start + _AT_ONCE]
            results = pool.map(lambda path: _decode(path, fit), batch)
            for i, result in enumerate(results, start):
                name = paths[i].relative_to(root).as_posix()
                if isinstance(result, str):
                    skipped.append(f"{name} ({result})")
                    continue
                digest, pixels = result
                content.update(f"{name}\n{digest}\n".encode())
                hashes.append(digest)
                kept.append(i)
                yield pixels
    if skipped and (unreadable == "error" or not kept):
        raise ValueError(
            f"every file must be a PNG or JPEG image; {len(skipped)} of {len(paths)} cannot be "
            f"read: {_list_names(skipped)}. Remove them, or choose --data.unreadable skip."
        )
    notes |= {"kept": kept, "hashes": hashes, "skipped": skipped, "content": content.hexdigest()}


def _decode(path: Path, fit: Fit) -> tuple[str, Pixels] | str:
    """Decode a file: its hash and its pixels, or why it has none."""
    try:
        data = path.read_bytes()
        return hashlib.sha256(data).hexdigest(), decode_image(data, fit, name=str(path))
    except UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _classes(root: Path, paths: tuple[Path, ...]) -> tuple[tuple[str, ...], Labels | None]:
    """Name the class of each file by the first folder below the root; none if there is but one.

    Raises:
        ValueError: If only some files are in folders, or the folders are named for splits.
    """
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    named = [parts[0] if parts else "" for parts in folders]
    names = sorted(set(named))
    if len(names) < 2:
        return (), None
    if not names[0]:
        raise ValueError(
            f"either all images are in folders, named for their classes, or none is; got "
            f"{named.count('')} of {len(named)} directly in {root}. Move them, or choose "
            "--data.no-labels."
        )
    if "train" in names and {"test", "val", "valid", "validation"} & set(names):
        raise ValueError(
            f"folders below {root} must be named for classes; got {', '.join(names)}, which name "
            f"splits. Give files:{root / 'train'}, of which shares are held out, or choose "
            "--data.no-labels."
        )
    return tuple(names), np.array([names.index(name) for name in named], np.int32)


def _sides(cache: ImageCache, validation: float, test: float) -> Sides:
    """Deal out the files by their hashes, so that copies of one are on the same side."""
    _, inverse = np.unique(np.array(cache.notes["hashes"]), return_inverse=True)
    distinct = np.arange(inverse.max() + 1)
    train, held_out, tested = (
        np.flatnonzero(np.isin(inverse, side)) for side in divide(distinct, validation, test)
    )
    return train, held_out, tested


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _describe(cache: ImageCache) -> str:
    kept, skipped = cache.notes["kept"], cache.notes["skipped"]
    copies = len(kept) - len(set(cache.notes["hashes"]))
    text = f"{len(kept)} file{'s' * (len(kept) != 1)}"
    if copies:
        text += f" ({copies} of them cop{'y' if copies == 1 else 'ies'})"
    if skipped:
        text += f", {len(skipped)} skipped: {_list_names(skipped)}"
    return text
