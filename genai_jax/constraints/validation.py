"""For text that was not held to a schema while it was written: what is wrong with it, and retries.

By the package jsonschema (extra `structured`), which knows all of JSON Schema.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.schema_document import SchemaLike, schema_text

_MOST_FAULTS = 20
_SHOWN = 200  # characters of a fault


class InvalidTextError(ValueError):
    """No attempt gave a valid text.

    Attributes:
        faults: Of the last attempt.
    """

    def __init__(self, attempts: int, faults: list[str]) -> None:
        super().__init__(
            f"a text must be valid by the schema; none of {attempts} was, and the last has these "
            f"faults: {'; '.join(faults)}. Ask for it more plainly, allow more tokens, try more "
            "seeds, or hold generation to the schema."
        )
        self.faults = faults


def validate(text: str, schema: SchemaLike) -> list[str]:
    """Say what is wrong with a text by a JSON Schema (draft 2020-12, formats included).

    Args:
        text: Should be JSON.
        schema: The schema; references are looked up within it alone.

    Returns:
        A line for each fault, with its place; none if the text is valid.

    Raises:
        ConstraintError: If the schema is none.
        ModuleNotFoundError: If the package jsonschema is not installed.
    """
    return _faults(text, _validator(schema))


def generate_valid(write: Callable[[int], str], schema: SchemaLike, attempts: int) -> str:
    """Write texts with the seeds 0, 1, ... until one is valid.

    Args:
        write: From a seed to a text.
        schema: As of `validate`.
        attempts: Most seeds to try, at least 1.

    Raises:
        InvalidTextError: If none is valid.
        ConstraintError, ModuleNotFoundError: As `validate`, before anything is written.
    """
    if attempts < 1:
        raise ValueError(f"`attempts` must be at least 1; got {attempts}.")
    validator = _validator(schema)
    faults: list[str] = []
    for seed in range(attempts):
        text = write(seed)
        faults = _faults(text, validator)
        if not faults:
            return text
    raise InvalidTextError(attempts, faults)


def _validator(schema: SchemaLike) -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "validation needs the package jsonschema, which is not installed. Install it: "
            "pip install -e '.[structured]'."
        ) from error
    plain = json.loads(schema_text(schema))
    for reference in _references(plain):
        if not reference.startswith("#"):  # jsonschema would fetch it
            raise ConstraintError(
                f"`$ref` must refer to a place in the schema; got {reference!r:.80}. Copy what it "
                "refers to into $defs."
            )
    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(plain)
    except jsonschema.SchemaError as error:
        raise ConstraintError(
            f"a JSON Schema must be one; at {error.json_path}: {error.message:.{_SHOWN}}"
        ) from error
    return kind(plain, format_checker=kind.FORMAT_CHECKER)


def _references(schema: Any) -> Iterator[str]:
    """List whatever looks like a reference, also where it is none."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _faults(text: str, validator: Any) -> list[str]:
    import referencing.exceptions

    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return ["not JSON that can be read: nested too deeply"]
    except ValueError as error:
        return [f"not JSON: {error}"]
    try:
        found = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    except RecursionError:
        raise ConstraintError(
            "a JSON Schema must not refer to itself without end; this one does, or the text is "
            "nested too deeply. Let references stand below `properties` or `items`."
        ) from None
    except re.error as error:
        raise ConstraintError(f"`pattern` must be a regular expression; {error}.") from error
    except referencing.exceptions.Unresolvable as error:
        raise ConstraintError(f"`$ref` must refer to a schema; {error}.") from error
    return [f"at {error.json_path}: {error.message:.{_SHOWN}}" for error in found[:_MOST_FAULTS]]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
