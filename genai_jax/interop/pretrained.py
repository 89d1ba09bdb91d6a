"""Language models from folders of Hugging Face's: one engine for all families.

Values stay as they are in the file: no scale is folded in, nothing is permuted. So what comes in
can go out again to the last bit; whatever a family computes otherwise is computed as it runs.
"""

import dataclasses
import functools
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genai_jax.data.folders import inside, read_json, read_text
from genai_jax.interop.checkpoint_folder import (
    CONFIG,
    CheckpointError,
    CheckpointFolder,
    some,
)
from genai_jax.interop.family import Family, canonical
from genai_jax.interop.gemma import GEMMA2, GEMMA3
from genai_jax.interop.gpt2 import GPT2
from genai_jax.interop.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from genai_jax.interop.origin import Origin
from genai_jax.interop.safetensors import DTYPES
from genai_jax.interop.settings import ConfigError, Settings
from genai_jax.interop.tensor_names import HEAD, Slot, find_prefix, slots_of
from genai_jax.interop.text_part import TextPart, describe_text_part, has_text_part
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import Dtype, TransformerConfig
from genai_jax.paths import map_named
from genai_jax.types import PyTree

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2)
"""All that are known."""


_DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_config(raw: dict[str, Any]) -> tuple[Family, TransformerConfig]:
    """Read a `config.json`.

    Raises:
        ConfigError: If the architecture is not known, or a field says what is not built here.
    """
    known = {family.model_type: family for family in FAMILIES}
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"config.json: `model_type` must be one of {', '.join(known)}; got {name!r:.80}."
        )
    family = known[name]
    return family, family.read(Settings(raw, family.defaults))


def _check_tensors(
    folder: CheckpointFolder | TextPart, slots: list[Slot], buffers: tuple[str, ...]
) -> None:
    """Check that a folder has the tensors of a model, of the right shapes, and no others."""
    entries = folder.entries
    wanted = {slot.theirs: slot.their_shape for slot in slots}
    missing = [name for name in wanted if name not in entries]
    surplus = [
        name
        for name in entries
        if name not in wanted and name != HEAD and not name.endswith(buffers)
    ]
    if missing or surplus:
        raise CheckpointError(
            f"{folder.path}: tensors must be those that config.json describes; "
            f"{f'missing are {some(missing)}' if missing else ''}"
            f"{'; ' if missing and surplus else ''}"
            f"{f'not known are {some(surplus)}' if surplus else ''}. "
            "Fetch config.json and the weights of the same model."
        )
    for name, shape in wanted.items():
        entry = entries[name]
        if entry.shape != shape:
            raise CheckpointError(
                f"{folder.path}: tensor {name!r} must have shape {shape}, as config.json says; got "
                f"{entry.shape}. Fetch config.json and the weights of the same model."
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{folder.path}: tensor {name!r} must be {', '.join(_DTYPES)}; got {entry.dtype}. "
                "Quantised checkpoints are not read: fetch the original weights."
            )


class PretrainedFolder:
    """A folder whose `config.json` and tensors fit each other; nothing is read yet.

    Attributes:
        config: Shape of the model; its `param_dtype` is that of the file's embedding.
        family: Which of the families it is.
        origin: For `save_pretrained`, to write it again as it was.
    """

    def __init__(self, folder: str | Path) -> None:
        """Check a folder.

        Raises:
            ConfigError: If the model is one that cannot be built here.
            CheckpointError: If tensors are missing, surplus or of other shapes, or files are not
                what they should be.
            SafetensorsError: If a file is damaged.
        """
        self._folder: CheckpointFolder | TextPart = CheckpointFolder(folder)
        path = inside(self._folder.path, CONFIG)
        raw, text = read_json(path), read_text(path)
        if has_text_part(raw):
            self._folder, text = TextPart(self._folder), describe_text_part(raw)
            raw = json.loads(text)
        self.family, self.config = read_config(raw)
        if self.config.num_layers > len(self._folder.entries):
            raise CheckpointError(
                f"{self._folder.path}: config.json describes {self.config.num_layers:,} layers, "
                f"yet there are {len(self._folder.entries):,} tensors. Fetch config.json and the "
                "weights of the same model."
            )
        prefix = find_prefix(self.family, self._folder.entries)
        self._slots = slots_of(self.family, self.config, prefix)
        _check_tensors(self._folder, self._slots, self.family.buffers)
        self._check_head()
        table = self._folder.entries[self._slots[0].theirs]
        self.config = dataclasses.replace(self.config, param_dtype=_DTYPES[table.dtype])
        layout = self._folder.layout.without(self.family.buffers)
        dtypes = {
            name: entry.dtype
            for name, entry in self._folder.entries.items()
            if not name.endswith(self.family.buffers)
        }
        self.origin = Origin(self._folder.path, text, prefix, dtypes, layout)

    def _check_head(self) -> None:
        """Check that a head that stands beside a tied embedding is the same."""
        if not self.config.tied or HEAD not in self._folder.entries:
            return
        table = next(slot.theirs for slot in self._slots if slot.ours == "embedding/table")
        if not np.array_equal(
            self._folder[HEAD].view(np.uint8), self._folder[table].view(np.uint8)
        ):
            raise CheckpointError(
                f"{self._folder.path}: config.json ties the head to the embedding "
                f"(`tie_word_embeddings`), yet {HEAD!r} differs from {table!r}. Set it to false to "
                "have the head as it is in the file."
            )

    def abstract(self, config: TransformerConfig | None = None) -> PyTree:
        """Describe the model's arrays in the types of the file, for `load`.

        Args:
            config: The same shape, with other storage (`layers`) perhaps; None is `self.config`.
        """
        config = self.config if config is None else config
        dtype_of = {slot.ours: self._folder.entries[slot.theirs].dtype for slot in self._slots}
        model = jax.eval_shape(lambda: LanguageModel(config, jax.random.key(0)))
        return map_named(
            lambda name, leaf: jax.ShapeDtypeStruct(
                leaf.shape, DTYPES[dtype_of[in_layer(name, 0)]]
            ),
            model,
        )

    def load(self, like: PyTree = None) -> LanguageModel:
        """Read the parameters, each device only what it holds.

        Args:
            like: The model's arrays, or `jax.ShapeDtypeStruct`s, whose types and shardings to take;
                None is `self.abstract()`. Layers may be stacked.

        Raises:
            CheckpointError: If `like` is a model of another shape.
        """
        slot_of = {slot.ours: slot for slot in self._slots}

        def read(name: str, leaf: Any) -> jax.Array:
            stacked = name not in slot_of
            slots = [slot_of.get(in_layer(name, i)) for i in range(leaf.shape[0] if stacked else 1)]
            known = [slot for slot in slots if slot is not None]
            shape = (len(known), *known[0].shape) if stacked and known else known and known[0].shape
            if len(known) != len(slots) or tuple(leaf.shape) != tuple(shape):
                raise CheckpointError(
                    f"{self._folder.path} is a model of another shape: it has no {name!r} of shape "
                    f"{tuple(leaf.shape)}. Take the shape that its config.json says."
                )
            sharding = getattr(leaf, "sharding", None)
            sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
            part = functools.partial(self._part, known, stacked, leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, sharding, part)

        return map_named(read, self.abstract() if like is None else like)

    def checksum(self) -> str:
        """Compute a CRC-32 of all tensors and of the shape, in hexadecimal."""
        total = zlib.crc32(repr(canonical(self.config)).encode())
        for name in sorted(self._folder.entries):
            total = zlib.crc32(self._folder[name].reshape(-1).view(np.uint8).data, total)
        return f"{total:08x}"

    def _part(
        self, slots: list[Slot], stacked: bool, dtype: np.dtype, index: tuple[slice, ...]
    ) -> np.ndarray:
        """Copy a part of a parameter from the disk."""
        if not stacked:
            return np.array(slots[0].view(self._folder[slots[0].theirs])[index], dtype, order="C")
        layers, *rest = index
        parts = [slot.view(self._folder[slot.theirs])[tuple(rest)] for slot in slots[layers]]
        return np.stack(parts).astype(dtype, copy=False)


def in_layer(name: str, layer: int) -> str:
    """Name a parameter of a stack in one of its layers; others keep their names."""
    first, _, rest = name.partition("/")
    if first == "layers" and not rest.split("/")[0].isdigit():
        return f"layers/{layer}/{rest}"
    return name
