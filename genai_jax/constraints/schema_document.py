"""A JSON Schema as it was given: read, checked keyword by keyword, its references followed.

Nothing is ignored in silence: a keyword is supported, or a mere annotation, or refused by name.
"""

import json
import math
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_numbers import MOST_BOUND_DIGITS

SchemaLike = object
"""A schema: a mapping, true or false, or a text that is JSON; whatever else is refused."""

TYPES = frozenset(["null", "boolean", "object", "array", "number", "string", "integer"])

KEYWORDS_OF = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "object": (
        *("properties", "required", "additionalProperties"),
        *("minProperties", "maxProperties"),
    ),
}
"""What applies to values of one type alone."""

APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf")
"""What brings in other schemas for the same value."""

ANNOTATIONS = frozenset(
    [
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$comment", "$id", "$defs", "definitions"),
    ]
)
"""What says nothing of what is valid."""

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_SUPPORTED = frozenset(
    ["type", "enum", "const", *APPLICATORS, *(k for x in KEYWORDS_OF.values() for k in x)]
)
_MOST_NESTING = 100
_MOST_SIZE = 500_000
_MOST_INTEGER = 10**MOST_BOUND_DIGITS


class Node(NamedTuple):
    """A schema at a place of the document.

    Attributes:
        pointer: Its place, as a JSON pointer with #.
        value: The schema.
        open: Places of the references that were followed to come here.
        left: How often one of these may be followed again.
    """

    pointer: str
    value: Any
    open: frozenset[str]
    left: int

    def child(self, *path: str | int) -> "Node":
        """Give a schema inside."""
        value = self.value
        for step in path:
            value = value[step]
        return self._replace(pointer=_joined(self.pointer, *path), value=value)

    def children(self, keyword: str) -> "list[Node]":
        """Give the schemas of a list."""
        return [self.child(keyword, place) for place in range(len(self.value.get(keyword, ())))]

    def refuse(self, rule: str) -> NoReturn:
        """Say what is wrong here."""
        raise ConstraintError(f"at {self.pointer} of the JSON Schema: {rule}")


def _joined(pointer: str, *path: str | int) -> str:
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return "/".join([pointer, *steps])


def schema_text(schema: SchemaLike) -> str:
    """Check that a schema is JSON, and write it as such: one text for equal schemas.

    Raises:
        ConstraintError: If it is not, or is nested too deeply, or too large.
    """
    return json.dumps(_Reading().read(schema))


class _Reading:
    def __init__(self) -> None:
        self._size = 0

    def read(self, schema: object) -> Any:
        if isinstance(schema, str):
            try:
                schema = json.loads(
                    schema, object_pairs_hook=_once, parse_constant=lambda name: float(name)
                )
            except RecursionError:
                _refuse_nesting()
            except ConstraintError:
                raise
            except ValueError as error:
                raise ConstraintError(
                    f"a JSON Schema given as a text must be JSON; {error}. Check it with a parser."
                ) from error
        if not isinstance(schema, bool | Mapping):
            raise ConstraintError(
                "a JSON Schema must be an object, true or false; got "
                f'{type(schema).__name__}. Wrap values in {{"const": ...}}.'
            )
        return self._plain(schema, 0)

    def _plain(self, value: object, depth: int) -> Any:
        """Copy what JSON can say, and refuse the rest."""
        self._count(1)
        if depth > _MOST_NESTING:
            _refuse_nesting()
        if isinstance(value, Mapping):
            return {self._text(k): self._plain(x, depth + 1) for k, x in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(x, depth + 1) for x in value]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int) and abs(value) < _MOST_INTEGER:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        what = "such a number" if isinstance(value, int | float) else type(value).__name__
        raise ConstraintError(
            f"a JSON Schema must hold what JSON can say: texts, finite numbers of at most "
            f"{MOST_BOUND_DIGITS} digits, true, false, null, lists and objects; got {what}."
        )

    def _text(self, value: object) -> str:
        if not isinstance(value, str):
            raise ConstraintError(
                f"names in a JSON Schema must be texts; got {type(value).__name__}."
            )
        self._count(len(value))
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise ConstraintError(
                f"texts in a JSON Schema must be Unicode; got {value[:80]!r}, with half of a "
                "surrogate pair."
            )
        return value

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > _MOST_SIZE:
            raise ConstraintError(
                f"a JSON Schema must hold at most {_MOST_SIZE:,} values and characters; this one "
                "has more. Leave out descriptions, or values of enumerations."
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ConstraintError(f"names in an object must differ; got {twice[:80]!r} twice.")
    return found


def _refuse_nesting() -> NoReturn:
    raise ConstraintError(
        f"a JSON Schema must be nested at most {_MOST_NESTING} deep; this one is deeper (or holds "
        "itself). Use $defs and $ref."
    )


class Document:
    """A schema with its references.

    Args:
        text: As `schema_text` writes it.
        depth: How often a reference is followed within itself, the first time included.
    """

    def __init__(self, text: str, depth: int) -> None:
        self.root = Node("#", json.loads(text), frozenset(["#"]), depth - 1)
        self._checked: set[str] = set()

    def follow(self, node: Node) -> Node | None:
        """Give what `$ref` refers to; None where it has been followed often enough."""
        target: Any = self.root.value
        pointer = "#"
        for step in self._steps(node):
            inside = target if isinstance(target, dict) else {}
            if isinstance(target, list):
                inside = {str(place): value for place, value in enumerate(target)}
            if step not in inside:
                node.refuse(f"`$ref` must refer to a schema; there is no {node.value['$ref']!r}.")
            target = inside[step]
            pointer = _joined(pointer, step)
        if not isinstance(target, bool | dict):
            node.refuse(f"`$ref` must refer to a schema; {node.value['$ref']!r} is none.")
        again = pointer in node.open
        if again and not node.left:
            return None
        return Node(pointer, target, node.open | {pointer}, node.left - again)

    def _steps(self, node: Node) -> list[str]:
        reference = node.value["$ref"]
        if reference == "#":
            return []
        if not reference.startswith("#/"):
            node.refuse(
                f"`$ref` must be # or begin with #/; got {reference!r:.80}. Other documents, "
                "anchors and identifiers are not looked up: copy the schema into $defs."
            )
        steps = urllib.parse.unquote(reference[2:]).split("/")
        return [step.replace("~1", "/").replace("~0", "~") for step in steps]

    def check(self, node: Node) -> None:
        """Refuse what is not supported, or is no JSON Schema."""
        if node.pointer in self._checked:
            return
        for keyword, value in node.value.items():
            if keyword not in _SUPPORTED and keyword not in ANNOTATIONS:
                node.refuse(
                    f"the keyword {keyword[:80]!r} is not supported. Say it by others: "
                    f"{', '.join(sorted(_SUPPORTED))}."
                )
            if fault := _fault(keyword, value, node.pointer == "#"):
                node.refuse(f"`{keyword}` {fault}; got {json.dumps(value):.80}.")
        self._checked.add(node.pointer)


def _fault(keyword: str, value: Any, is_root: bool) -> str:
    """Say how a keyword's value must be, if it is not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if keyword in _COUNTS:
        good = number and value >= 0 and value == int(value)
        return "" if good else "must be an integer from 0 on"
    if keyword in _BOUNDS:
        return "" if number else "must be a number"
    if keyword == "multipleOf":
        good = isinstance(value, int) and number and value > 0
        return (
            ""
            if good
            else ("must be an integer from 1 on: whether a fraction divides depends on rounding")
        )
    if keyword in ("pattern", "format", "$ref"):
        return "" if isinstance(value, str) else "must be a text"
    if keyword in ("additionalProperties", "items"):
        if isinstance(value, list):
            return "must be one schema; a list of them is called `prefixItems`"
        return "" if isinstance(value, bool | dict) else "must be a schema"
    if keyword in ("prefixItems", "allOf", "anyOf", "oneOf"):
        good = isinstance(value, list) and value and all(isinstance(x, bool | dict) for x in value)
        return "" if good else "must be a list of schemas, at least one"
    if keyword == "properties":
        good = isinstance(value, dict) and all(isinstance(x, bool | dict) for x in value.values())
        return "" if good else "must be an object of schemas"
    if keyword == "required":
        good = isinstance(value, list) and all(isinstance(x, str) for x in value)
        return "" if good else "must be a list of names"
    if keyword == "enum":
        return "" if isinstance(value, list) and value else "must be a list of values, at least one"
    if keyword == "type":
        names = value if isinstance(value, list) else [value]
        good = names and all(isinstance(x, str) and x in TYPES for x in names)
        return "" if good else f"must be one or some of {', '.join(sorted(TYPES))}"
    if keyword == "uniqueItems":
        return "" if value is False else "must be false: items cannot be held to differ"
    if keyword == "$id" and not is_root:
        return "may be at the root alone: inside, it changes what references mean"
    return ""
