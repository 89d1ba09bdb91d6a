"""A JSON Schema as cases: what a value must satisfy all of, once each choice has been made.

A schema's references, `allOf`, `anyOf` and `oneOf` are followed until only keywords are left that
speak of the value itself. A case is a list of such schemas, which hold together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_numbers import Bound
from genai_jax.constraints.schema_document import (
    ANNOTATIONS,
    APPLICATORS,
    KEYWORDS_OF,
    TYPES,
    Document,
    Node,
)

_MOST_CASES = 500
_MOST_STEPS = 100_000  # for a whole document

Conjunction = tuple[Node, ...]
"""Schemas that a value must satisfy together."""


class Unknown(Exception):
    """Recursion ended before the cases did."""


class Sizes(NamedTuple):
    """Fewest and most characters, items or properties; None for any number."""

    least: int
    most: int | None


class Case(NamedTuple):
    """Schemas without applicators, which hold together."""

    nodes: Conjunction

    def all(self, keyword: str) -> list[Any]:
        """List the values of a keyword."""
        return [node.value[keyword] for node in self.nodes if keyword in node.value]

    def sizes(self, what: str) -> Sizes:
        """Find the bounds that `min...` and `max...` leave."""
        most = self.all(f"max{what}")
        least = max(self.all(f"min{what}"), default=0)
        return Sizes(int(least), int(min(most)) if most else None)

    def bounds(self) -> tuple[Bound | None, Bound | None]:
        """Find the tightest bounds of a number."""
        lower = [Bound(x, False) for x in self.all("minimum")]
        lower += [Bound(x, True) for x in self.all("exclusiveMinimum")]
        upper = [Bound(x, False) for x in self.all("maximum")]
        upper += [Bound(x, True) for x in self.all("exclusiveMaximum")]
        low = max(lower, default=None)  # of equal ones, the one that excludes
        high = min(upper, key=lambda bound: (bound.value, not bound.excluded), default=None)
        return low, high

    def step(self) -> int:
        """Find what integers must be multiples of."""
        return math.lcm(*self.all("multipleOf"))

    def types(self, *, narrow: bool) -> frozenset[str]:
        """Find the types that are allowed; where there is a number, there are integers.

        Args:
            narrow: Whether, where no type is named, keywords that apply to one type mean it.
        """
        named = self.all("type")
        if not named and narrow:
            found = [t for t, keys in KEYWORDS_OF.items() if any(map(self.all, keys))]
            named = [found] if found else []
        types = TYPES
        for names in named:
            names = {names} if isinstance(names, str) else set(names)
            types &= names | {"integer"} if "number" in names else names
        return types

    def values(self) -> list[Any] | None:
        """List the values of `enum` and `const`, if they are named."""
        lists = self.all("enum") + [[value] for value in self.all("const")]
        return min(lists, key=len) if lists else None

    def item(self, place: int) -> Conjunction:
        """Find what the item at a place must satisfy."""
        found = []
        for node in self.nodes:
            if place < len(node.value.get("prefixItems", ())):
                found.append(node.child("prefixItems", place))
            elif "items" in node.value:
                found.append(node.child("items"))
        return tuple(found)

    def member(self, name: str) -> Conjunction:
        """Find what the property of a name must satisfy."""
        found = []
        for node in self.nodes:
            if name in node.value.get("properties", ()):
                found.append(node.child("properties", name))
            elif "additionalProperties" in node.value:
                found.append(node.child("additionalProperties"))
        return tuple(found)

    def required(self) -> list[str]:
        """List the names that must be there, once each."""
        return list(dict.fromkeys(name for names in self.all("required") for name in names))


class Cases:
    """Finds the cases of schemas.

    Args:
        document: Of the schemas.
        check_one_of: Is told each schema with `oneOf` that comes up.
    """

    def __init__(self, document: Document, check_one_of: Callable[[Node], None]) -> None:
        self._document = document
        self._check_one_of = check_one_of
        self._steps = 0

    def of(self, conjunction: Sequence[Node], *, exact: bool = False) -> list[Case]:
        """List the cases, in order.

        Args:
            conjunction: What a value must satisfy.
            exact: Whether all valid values must be in some case; then `oneOf` is read as `anyOf`,
                which has them all.

        Raises:
            Unknown: If that needs more depth than there is.
            ConstraintError: If there are too many, or a schema is not supported.
        """
        found: list[Case] = []
        pending: list[tuple[Conjunction, Conjunction]] = [(tuple(conjunction), ())]
        while pending:
            self._steps += 1
            todo, done = pending.pop()
            if not todo:
                found.append(Case(done))
            elif todo[0].value is not False:
                more, done = self._opened(todo[0], todo[1:], done, exact)
                pending += [(nodes, done) for nodes in reversed(more)]
            if len(found) + len(pending) > _MOST_CASES or self._steps > _MOST_STEPS:
                raise ConstraintError(
                    f"a JSON Schema must have at most {_MOST_CASES} cases at a place, found in at "
                    f"most {_MOST_STEPS:,} steps in all; got more at {conjunction[0].pointer}. Use "
                    "fewer `anyOf` and `oneOf` within one another, or less depth."
                )
        return found

    def _opened(
        self, node: Node, rest: Conjunction, done: Conjunction, exact: bool
    ) -> tuple[list[Conjunction], Conjunction]:
        """Take one schema apart: what is still to open, for every choice, and what is done."""
        if node.value is True:
            return [rest], done
        self._document.check(node)
        own = {k: x for k, x in node.value.items() if k not in (*APPLICATORS, *ANNOTATIONS)}
        if own:
            done = (*done, node._replace(value=own))
        rest = (*node.children("allOf"), *rest)
        if "$ref" in node.value:
            target = self._document.follow(node)
            if target is None and exact:
                raise Unknown
            if target is None:
                return [], done
            rest = (target, *rest)
        if "oneOf" in node.value and not exact:
            self._check_one_of(node)
        more = [rest]
        for keyword in ("anyOf", "oneOf"):
            if keyword in node.value:
                more = [(x, *nodes) for nodes in more for x in node.children(keyword)]
        return more, done
