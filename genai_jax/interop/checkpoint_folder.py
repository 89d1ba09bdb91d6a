"""A folder with a checkpoint of Hugging Face's: which tensors lie in which of its files.

One file, `model.safetensors`, or several with an index. Nothing outside of the folder is opened,
and nothing that would have to be unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genai_jax.data.folders import FolderError, inside, read_json, read_text
from genai_jax.interop.safetensors import (
    Outgoing,
    SafetensorsFile,
    TensorEntry,
    write_safetensors,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class CheckpointError(FolderError):
    """A folder is not a checkpoint that can be read, or not one of this model."""


@dataclass(frozen=True)
class FileLayout:
    """How a checkpoint was cut into files, so that it can be written in the same way.

    Attributes:
        files: Names of tensors in the order of their bytes, by name of the file.
        metadata: Metadata of each file.
        index: Text of the index; None where there is none.
    """

    files: dict[str, list[str]]
    metadata: dict[str, dict[str, str]]
    index: str | None

    def without(self, endings: tuple[str, ...]) -> "FileLayout":
        """Leave out the tensors whose names end so, in the index too."""
        files = {
            file: [name for name in names if not name.endswith(endings)]
            for file, names in self.files.items()
        }
        if files == self.files or self.index is None:
            return FileLayout(files, self.metadata, self.index)
        index = json.loads(self.index)
        places = index["weight_map"].items()
        index["weight_map"] = {name: x for name, x in places if not name.endswith(endings)}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        return FileLayout(files, self.metadata, text)


class CheckpointFolder:
    """The tensors of a folder, by name; none is read before it is asked for.

    Attributes:
        path: The folder.
        index: The index; None where there is but one file.
        entries: What there is, by name.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the files and check that they and the index agree.

        Raises:
            CheckpointError: If there is no checkpoint, only a pickled one, a file outside of the
                folder, or an index that does not fit the files.
            SafetensorsError: If a file is not what the format says.
        """
        self.path = Path(folder)
        if not self.path.is_dir():
            raise CheckpointError(
                f"a checkpoint is a folder with {CONFIG} and {SINGLE}; {self.path} is no folder. "
                "Download one with `huggingface-cli download NAME --local-dir FOLDER`."
            )
        self.index = self._read_index()
        names = [SINGLE] if self.index is None else sorted(set(self.index["weight_map"].values()))
        self._files = {name: SafetensorsFile(inside(self.path, name)) for name in names}
        self._file_of = {
            tensor: name for name, file in self._files.items() for tensor in file.entries
        }
        self.entries: dict[str, TensorEntry] = {
            tensor: self._files[name].entries[tensor] for tensor, name in self._file_of.items()
        }
        self._check_index()

    def _read_index(self) -> dict[str, Any] | None:
        """Read the index, if there is one; without one there must be the one file."""
        if (self.path / INDEX).exists():
            index = read_json(inside(self.path, INDEX))
            places = index.get("weight_map")
            if not isinstance(places, dict) or not all(map(is_file_name, places.values())):
                raise CheckpointError(
                    f"{self.path / INDEX}: `weight_map` must give each tensor the name of a file "
                    "in this folder that ends in .safetensors, without a path. Fetch it again."
                )
            return index
        if not (self.path / SINGLE).exists():
            pickled = sorted(path.name for kind in _PICKLES for path in self.path.glob(kind))
            if pickled:
                raise CheckpointError(
                    f"{self.path} has pickled weights only ({', '.join(pickled[:3])}), which could "
                    "run any program as they are loaded; they are refused. Fetch the safetensors "
                    "of this model, or convert them where you trust them."
                )
            raise CheckpointError(
                f"a checkpoint must have {SINGLE}, or {INDEX} and its files; {self.path} has "
                f"neither. Fetch the whole folder."
            )
        return None

    def _check_index(self) -> None:
        if len(self._file_of) != sum(len(file.entries) for file in self._files.values()):
            seen: set[str] = set()
            for file in self._files.values():
                for twice in seen & file.entries.keys():
                    raise CheckpointError(f"{self.path}: tensor {twice!r:.80} lies in two files.")
                seen |= file.entries.keys()
        if self.index is not None and self.index["weight_map"] != self._file_of:
            said = self.index["weight_map"]
            wrong = sorted(
                name for name in said.keys() | self._file_of.keys()
                if said.get(name) != self._file_of.get(name)
            )  # fmt: skip
            raise CheckpointError(
                f"{self.path / INDEX} and the files must agree; they do not on {some(wrong)}. "
                "Fetch the whole folder again."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        """View a tensor, read-only; bytes come from the disk as they are used."""
        return self._files[self._file_of[name]][name]

    @property
    def layout(self) -> FileLayout:
        """How it is cut into files."""
        return FileLayout(
            {name: list(file.entries) for name, file in self._files.items()},
            {name: file.metadata for name, file in self._files.items()},
            None if self.index is None else read_text(self.path / INDEX),
        )


def write_checkpoint(
    folder: str | Path, tensors: Mapping[str, Outgoing], layout: FileLayout
) -> None:
    """Write tensors into a folder as a layout says.

    Args:
        folder: Is made where it is missing.
        tensors: By name; exactly those of the layout.
        layout: Which file each goes to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in layout.files.items():
        chosen = {name: tensors[name] for name in names}
        write_safetensors(folder / file, chosen, layout.metadata[file])
    if layout.index is not None:
        (folder / INDEX).write_bytes(layout.index.encode("utf-8"))


def plan_files(tensors: Mapping[str, Outgoing], most_bytes: int) -> FileLayout:
    """Cut tensors into files of at most `most_bytes` each, in the order given.

    A tensor that is larger than that has a file of its own. One file needs no index.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    count = len(groups)
    names = (
        [SINGLE]
        if count == 1
        else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    files = dict(zip(names, groups, strict=True))
    metadata = {name: {"format": "pt"} for name in names}
    if count == 1:
        return FileLayout(files, metadata, None)
    places = {tensor: file for file, group in files.items() for tensor in group}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    return FileLayout(files, metadata, text)


def some(names: list[str], most: int = 5) -> str:
    """List a few names, and how many there are besides."""
    listed = ", ".join(repr(name[:80]) for name in names[:most])
    return listed + (f" and {len(names) - most:,} more" if len(names) > most else "")


def is_file_name(said: Any) -> bool:
    """Whether something is the name of a file of tensors, without a path."""
    if not isinstance(said, str):
        return False
    plain = said == Path(said).name and "\\" not in said and "\0" not in said
    return plain and said.endswith(".safetensors")
