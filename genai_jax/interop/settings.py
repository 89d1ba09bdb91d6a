"""Fields of a `config.json`: their types, their family's defaults, and what would be ignored.

Reads both dialects: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters` (5).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genai_jax.nn.config import LayerKind
from genai_jax.nn.rope import RopeConfig

# Beyond these no model was ever made, and building its description alone would take for ever.
_MOST = 2**31 - 1
_MOST_LAYERS = 10_000


class ConfigError(ValueError):
    """A `config.json` describes a model that cannot be built here, or none."""


class Settings:
    """Fields of a `config.json`, with the defaults that transformers gives absent ones."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.raw = raw
        self.defaults = defaults

    def __getitem__(self, name: str) -> Any:
        """Take a field, or its default; null where that is the default too, or has a meaning."""
        return self.raw.get(name, self.defaults.get(name))

    def whole(self, name: str, most: int = _MOST, least: int = 1) -> int:
        """Take a whole number from `least` to `most`."""
        value = self[name]
        if type(value) is not int or not least <= value <= most:
            raise _fault(name, value, f"a whole number from {least} to {most:,}")
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """Take the number of layers."""
        return self.whole(name, _MOST_LAYERS)

    def maybe_whole(self, name: str) -> int | None:
        """Take a whole number from 1 on, or null."""
        return None if self[name] is None else self.whole(name)

    def positive(self, name: str) -> float:
        """Take a number above 0."""
        value = self[name]
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise _fault(name, value, "a number above 0")
        return float(value)

    def maybe_positive(self, name: str) -> float | None:
        """Take a number above 0, or null."""
        return None if self[name] is None else self.positive(name)

    def truth(self, name: str) -> bool:
        """Take true or false; null is false."""
        value = self[name]
        if value is not None and type(value) is not bool:
            raise _fault(name, value, "true or false")
        return bool(value)

    def one_of(self, name: str, meanings: Mapping[str, Any]) -> Any:
        """Take a name, and give what it means."""
        value = self[name]
        if not isinstance(value, str) or value not in meanings:
            raise _fault(name, value, f"one of {', '.join(meanings)}")
        return meanings[value]

    def refuse(self, *names: str, default: Any = False) -> None:
        """Refuse fields that say what is not built here, unless they are null or `default`."""
        for name in names:
            if self[name] not in (None, default, {}):
                raise _fault(name, self[name], f"{json.dumps(default)}: nothing else is built here")


def _fault(name: str, value: Any, rule: str) -> ConfigError:
    shown = json.dumps(value, default=str)
    return ConfigError(f"config.json: `{name}` must be {rule}; got {shown[:80]}.")


def read_rope(settings: Settings, kind: str = "full_attention") -> RopeConfig:
    """Read the rotary embedding of one kind of layer, in either dialect.

    Args:
        settings: Fields of the model; the default of `rope_theta` is its family's.
        kind: Whose parameters to take where they differ between kinds of layers.

    Raises:
        ConfigError: If the type is not known, or a field of it is missing or is not a number.
    """
    said = _rope_fields(settings)
    if kind in said:
        said = said[kind] or {}
    if not isinstance(said, dict):
        raise _fault("rope_parameters", said, "an object")
    said = {name: value for name, value in said.items() if value is not None}
    defaults = {
        "rope_theta": settings["rope_theta"],
        "rope_type": said.get("type", "default"),
        "original_max_position_embeddings": settings["max_position_embeddings"],
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }
    rope = Settings(said, defaults)
    rope.refuse("partial_rotary_factor", default=1.0)
    settings.refuse("partial_rotary_factor", default=1.0)
    scaling = rope.one_of(
        "rope_type", {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
    )
    theta = rope.positive("rope_theta")
    if scaling == "none":
        return RopeConfig(theta)
    factor = rope.positive("factor")
    if scaling == "linear":
        return RopeConfig(theta, "linear", factor)
    original = rope.whole("original_max_position_embeddings")
    if scaling == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            factor,
            original,
            low_freq_factor=rope.positive("low_freq_factor"),
            high_freq_factor=rope.positive("high_freq_factor"),
        )
    rope.refuse("mscale", "mscale_all_dim", default=None)
    return RopeConfig(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=rope.positive("beta_fast"),
        beta_slow=rope.positive("beta_slow"),
        attention_factor=rope.maybe_positive("attention_factor"),
        truncate=rope.truth("truncate"),
    )


def _rope_fields(settings: Settings) -> dict[str, Any]:
    """Take what is said of the rotary embedding, from either dialect but not from both."""
    newer, older = settings["rope_parameters"], settings["rope_scaling"]
    if newer is not None and older is not None and newer != older:
        raise _fault("rope_scaling", older, "absent where there are `rope_parameters`")
    said = older if newer is None else newer
    if said is not None and not isinstance(said, dict):
        raise _fault("rope_parameters" if older is None else "rope_scaling", said, "an object")
    return said or {}


def read_two_ropes(settings: Settings) -> tuple[RopeConfig, float]:
    """Read the rotary embedding of global layers, and the base of that of sliding ones.

    The newer dialect has parameters of both kinds, the older one `rope_local_base_freq`.

    Raises:
        ConfigError: If only one kind has parameters, or sliding layers are stretched.
    """
    said, kinds = _rope_fields(settings), set(_KINDS)
    if not said.keys() & kinds and settings["rope_parameters"] is None:
        return read_rope(settings), settings.positive("rope_local_base_freq")
    if not kinds <= said.keys() or "rope_local_base_freq" in settings.raw:
        raise _fault(
            "rope_parameters",
            settings["rope_parameters"],
            f"of {' and '.join(sorted(kinds))} both, without `rope_local_base_freq`",
        )
    sliding = read_rope(settings, "sliding_attention")
    if sliding.scaling != "none":
        raise _fault("rope_type", sliding.scaling, "default for sliding_attention")
    return read_rope(settings), sliding.theta


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Write a rotary embedding in the older dialect, which newer versions read as well."""
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
    if rope.scaling == "none":
        return fields
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_length
    if rope.scaling == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
    if rope.scaling == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        scaling |= {"truncate": rope.truncate}
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    return fields | {"rope_scaling": scaling}


_KINDS: dict[str, LayerKind] = {"full_attention": "global", "sliding_attention": "sliding"}
KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
"""Transformers' names of our kinds of layers."""


def read_layer_kinds(
    settings: Settings, otherwise: Sequence[LayerKind] | None = None
) -> tuple[LayerKind, ...]:
    """Read `layer_types`, as the shortest pattern whose repetition it is.

    Args:
        settings: Fields of the model.
        otherwise: Kind of every layer where the field is absent; None is global.

    Raises:
        ConfigError: If there are not as many as layers, or one of an unknown kind.
    """
    said, layers = settings["layer_types"], settings.layers()
    kinds: list[LayerKind] = ["global"] * layers if otherwise is None else list(otherwise)
    if said is not None:
        if not isinstance(said, list) or len(said) != layers:
            raise _fault("layer_types", said, f"a list of {layers} names, one a layer")
        kinds = [Settings({"layer_types": name}, {}).one_of("layer_types", _KINDS) for name in said]
    return shortest_pattern(kinds)


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """Find the fewest first kinds whose repetition gives all of them."""
    lengths = range(1, len(kinds) + 1)
    length = next(n for n in lengths if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return tuple(kinds[:length])
