"""What must be remembered of a folder to write it again as it was."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from genai_jax.data.folders import inside, read_json, read_text
from genai_jax.interop.checkpoint_folder import (
    CONFIG,
    INDEX,
    CheckpointError,
    FileLayout,
    is_file_name,
)

_NOTES = "origin.json"
# Everything else beside the weights goes with them: tokenizer, chat template, licence.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack"}
_MOST_BYTES = 100_000_000


class Origin(NamedTuple):
    """Where a model came from.

    Attributes:
        folder: Holds what stood beside the weights.
        config: Text of its `config.json`.
        prefix: What stands in front of its tensors' names.
        dtypes: The format's name of each tensor's type.
        layout: Its files.
    """

    folder: Path
    config: str
    prefix: str
    dtypes: dict[str, str]
    layout: FileLayout

    def copy_companions(self, folder: Path) -> None:
        """Copy what stands beside the weights, as it is.

        Raises:
            FolderError: If one of the files is a link that leads out of the folder.
        """
        for path in sorted(self.folder.iterdir()):
            ours = path.name in (CONFIG, INDEX, _NOTES) or path.suffix in _WEIGHTS
            if not ours and path.is_file() and path.stat().st_size <= _MOST_BYTES:
                shutil.copyfile(inside(self.folder, path.name), folder / path.name)

    def save(self, folder: Path) -> None:
        """Write it into a folder, companions too, for `load_origin`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_bytes(self.config.encode("utf-8"))
        self.copy_companions(folder)
        notes = {
            "prefix": self.prefix,
            "dtypes": self.dtypes,
            "files": self.layout.files,
            "metadata": self.layout.metadata,
            "index": self.layout.index,
        }
        (folder / _NOTES).write_text(json.dumps(notes) + "\n", encoding="utf-8")


def load_origin(folder: Path) -> Origin | None:
    """Read what `Origin.save` wrote into a folder; None if nothing did.

    Raises:
        CheckpointError: If it is not what `save` writes.
    """
    if not (folder / _NOTES).exists():
        return None
    notes: dict[str, Any] = read_json(folder / _NOTES)
    try:
        files = {name: list(tensors) for name, tensors in notes["files"].items()}
        if not all(map(is_file_name, files)):
            raise CheckpointError(f"{folder / _NOTES}: files must be names without a path.")
        layout = FileLayout(files, dict(notes["metadata"]), notes["index"])
        text = read_text(folder / CONFIG)
        return Origin(folder, text, notes["prefix"], dict(notes["dtypes"]), layout)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / _NOTES} is damaged ({error!r}). Convert again."
        ) from error
