"""Files of a folder that other people made."""

import json
from pathlib import Path
from typing import Any

_MOST_JSON_BYTES = 100_000_000


class FolderError(ValueError):
    """A folder is not what it should be, or a file of it leads elsewhere."""


def inside(folder: Path, name: str) -> Path:
    """Give the path of a file of a folder, links followed.

    Raises:
        FolderError: If it is missing or no file, or a link leads out of the folder (into the blobs
            of the same model in Hugging Face's cache it may lead).
    """
    path = folder / name
    if not path.is_file():
        what = "is no file" if path.exists() else "is missing"
        raise FolderError(f"{path} {what}. Fetch the whole folder.")
    real, home = path.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # the cache keeps links to its blobs there
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise FolderError(
            f"{path} is a link to {real}, outside of the folder, and is not followed. Copy the "
            "file there if you trust it."
        )
    return real


def read_text(path: Path) -> str:
    """Read a text as it is, ends of lines too."""
    return path.read_bytes().decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a file.

    Raises:
        FolderError: If it is too long, not JSON, or not an object.
    """
    size = path.stat().st_size
    if size > _MOST_JSON_BYTES:
        raise FolderError(f"{path} must have at most {_MOST_JSON_BYTES:,} bytes; got {size:,}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise FolderError(f"{path} is nested too deeply.") from error
    except ValueError as error:
        raise FolderError(f"{path} is not valid JSON: {error}. Fetch it again.") from error
    if not isinstance(found, dict):
        raise FolderError(f"{path} must hold an object; got {str(found)[:80]}.")
    return found
