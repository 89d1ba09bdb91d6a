"""Language models to folders of Hugging Face's: their own again as they were, and ours."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from genai_jax.interop.checkpoint_folder import CONFIG, FileLayout, plan_files, write_checkpoint
from genai_jax.interop.family import Family, canonical
from genai_jax.interop.origin import Origin
from genai_jax.interop.pretrained import FAMILIES, in_layer, read_config
from genai_jax.interop.safetensors import DTYPES, Outgoing
from genai_jax.interop.settings import ConfigError, Settings
from genai_jax.interop.tensor_names import HEAD, Slot, slots_of
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import adapters_of
from genai_jax.nn.config import TransformerConfig
from genai_jax.paths import named_leaves

_BIASES = ("norm_bias", "qkv_bias", "output_bias", "mlp_bias")
_MOST_FILE_BYTES = 5_000_000_000


def find_family(
    config: TransformerConfig, families: Sequence[Family] = FAMILIES
) -> tuple[Family, dict[str, Any]]:
    """Find a family that can say a shape, and how its `config.json` says it.

    Where a family has biases that the model lacks, zeros are the same function.

    Raises:
        ConfigError: If none can, naming what the nearest says otherwise.
    """
    ours = canonical(config)
    candidates = []
    for family in families:
        fields = family.write(ours)
        try:
            theirs = family.read(Settings(fields, family.defaults))
        except ValueError:  # a shape that this family cannot have at all
            continue
        names = [field.name for field in dataclasses.fields(ours)]
        differs = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
        wrong = [name for name in differs if name not in _BIASES or getattr(ours, name)]
        candidates.append((len(wrong), len(differs), family, fields, wrong, theirs))
    if not candidates:
        known = ", ".join(family.model_type for family in families)
        raise ConfigError(f"a model must be of a known family to be written: {known}.")
    number, _, family, fields, wrong, theirs = min(candidates, key=lambda found: found[:2])
    if number:
        said = ", ".join(
            f"`{name}` {getattr(ours, name)!r} ({getattr(theirs, name)!r} there)" for name in wrong
        )
        raise ConfigError(
            "a model must be of a known family to be written; the nearest to this one is "
            f"{family.model_type}, which differs in {said}."
        )
    return family, fields


def save_pretrained(
    folder: str | Path,
    model: LanguageModel,
    *,
    origin: Origin | None = None,
    dtype: np.dtype | None = None,
    most_file_bytes: int | None = None,
    token_ids: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `config.json` and safetensors, tensor by tensor.

    Args:
        folder: Is made where it is missing; files of the same names are replaced.
        model: Its parameters; layers may be stacked.
        origin: Of the folder that it came from: names, types, order and files are then as they
            were there, what stood beside the weights is copied, and `config.json` is the same
            unless the shape is another by now.
        dtype: Type to write; None is that of the origin, or of each parameter.
        most_file_bytes: Larger models are cut into several files; None is as in the origin, or
            5 GB.
        token_ids: Fields of a new `config.json` such as `eos_token_id`.

    Raises:
        ConfigError: If no family can say the model's shape.
        ValueError: If it has adapters.
    """
    if adapters_of(model):
        raise ValueError(
            "a model is written without adapters; this one has some. Merge them first "
            "(models.lora.merge_lora), or write them by themselves (interop.adapters.save_adapter)."
        )
    config = canonical(model.config)
    held = np.dtype(dtype or model.embedding.table[...].dtype)
    text, family = _describe(config, origin, held, dtype is not None, token_ids)
    prefix = family.prefixes[0] if origin is None else origin.prefix
    _, theirs = read_config(json.loads(text))
    slots = slots_of(family, theirs, prefix)
    tensors = _outgoing(model, slots, dtype, {} if origin is None else origin.dtypes)
    if origin is not None and any(HEAD in names for names in origin.layout.files.values()):
        table = next(slot.theirs for slot in slots if slot.ours == "embedding/table")
        tensors.setdefault(HEAD, tensors[table])
    same_files = origin is not None and dtype is None and most_file_bytes is None
    layout = _layout(tensors, origin if same_files else None, most_file_bytes or _MOST_FILE_BYTES)
    folder = Path(folder)
    write_checkpoint(folder, tensors, layout)
    if origin is not None:
        origin.copy_companions(folder)
    (folder / CONFIG).write_bytes(text.encode("utf-8"))


def _describe(
    config: TransformerConfig,
    origin: Origin | None,
    dtype: np.dtype,
    retyped: bool,
    token_ids: Mapping[str, Any],
) -> tuple[str, Family]:
    """Write `config.json`: that of the origin where it still says this shape."""
    families: Sequence[Family] = FAMILIES
    raw: dict[str, Any] = {}
    if origin is not None:
        raw = json.loads(origin.config)
        family, shape = read_config(raw)
        if canonical(shape) == config:
            if not retyped:
                return origin.config, family
            field = "dtype" if "dtype" in raw else "torch_dtype"
            return _as_text(raw | {field: str(dtype)}), family
        families = (family, *(other for other in FAMILIES if other is not family))
    # Of an older shape nothing may stay that would be read.
    kept = {name: value for name, value in raw.items() if name.endswith("_token_id")}
    family, fields = find_family(config, families)
    kind = {"architectures": [family.architecture], "model_type": family.model_type}
    return _as_text(kept | dict(token_ids) | kind | {"torch_dtype": str(dtype)} | fields), family


def _as_text(raw: dict[str, Any]) -> str:
    return json.dumps(raw, indent=2, sort_keys=True) + "\n"


def _layout(
    tensors: dict[str, Outgoing], origin: Origin | None, most_file_bytes: int
) -> FileLayout:
    """Take the origin's files, if they hold just these tensors."""
    if origin is not None:
        names = {name for names in origin.layout.files.values() for name in names}
        if names == tensors.keys():
            return origin.layout
    return plan_files(tensors, most_file_bytes)


def _outgoing(
    model: LanguageModel,
    slots: list[Slot],
    dtype: np.dtype | None,
    their_dtypes: Mapping[str, str],
) -> dict[str, Outgoing]:
    """Say what is to be written, and how to get it when its turn comes."""
    parameters = _parameters(model)
    usual = parameters["embedding/table"].dtype
    together: dict[str, list[Slot]] = {}
    for slot in slots:
        together.setdefault(slot.theirs, []).append(slot)

    def outgoing(group: list[Slot]) -> Outgoing:
        # A bias of the family's that the model does without is zero.
        parts = [
            parameters.get(slot.ours)
            or Outgoing(usual, slot.shape, functools.partial(np.zeros, slot.shape, usual))
            for slot in group
        ]
        theirs = group[0].theirs
        kind = parts[0].dtype if theirs not in their_dtypes else DTYPES[their_dtypes[theirs]]
        kind = np.dtype(dtype or kind)

        def read() -> np.ndarray:
            flat = [slot.flatten(part.read()) for slot, part in zip(group, parts, strict=True)]
            return np.concatenate(flat, axis=-1).astype(kind, copy=False)

        return Outgoing(kind, group[0].their_shape, read)

    return {theirs: outgoing(group) for theirs, group in together.items()}


def _parameters(model: LanguageModel) -> dict[str, Outgoing]:
    """List every parameter of every layer, stacked or not; one at a time leaves the devices."""
    found = {}
    for name, leaf in named_leaves(model):
        if in_layer(name, 0) == name:
            fetch = functools.partial(_fetch, leaf)
            found[name] = Outgoing(np.dtype(leaf.dtype), leaf.shape, fetch)
            continue
        for layer in range(leaf.shape[0]):
            fetch = functools.partial(_fetch, leaf, layer)
            found[in_layer(name, layer)] = Outgoing(np.dtype(leaf.dtype), leaf.shape[1:], fetch)
    return found


def _fetch(leaf: jax.Array, layer: int | None = None) -> np.ndarray:
    return np.asarray(jax.device_get(leaf if layer is None else leaf[layer]))
