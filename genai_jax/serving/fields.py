"""The fields of a JSON object that a stranger sent: each of its type, in its range, or refused.

Null is as if the field were not there. What nobody knows is refused by name, with the nearest name
that is known: nothing is ignored in silence.
"""

import collections
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from genai_jax.serving.errors import ApiError

_SHOWN = 60  # characters of a value that an error repeats


def parse_json(body: bytes) -> Any:
    """Read JSON, as the standard has it.

    Raises:
        ApiError: If it is not, or has numbers that are none, or an object names a field twice.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_once)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        fault = str(error)[:200]
    raise ApiError(f"the body must be JSON; {fault}. Send an object, in UTF-8.", code="bad_json")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; where a field stood twice, one of the two would be ignored."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"an object has the field {twice[:_SHOWN]!r} twice")
    return found


class Fields:
    """The fields of an object, one by one."""

    def __init__(self, value: Any, where: str = "") -> None:
        """Begin to read.

        Args:
            value: What should be an object.
            where: Its own name, for errors; none for the body itself.

        Raises:
            ApiError: If it is no object.
        """
        if not isinstance(value, dict):
            name = f"`{where}`" if where else "the body"
            raise ApiError(f"{name} must be an object; got {show(value)}.", param=where or None)
        self._values: Mapping[str, Any] = value
        self._where = where

    def name_of(self, field: str) -> str:
        """Give the name of a field as errors have it."""
        return f"{self._where}.{field}" if self._where else field

    def refuse(self, field: str, rule: str, fix: str = "", code: str | None = None) -> NoReturn:
        """Say what a field must be, and what it is."""
        name = self.name_of(field)
        got = show(self._values.get(field))
        fix = f" {fix}" if fix else ""
        raise ApiError(f"`{name}` {rule}; got {got}.{fix}", param=name, code=code)

    def only(self, known: Iterable[str]) -> None:
        """Refuse what nobody knows.

        Raises:
            ApiError: If there is a field of another name.
        """
        names = list(known)
        for field in self._values:
            if field in names:
                continue
            name = self.name_of(field[:_SHOWN])
            near = difflib.get_close_matches(field[:_SHOWN], names, n=1)
            hint = f" Did you mean `{self.name_of(near[0])}`?" if near else ""
            raise ApiError(
                f"`{name}` is not a field that is known here.{hint}",
                param=name,
                code="unknown_parameter",
            )

    def get(self, field: str) -> Any:
        """Give a field as it is; None where it is not given."""
        return self._values.get(field)

    def text(self, field: str) -> str | None:
        """Read a text."""
        value = self.get(field)
        if value is not None and not is_text(value):
            self.refuse(field, "must be a text, of whole characters")
        return value

    def flag(self, field: str) -> bool:
        """Read a truth value; one that is not given is false."""
        value = self.get(field)
        if value is not None and not isinstance(value, bool):
            self.refuse(field, "must be true or false")
        return bool(value)

    def integer(self, field: str, lowest: int, highest: int, fix: str = "") -> int | None:
        """Read a whole number of a range."""
        value = self.get(field)
        if value is not None and not (is_integer(value) and lowest <= value <= highest):
            self.refuse(field, f"must be a whole number from {lowest} to {highest}", fix)
        return value

    def number(self, field: str, lowest: float, highest: float, default: float) -> float:
        """Read a number of a range, both of its ends included."""
        value = self.get(field)
        if value is None:
            return default
        if not (is_number(value) and lowest <= value <= highest):
            self.refuse(field, f"must be a number from {lowest:g} to {highest:g}")
        return float(value)

    def fraction(self, field: str) -> float:
        """Read a number above 0 and up to 1; one that is not given is 1."""
        value = self.number(field, 0, 1, 1.0)
        if value == 0:
            self.refuse(field, "must be above 0, and at most 1", "1 keeps all tokens.")
        return value

    def option(self, field: str, options: tuple[str, ...]) -> str | None:
        """Read one of some names."""
        value = self.get(field)
        if value is not None and value not in options:
            self.refuse(field, f"must be one of {', '.join(options)}")
        return value


def is_integer(value: Any) -> bool:
    """Whether it is a whole number, which a truth value is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number, and finite."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def is_text(value: Any) -> bool:
    """Whether it is a text without halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def show(value: Any) -> str:
    """Write a value for an error, briefly, whatever it is."""
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"{kind} of {len(value)}"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
