"""What must be remembered of a folder to write it again as it was."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from genai_jax.interop.checkpoint_folder import CONFIG, CheckpointError, FileLayout, read_json

_NOTES = "origin.json"
# What stands beside the weights: tokenizer, chat template, settings of generation.
_COMPANIONS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja"),
    *("chat_template.json", "generation_config.json"),
)


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

    def copy_companions(self, folder: Path) -> list[str]:
        """Copy what stood beside the weights, as it is; returns the names."""
        names = [name for name in _COMPANIONS if (self.folder / name).is_file()]
        for name in names:
            shutil.copyfile(self.folder / name, folder / name)
        return names

    def save(self, folder: Path) -> None:
        """Write it into a folder, companions too, for `load_origin`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(self.config, encoding="utf-8")
        self.copy_companions(folder)
        notes = {
            "prefix": self.prefix,
            "dtypes": self.dtypes,
            "files": self.layout.files,
            "metadata": self.layout.metadata,
            "index_metadata": self.layout.index_metadata,
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
        layout = FileLayout(notes["files"], notes["metadata"], notes["index_metadata"])
        text = (folder / CONFIG).read_text(encoding="utf-8")
        return Origin(folder, text, notes["prefix"], notes["dtypes"], layout)
    except KeyError as error:
        raise CheckpointError(f"{folder / _NOTES} lacks {error}. Convert again.") from error
