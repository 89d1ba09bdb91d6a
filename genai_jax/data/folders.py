"""Files of a folder that other people made."""

from pathlib import Path


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
