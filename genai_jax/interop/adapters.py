"""Low-rank adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

Which tensor is which of ours, GPT-2's fused module too: `interop.adapter_matrices`.
"""

import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genai_jax.data.folders import FolderError, inside, read_json
from genai_jax.interop.adapter_matrices import (
    Matrices,
    Place,
    divide,
    places_by_module,
    unite,
)
from genai_jax.interop.checkpoint_folder import some
from genai_jax.interop.export import find_family
from genai_jax.interop.family import Family
from genai_jax.interop.safetensors import Outgoing, SafetensorsFile, write_safetensors
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import adapters_of, attach
from genai_jax.nn.lora import Lora

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_OUTER = "base_model.model."
_PART = re.compile(r"^(.*)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)$")
_BLOCKS = "ranks of blocks"
_NAMES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_TYPES = ("F32", "BF16", "F16")
# Fields that ask for what is not built here, unless they are absent, null, false or empty.
_REFUSED = (
    *("modules_to_save", "layers_to_transform", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "lora_bias", "use_qalora", "alora_invocation_tokens"),
    *("use_bdlora", "kasa_config", "velora_config", "monteclora_config", "arrow_config"),
)
# Ways to begin that leave the base as it is; others put a part of it into the adapter.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


class AdapterError(FolderError):
    """A folder is not an adapter that can be read, or not one of this model."""


def load_adapter(folder: str | Path, model: LanguageModel, *, base: str = "") -> LanguageModel:
    """Put an adapter of PEFT's onto a model: LoRA, rsLoRA or DoRA.

    Args:
        folder: Holds its two files.
        model: The one that it was made for, without adapters; layers may be stacked.
        base: The model's name or folder; if the adapter names another one, a warning says so.

    Raises:
        AdapterError: If it is of another kind or for another model, naming what does not fit.
        SafetensorsError: If the file is damaged.
    """
    folder = Path(folder)
    _check_pickles(folder)
    config = read_json(inside(folder, ADAPTER_CONFIG))
    _check_config(folder, config)
    _warn_of_another_base(folder, str(config.get("base_model_name_or_path") or ""), base)
    family, _ = find_family(model.config)
    file = SafetensorsFile(inside(folder, ADAPTER_WEIGHTS))
    modules = places_by_module(model, family)
    parts = _read_parts(folder, file, family, modules, model.config.num_layers)
    blocks = _noted_blocks(file)
    loras: dict[str, dict[int | None, Lora]] = {}
    for module, places in modules.items():
        if module not in parts:
            continue
        whole = _check_module(folder, module, places[0].shape, parts[module], config)
        for place, own in zip(places, divide(whole, places, blocks), strict=True):
            if own is not None:
                loras.setdefault(place.name, {})[place.layer] = place.ours(own)
    return attach(model, {name: _stack(folder, name, found) for name, found in loras.items()})


def _stack(folder: Path, name: str, found: Mapping[int | None, Lora]) -> Lora:
    """Put the adapters of all layers into one, if layers are stacked."""
    if None in found:
        return found[None]
    layers = [found[layer] for layer in sorted(found, key=lambda layer: layer or 0)]
    if len({(lora.rank, lora.scale) for lora in layers}) > 1:
        raise AdapterError(
            f"{folder}: in stacked layers a projection must have the same rank and alpha in all of "
            f"them; {name} has not. Hold the layers unrolled."
        )
    lora: Lora = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return lora


def save_adapter(folder: str | Path, model: LanguageModel, *, base: str = "") -> None:
    """Write a model's adapters so that PEFT reads them.

    Args:
        folder: Is made where it is missing.
        model: With adapters; layers may be stacked.
        base: Name or folder of the model in transformers' layout that they belong to.

    Raises:
        ValueError: If it has none.
        ConfigError: If no family of transformers' can say the model's shape.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ValueError(
            "a model must have adapters to save; this one has none. add_lora gives it."
        )
    family, _ = find_family(model.config)
    dora = any(lora.magnitude is not None for lora in adapters.values())
    rslora = all(lora.rslora for lora in adapters.values())
    written: dict[str, Matrices] = {}
    ranks = set()
    for module, places in places_by_module(model, family).items():
        own = [place.theirs(dora, rslora) for place in places]
        if any(part.rank for part in own):
            written[module] = unite(own)
            if len(own) > 1:
                blocks = sum(part.rank for part in own) == written[module].rank
                ranks.add(",".join(str(part.rank) for part in own) if blocks else "")
    metadata = {"format": "pt"}
    if len(ranks) == 1 and ranks != {""}:
        metadata[_BLOCKS] = ranks.pop()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = _OUTER + family.prefixes[0]
    tensors = {
        f"{prefix}{module}.{part}": Outgoing(x.dtype, x.shape, functools.partial(np.asarray, x))
        for module, adapter in sorted(written.items())
        for part, x in zip(_NAMES, (adapter.a, adapter.b, adapter.magnitude), strict=True)
        if x is not None
    }
    write_safetensors(folder / ADAPTER_WEIGHTS, tensors, metadata)
    said = _describe(written, family, dora, rslora) | {"base_model_name_or_path": base or None}
    text = json.dumps(said, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG).write_bytes(text.encode("utf-8"))


def _describe(
    written: Mapping[str, Matrices], family: Family, dora: bool, rslora: bool
) -> dict[str, Any]:
    """Make the fields of `adapter_config.json`; what is not usual for a module stands by itself."""
    usual, _ = Counter((x.rank, x.alpha) for x in written.values()).most_common(1)[0]

    def number(alpha: float) -> int | float:
        return int(alpha) if alpha == int(alpha) else alpha

    prefix = family.prefixes[0]
    ranks = {prefix + name: x.rank for name, x in written.items() if x.rank != usual[0]}
    alphas = {prefix + name: number(x.alpha) for name, x in written.items() if x.alpha != usual[1]}
    first = next(name for name in family.modules if name.startswith("layers/"))
    stem = family.modules[first].split("{}.")[0]  # `h.` or `layers.`
    targets = {re.sub(rf"^{re.escape(stem)}\d+\.", "", name) for name in written}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": usual[0],
        "lora_alpha": number(usual[1]),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(targets),
        "use_rslora": rslora,
        "use_dora": dora,
        "fan_in_fan_out": not family.turned,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _check_pickles(folder: Path) -> None:
    if not (folder / ADAPTER_WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterError(
            f"{folder} has pickled weights only (adapter_model.bin), which could run any program "
            "as they are loaded; they are refused. Save the adapter again with a newer PEFT."
        )


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is not built here."""

    def refuse(name: str, rule: str) -> AdapterError:
        shown = json.dumps(config.get(name), default=str)[:80]
        return AdapterError(f"{folder / ADAPTER_CONFIG}: `{name}` must be {rule}; got {shown}.")

    if config.get("peft_type") != "LORA":
        raise refuse("peft_type", "LORA: no other kind is built here")
    if config.get("bias", "none") != "none":
        raise refuse("bias", "none: trained biases are not read. Merge it with PEFT instead")
    for name in _REFUSED:
        if config.get(name):
            raise refuse(name, "empty: it is not built here. Merge the adapter with PEFT instead")
    beginning = config.get("init_lora_weights")
    if not any(beginning is x or (isinstance(x, str) and beginning == x) for x in _BEGINNINGS):
        raise refuse(
            "init_lora_weights",
            "one that leaves the base as it was. Convert it with PEFT "
            "(path_initial_model_for_weight_conversion)",
        )
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        plain = isinstance(pattern, dict) and all(
            re.fullmatch(r"\^?[\w.]+", key) for key in pattern
        )
        if not plain:
            raise refuse(name, "an object by plain names of modules")
    for name in ("use_dora", "use_rslora"):
        if not isinstance(config.get(name, False), bool):
            raise refuse(name, "true or false")


def _warn_of_another_base(folder: Path, said: str, base: str) -> None:
    if said and base and Path(said).name.lower() != Path(base).name.lower():
        print(
            f"WARNING: the adapter in {folder} says that it is for {said}; it is put onto {base}, "
            "whose shapes fit.",
            file=sys.stderr,
        )


def _read_parts(
    folder: Path,
    file: SafetensorsFile,
    family: Family,
    modules: Mapping[str, list[Place]],
    layers: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Sort tensors by module, and check that they are of this model's modules, in every layer."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, entry in file.entries.items():
        found = _PART.match(name.removeprefix(_OUTER))
        inner = "" if found is None else found[1]
        fitting = (inner.removeprefix(prefix) for prefix in family.prefixes)
        module = next((x for x in fitting if x in modules), None)
        if found is None or module is None:
            unknown.append(name)
            continue
        if entry.dtype not in _TYPES:
            raise AdapterError(
                f"{folder}: tensor {name!r} must be {', '.join(_TYPES)}; got {entry.dtype}. "
                "Save the adapter in one of these."
            )
        part = found[2].removesuffix(".weight")
        parts.setdefault(module, {})[part] = np.asarray(file[name], np.float32)
    kinds = {re.sub(r"\.\d+\.", ".", module, count=1) for module in parts}
    missing = [
        module
        for module in modules
        if re.sub(r"\.\d+\.", ".", module, count=1) in kinds and module not in parts
    ]
    if unknown or missing or not parts:
        raise AdapterError(
            f"{folder} must be an adapter for this model, a {family.model_type} of {layers} "
            "layers; "
            + "; ".join(
                [f"it has what the model lacks: {some(unknown)}"] * bool(unknown)
                + [f"it lacks the modules {some(missing)}"] * bool(missing)
                + ["it has no tensors"] * (not parts and not unknown)
            )
            + ". Take the model that it was made for."
        )
    return parts


def _of_pattern(config: Mapping[str, Any], name: str, usual: str, module: str) -> Any:
    """Look up a module's rank or alpha: by a name that its own ends with, or the usual one."""
    for key, value in (config.get(name) or {}).items():
        # Their keys are regular expressions that begin anywhere in front of a whole word.
        plain = key.removeprefix("^")
        whole = ["transformer." + module, "model." + module, module]
        if any(full == plain or full.endswith("." + plain) for full in whole):
            return value
    return config.get(usual)


def _check_module(
    folder: Path,
    module: str,
    shape: tuple[int, int],
    parts: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> Matrices:
    """Check the tensors of a module against the model and what the configuration says."""
    rank = _of_pattern(config, "rank_pattern", "r", module)
    alpha = _of_pattern(config, "alpha_pattern", "lora_alpha", module)
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise AdapterError(
                f"{folder / ADAPTER_CONFIG}: `{name}` must be a number above 0; got {value!r:.80}."
            )
    outputs, inputs = shape
    wanted: dict[str, tuple[Any, ...]] = {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}
    if config.get("use_dora"):
        wanted["lora_magnitude_vector"] = (outputs,)
    got = {name: x.shape for name, x in parts.items()}
    if got != wanted:
        raise AdapterError(
            f"{folder}: the adapter of {module!r} must be {wanted} for this model and the rank "
            f"that {ADAPTER_CONFIG} says; got {got}. Take the model that it was made for."
        )
    return Matrices(
        parts["lora_A"],
        parts["lora_B"],
        parts.get("lora_magnitude_vector"),
        float(alpha),
        bool(config.get("use_rslora")),
    )


def _noted_blocks(file: SafetensorsFile) -> list[int] | None:
    """Read the ranks that `save_adapter` noted."""
    said = file.metadata.get(_BLOCKS, "")
    return (
        [int(x) for x in said.split(",")] if re.fullmatch(r"\d{1,6}(,\d{1,6}){2}", said) else None
    )
