"""What can be shown of schemas: that a value satisfies one, and that no value satisfies two.

`oneOf` asks for exactly one. What an automaton generates for one branch must not satisfy another,
also by values that this other branch's automaton would never write; so it is shown on the schemas.
"""

from collections.abc import Callable, Iterable
from typing import Any

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_strings import inside, strings
from genai_jax.constraints.schema_cases import Case, Cases, Conjunction, Unknown
from genai_jax.constraints.schema_document import Document, Node

_MOST_PLACES = 64  # of an array are looked at
_MOST_STEPS = 20_000
_STEPS_OF_PATTERNS = 100  # what patterns cost to tell apart
_RECURSION = 3  # times that a reference is followed within itself


def same_value(value: Any) -> object:
    """Give what JSON values have in common if and only if they are equal: 1 and 1.0 are."""
    if isinstance(value, dict):
        return frozenset((name, same_value(x)) for name, x in value.items())
    if isinstance(value, list):
        return tuple(map(same_value, value))
    return ("boolean" if isinstance(value, bool) else "", value)


class Proofs:
    """Shows what it can of the schemas of a document.

    Args:
        document: Of the schemas.
    """

    def __init__(self, document: Document) -> None:
        self._cases = Cases(document, lambda node: None)
        self._steps = 0
        self._known: set[str] = set()
        self._members: dict[tuple[str, str], frozenset[object]] = {}

    def check_one_of(self, node: Node) -> None:
        """Refuse `oneOf` unless its branches are shown to have no value in common."""
        if node.pointer in self._known:
            return
        node = _afresh(node)
        beside = {k: x for k, x in node.value.items() if k != "oneOf"}
        base = node._replace(value=beside)
        branches = node.children("oneOf")
        for last, branch in enumerate(branches):
            for place, other in enumerate(branches[:last]):
                if not self.apart((branch, base), (other, base)):
                    node.refuse(
                        "the branches of `oneOf` must be shown to have no value in common; those "
                        f"at {place} and {last} may have. Let them differ by type, by the const of "
                        "a required property or by bounds, or use `anyOf`."
                    )
        self._known.add(node.pointer)

    def apart(self, one: Conjunction, other: Conjunction) -> bool:
        """Say whether it can be shown that no value satisfies both."""
        self._count(1)
        try:
            firsts, seconds = (self._cases.of(nodes, exact=True) for nodes in (one, other))
            return all(self._cases_apart(x, y) for x in firsts for y in seconds)
        except Unknown:
            return False

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ConstraintError(
                "the branches of `oneOf` must be told apart in at most "
                f"{_MOST_STEPS:,} steps; this schema takes more. Use `anyOf`."
            )

    def _cases_apart(self, one: Case, other: Case) -> bool:
        both = Case(one.nodes + other.nodes)
        if (values := both.values()) is not None:
            return all(self.satisfies(both, value) is False for value in values)
        types = both.types(narrow=False)
        shown: dict[str, Callable[[], bool]] = {
            "null": lambda: False,
            "boolean": lambda: False,
            "integer": lambda: _no_numbers(both),
            "number": lambda: _no_numbers(both),
            "string": lambda: self._no_strings(both),
            "array": lambda: _no_sizes(both, "Items") or self._some_item_apart(one, other),
            "object": lambda: _no_sizes(both, "Properties") or self._some_member_apart(one, other),
        }
        return all(shown[name]() for name in sorted(types))

    def _some_item_apart(self, one: Case, other: Case) -> bool:
        there = max(one.sizes("Items").least, other.sizes("Items").least)
        places = range(min(there, _MOST_PLACES))
        return any(self.apart(one.item(place), other.item(place)) for place in places)

    def _some_member_apart(self, one: Case, other: Case) -> bool:
        names = dict.fromkeys(one.required() + other.required())
        return any(self.apart(one.member(name), other.member(name)) for name in names)

    def satisfies(self, case: Case, value: Any) -> bool | None:
        """Say whether a value satisfies a case; None where that cannot be told."""
        afresh = Case(tuple(_afresh(node) for node in case.nodes))
        return _all(self._judgements(afresh, value))

    def _judgements(self, case: Case, value: Any) -> Iterable[bool | None]:
        yield _type_of(value) in case.types(narrow=False)
        for node in case.nodes:
            for keyword in ("enum", "const"):
                if keyword in node.value:
                    yield same_value(value) in self._values_of(node, keyword)
        if isinstance(value, str):
            yield from _judge_string(case, value)
        elif isinstance(value, list):
            yield _fits(case, "Items", len(value))
            for place, item in enumerate(value):
                yield self._any_case(case.item(place), item)
        elif isinstance(value, dict):
            yield _fits(case, "Properties", len(value))
            yield set(case.required()) <= value.keys()
            for name, member in value.items():
                yield self._any_case(case.member(name), member)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            low, high = case.bounds()
            yield low is None or (value > low.value if low.excluded else value >= low.value)
            yield high is None or (value < high.value if high.excluded else value <= high.value)
            yield (value == int(value) and int(value) % case.step() == 0) or case.step() == 1

    def _values_of(self, node: Node, keyword: str) -> frozenset[object]:
        key = (node.pointer, keyword)
        if key not in self._members:
            value = node.value[keyword]
            self._members[key] = frozenset(map(same_value, value if keyword == "enum" else [value]))
        return self._members[key]

    def _no_strings(self, case: Case) -> bool:
        least, most = case.sizes("Length")
        if most is not None and least > most:
            return True
        patterns = tuple(dict.fromkeys(case.all("pattern")))
        if not patterns:
            return False
        self._count(_STEPS_OF_PATTERNS)
        return strings(least, most, patterns, wide=True).is_empty

    def _any_case(self, conjunction: Conjunction, value: Any) -> bool | None:
        try:
            found = [
                self.satisfies(case, value) for case in self._cases.of(conjunction, exact=True)
            ]
        except Unknown:
            return None
        return True if True in found else None if None in found else False


def _afresh(node: Node) -> Node:
    """Forget which references led here: what is shown holds wherever the schema stands."""
    return node._replace(open=frozenset(), left=_RECURSION)


def _all(judgements: Iterable[bool | None]) -> bool | None:
    found = list(judgements)
    return False if False in found else None if None in found else True


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _fits(case: Case, what: str, size: int) -> bool:
    least, most = case.sizes(what)
    return least <= size and (most is None or size <= most)


def _judge_string(case: Case, value: str) -> Iterable[bool | None]:
    yield _fits(case, "Length", len(value))
    text = inside(value)
    for pattern in case.all("pattern"):
        if strings(patterns=(pattern,)).accepts(text):
            yield True
        else:
            yield None if strings(patterns=(pattern,), wide=True).accepts(text) else False
    for name in case.all("format"):
        yield strings(formats=(name,)).accepts(text) or None


def _no_numbers(case: Case) -> bool:
    low, high = case.bounds()
    if low is None or high is None:
        return False
    return low.value > high.value or (low.value == high.value and (low.excluded or high.excluded))


def _no_sizes(case: Case, what: str) -> bool:
    least, most = case.sizes(what)
    return most is not None and least > most
