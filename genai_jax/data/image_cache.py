"""Images decoded once: a file of uint8 levels that is mapped into memory, and notes beside it.

A set that is too large to be kept is decoded whenever it is read; its notes are kept all the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genai_jax.data.image_rows import Levels
from genai_jax.data.token_cache import default_cache_folder, open_folder

FORMAT = 1
_PIXELS, _NOTES = "pixels.bin", "notes.json"


class ImageCache(NamedTuple):
    """Images that were decoded before.

    Attributes:
        images: Levels of all; None where they are too large to be kept.
        notes: Whatever else was written down, as JSON, and `digest`, SHA-256 of the levels.
    """

    images: Levels | None
    notes: dict[str, Any]


def open_cache(
    recipe: Any,
    shape: tuple[int, int, int],
    images: Callable[[dict[str, Any]], Iterable[np.ndarray]],
    *,
    cache_dir: str | None,
    keep: bool,
) -> ImageCache:
    """Find decoded images, or decode them.

    Args:
        recipe: All that they depend on, as JSON.
        shape: (h, w, c) of each.
        images: Decodes them, in order; adds to the notes that it is handed.
        cache_dir: Folder for caches; None is the default one.
        keep: Whether the levels are written down, or only the notes.
    """
    key = hashlib.sha256(json.dumps([FORMAT, recipe, shape, keep]).encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        notes: dict[str, Any] = {}
        digest = hashlib.sha256()
        with (folder / _PIXELS).open("wb") as file:
            for image in images(notes):
                digest.update(image.tobytes())
                if keep:
                    file.write(image.tobytes())
        notes["digest"] = digest.hexdigest()
        (folder / _NOTES).write_text(json.dumps(notes), encoding="utf-8")

    root = Path(cache_dir).expanduser() if cache_dir else default_cache_folder()
    folder = open_folder(root / "images", key, build)
    notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    if not keep:
        return ImageCache(None, notes)
    if not (folder / _PIXELS).stat().st_size:  # an empty file cannot be mapped
        return ImageCache(np.zeros((0, *shape), np.uint8), notes)
    return ImageCache(np.memmap(folder / _PIXELS, np.uint8, "r").reshape(-1, *shape), notes)
