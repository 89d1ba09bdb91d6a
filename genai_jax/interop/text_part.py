"""The language model inside a model of several modalities: Gemma 3 from 4B on can see, too.

Its `config.json` describes the language model in `text_config`, and its tensors have another
prefix. What sees is left out; what is written again is the language model by itself.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from genai_jax.interop.checkpoint_folder import CheckpointFolder, FileLayout
from genai_jax.interop.safetensors import TensorEntry

_KINDS = {"gemma3": ("gemma3_text", "Gemma3ForCausalLM")}
# Of its tensors, as transformers 4 and 5 write them: what becomes of their names.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_SEES = ("vision_tower.", "multi_modal_projector.")
_SHARED = ("torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")


def has_text_part(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a language model inside another one."""
    return str(raw.get("model_type")) in _KINDS and isinstance(raw.get("text_config"), dict)


def describe_text_part(raw: Mapping[str, Any]) -> str:
    """Write the `config.json` of the language model by itself."""
    model_type, architecture = _KINDS[raw["model_type"]]
    shared = {name: raw[name] for name in _SHARED if name in raw}
    kind = {"model_type": model_type, "architectures": [architecture]}
    return json.dumps(shared | raw["text_config"] | kind, indent=2, sort_keys=True) + "\n"


class TextPart:
    """The tensors of the language model, by the names that they have by themselves.

    Attributes:
        path: The folder.
        entries: What there is, by name; a tensor that is neither the language model's nor one of
            what sees keeps its name.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        """Look into a folder."""
        self._folder = folder
        self.path = folder.path
        self._theirs = dict(_renamed(folder.entries))
        self.entries: dict[str, TensorEntry] = {
            ours: folder.entries[theirs] for ours, theirs in self._theirs.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        """View a tensor, as `CheckpointFolder` does."""
        return self._folder[self._theirs[name]]

    @property
    def layout(self) -> FileLayout:
        """How it would be cut into files: as it is, without what is left out."""
        ours = {theirs: name for name, theirs in self._theirs.items()}
        whole = self._folder.layout
        files = {
            file: [ours[name] for name in names if name in ours]
            for file, names in whole.files.items()
        }
        files = {file: names for file, names in files.items() if names}
        index = None
        if whole.index is not None:
            places = {name: file for file, names in files.items() for name in names}
            total = sum(self[name].nbytes for name in places)
            said = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            index = json.dumps(said, indent=2) + "\n"
        return FileLayout(files, {file: whole.metadata[file] for file in files}, index)


def _renamed(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pair the names that tensors are to have with those that they have."""
    for name in names:
        if name.removeprefix("model.").startswith(_SEES):
            continue
        known = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        yield _PREFIXES.get(known, "") + name.removeprefix(known), name
