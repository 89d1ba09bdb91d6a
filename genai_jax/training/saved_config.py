"""Configurations as JSON: nested frozen dataclasses to text, back again, and compared by field."""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

_TYPE = "_type"


def to_json(config: Any, name: str = "config") -> Any:
    """Turn dataclasses, and what they are made of, into JSON values.

    A dataclass becomes an object that carries the name of its class as `_type`. Infinities and
    NaN become strings, since JSON has none.

    Raises:
        TypeError: Naming the field that cannot be written.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {
            field.name: to_json(getattr(config, field.name), f"{name}.{field.name}")
            for field in dataclasses.fields(config)
        }
        return {_TYPE: type(config).__name__, **fields}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, float) and not math.isfinite(config):
        return str(config)
    if config is None or isinstance(config, bool | int | float | str):
        return config
    if isinstance(config, PurePath):
        return str(config)
    if isinstance(config, Mapping):
        return {str(key): to_json(value, f"{name}.{key}") for key, value in config.items()}
    if isinstance(config, list | tuple | set | frozenset):
        items = sorted(config) if isinstance(config, set | frozenset) else config
        return [to_json(item, f"{name}.{i}") for i, item in enumerate(items)]
    raise TypeError(
        f"a field must be a dataclass, number, string, path, enum, list or dict; `{name}` is "
        f"{type(config).__name__}. Write it as a string."
    )


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild a configuration of a given class from `to_json`'s value: its inverse.

    Args:
        kind: The dataclass (or any annotation of a field).
        value: The JSON value. Fields that it lacks take their defaults.

    Raises:
        ValueError: If the value does not fit the class.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        return _from_union(arguments, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _from_object(kind, value)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return tuple(from_json(k, item) for k, item in zip(kinds, value, strict=True))
    if origin in (list, set, frozenset):
        return origin(from_json(arguments[0], item) for item in value)
    if origin is dict:
        return {from_json(arguments[0], k): from_json(arguments[1], v) for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind[value]
    if isinstance(kind, type) and issubclass(kind, float | PurePath):
        return kind(value)
    return tuple(value) if kind is tuple else value


def with_new_fields(kind: Any, saved: Any) -> Any:
    """Give a saved configuration the fields that its class has gained since, with their defaults.

    Args:
        kind: The dataclass; of other classes nothing is known, and nothing is added.
        saved: The JSON value. One that no longer fits the class is handed through.
    """
    if not dataclasses.is_dataclass(kind):
        return saved
    try:
        return to_json(from_json(kind, saved))
    except (ValueError, TypeError, KeyError):
        return saved


def _from_object(kind: Any, value: Any) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    saved = value if isinstance(value, dict) else {}
    unknown = saved.keys() - fields.keys() - {_TYPE}
    if saved.get(_TYPE) != kind.__name__ or unknown:
        raise ValueError(
            f"a saved {kind.__name__} must have that name and its fields; got "
            f"{saved.get(_TYPE, repr(value))}, unknown fields: {sorted(unknown)}. Read it with the "
            "code that wrote it."
        )
    hints = typing.get_type_hints(kind)
    given = {name: saved[name] for name in fields if name in saved and fields[name].init}
    return kind(**{name: from_json(hints[name], item) for name, item in given.items()})


def _from_union(options: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if isinstance(value, dict) and _TYPE in value:
        for option in options:
            inner = typing.get_args(option)[0] if typing.get_args(option) else option
            if getattr(inner, "__name__", None) == value[_TYPE]:
                return from_json(inner, value)
    for option in options:
        if isinstance(option, type) and type(value) is option:
            return value
    return from_json(options[0], value)


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Values by dotted name; empty containers count as values."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = {str(i): item for i, item in enumerate(value)}.items()
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{name}.{key}" if name else key)
    return flat


def differences(old: Any, new: Any, *, exempt: Collection[str] = ()) -> list[str]:
    """List the fields in which two saved configurations differ: `optimizer.lr: 0.1 -> 0.2`.

    Args:
        old: A configuration as JSON.
        new: Another.
        exempt: Dotted names whose difference does not count, with everything below them.
    """
    before, after = _flatten(old), _flatten(new)

    def counts(name: str) -> bool:
        return not any(name == e or name.startswith(e + ".") for e in exempt)

    def show(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "(absent)"

    def same(name: str) -> bool:
        if name not in before or name not in after:
            return False
        a, b = before[name], after[name]
        return a == b and isinstance(a, bool) == isinstance(b, bool)  # 1 is 1.0, but not true

    return [
        f"{name}: {show(before, name)} -> {show(after, name)}"
        for name in dict.fromkeys([*before, *after])
        if counts(name) and not same(name)
    ]
