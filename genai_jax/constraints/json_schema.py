"""From a JSON Schema (draft 2020-12) to the automaton of the JSON texts that are generated for it.

Everything generated is valid. Not everything valid is generated:

- Texts are compact, as by `json.dumps(..., ensure_ascii=False, separators=(",", ":"))`; with
  `whitespace`, a space may stand behind `,` and `:`.
- Properties come in the order in which they are declared. Where any are declared (also by an empty
  `properties`), others come only where `additionalProperties` is a schema; they come last. Where
  none are, an object is a map with any names; a name may come twice.
- Items behind `prefixItems` come only if `items` is a schema, or `minItems` asks for them.
- Where no type is named, keywords that apply to one type mean it.
- Without bounds, numbers have 19 digits before the point and 19 behind at most, and exponents two;
  with bounds they have no exponents. Integers are written as such.
- What a reference refers to is followed within itself `depth` times in all; and arrays and objects
  of which nothing is said are nested as deeply.
- Formats are narrow (`json_formats.FORMATS`), and so are `.`, `d`, `w` and `s` of patterns
  (`json_strings`).

Supported are `type`, `enum`, `const`; `properties`, `required`, `additionalProperties`,
`minProperties`, `maxProperties`; `items`, `prefixItems`, `minItems`, `maxItems`; `minLength`,
`maxLength`, `pattern`, `format`; `minimum`, `maximum`, their exclusive kin, `multipleOf` of an
integer (which leaves integers only); `allOf`, `anyOf`, `oneOf` where branches can be told apart;
`$ref` within the document; and schemas that are true or false. Annotations are ignored. Whatever
else there is, is refused by name.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from genai_jax.constraints.automata import MOST_STATES, ConstraintError, Dfa
from genai_jax.constraints.byte_expressions import (
    EMPTY,
    MOST_PARTS,
    NEVER,
    Expression,
    automaton_of,
    choice,
    graph,
    language,
    literal,
    optional,
    repeat,
    sequence,
)
from genai_jax.constraints.json_numbers import integers, numbers
from genai_jax.constraints.json_strings import inside, strings, strings_but
from genai_jax.constraints.schema_cases import Case, Cases, Conjunction
from genai_jax.constraints.schema_document import Document, SchemaLike, schema_text
from genai_jax.constraints.schema_proofs import Proofs

MOST_DEPTH = 32
"""Most depth of recursion."""

_MOST_NESTING = 40
_MOST_VALUES = 2000
_MOST_STATES = 2 * MOST_STATES
_QUOTE = literal(b'"')


def json_schema_automaton(schema: SchemaLike, *, depth: int = 4, whitespace: bool = False) -> Dfa:
    """Build the automaton of the texts, in UTF-8, that are generated for a schema.

    Args:
        schema: The schema.
        depth: Times that recursion is followed, from 1 on.
        whitespace: Whether a space may stand behind `,` and `:`.

    Raises:
        ConstraintError: If the schema is none, is not supported, has no valid value of at most so
            much depth, or needs too large an automaton.
    """
    if isinstance(depth, bool) or depth not in range(1, MOST_DEPTH + 1):
        raise ConstraintError(
            f"`depth` of a JSON Schema must be from 1 to {MOST_DEPTH}; got {depth}. 4 is usual."
        )
    try:
        return _automaton(schema_text(schema), depth, whitespace)
    except RecursionError:
        raise ConstraintError(
            "a JSON Schema must not refer so deeply; got more than Python's stack holds. Use "
            "fewer references within one another, or less depth."
        ) from None


@functools.lru_cache(maxsize=4)
def _automaton(text: str, depth: int, whitespace: bool) -> Dfa:
    document = Document(text, depth)
    written = _Writer(document, depth, whitespace).value((document.root,))
    dfa = automaton_of(written)
    if dfa.is_empty:
        raise ConstraintError(
            f"a JSON Schema must have a valid value that needs recursion at most {depth} deep; "
            f"{text[:80]} has none that is generated. Look for bounds that contradict each other, "
            "required properties that are excluded, or recursion without an end."
        )
    return dfa


class _Writer:
    """Writes what schemas allow as expressions over bytes."""

    def __init__(self, document: Document, depth: int, whitespace: bool) -> None:
        self._proofs = Proofs(document)
        self._cases = Cases(document, self._proofs.check_one_of)
        self._depth = depth
        space = optional(literal(b" ")) if whitespace else EMPTY
        self._comma, self._colon = sequence(literal(b","), space), sequence(literal(b":"), space)
        self._known: dict[tuple, Expression] = {}
        self._nesting = 0
        self._states = 0

    def value(self, conjunction: Conjunction) -> Expression:
        """Write the values that satisfy some schemas together."""
        if not conjunction:
            return self._anything(self._depth)
        key = tuple((node.pointer, node.open, node.left) for node in conjunction)
        if key not in self._known:
            self._nesting += 1
            if self._nesting > _MOST_NESTING or len(self._known) > _MOST_VALUES:
                raise ConstraintError(
                    f"a JSON Schema must describe values nested at most {_MOST_NESTING} deep, at "
                    f"most {_MOST_VALUES:,} of them when references are followed; got more at "
                    f"{conjunction[0].pointer}. Nest less, or choose less depth."
                )
            found = choice([self._case(case) for case in self._cases.of(conjunction)])
            self._known[key] = found
            self._nesting -= 1
        return self._known[key]

    def _case(self, case: Case) -> Expression:
        if not case.nodes:
            return self._anything(self._depth)
        if (values := case.values()) is not None:
            return choice([self._constant(x) for x in values if self._satisfies(case, x)])
        types = case.types(narrow=True)
        if case.all("format") and "string" not in types:
            case.nodes[0].refuse("`format` is for strings; leave it out for other types.")
        if "number" in types:
            types -= {"integer"}
        return choice([self._typed(name, case) for name in sorted(types)])

    def _constant(self, value: Any) -> Expression:
        """Write a value."""
        if isinstance(value, dict):
            parts = [
                sequence(self._constant(name), self._colon, self._constant(x))
                for name, x in value.items()
            ]
            return sequence(literal(b"{"), self._joined(parts), literal(b"}"))
        if isinstance(value, list):
            parts = [self._constant(x) for x in value]
            return sequence(literal(b"["), self._joined(parts), literal(b"]"))
        return literal(json.dumps(value, ensure_ascii=False).encode())

    def _joined(self, parts: Sequence[Expression]) -> Expression:
        return sequence(*[x for part in parts for x in (self._comma, part)][1:])

    def _satisfies(self, case: Case, value: Any) -> bool:
        found = self._proofs.satisfies(case, value)
        if found is None:
            case.nodes[0].refuse(
                f"a value of `enum` or `const` must surely satisfy what stands beside it, or not; "
                f"of {json.dumps(value):.80} it cannot be told. Leave either out."
            )
        return found

    def _typed(self, name: str, case: Case) -> Expression:
        """Write the values of one type."""
        if name in ("string", "integer", "number"):
            try:
                return self._string(case) if name == "string" else _number(name, case)
            except ConstraintError as error:
                if case.nodes:
                    case.nodes[0].refuse(str(error))
                raise
        if name == "array":
            return self._array(case)
        if name == "object":
            return self._object(case)
        words = ("null",) if name == "null" else ("false", "true")
        return choice([literal(word.encode()) for word in words])

    def _string(self, case: Case) -> Expression:
        least, most = case.sizes("Length")
        if most is not None and most < least:
            return NEVER
        patterns, formats = (tuple(dict.fromkeys(case.all(k))) for k in ("pattern", "format"))
        inner = strings(least, most, patterns, formats)
        self._states += len(inner.accepting)
        if self._states > _MOST_STATES:
            raise ConstraintError(
                f"the strings of a JSON Schema must need at most {_MOST_STATES:,} states in all; "
                "these need more. Bound lengths by less."
            )
        return sequence(_QUOTE, language(inner), _QUOTE)

    def _anything(self, depth: int) -> Expression:
        """Write any value, nested at most so deeply."""
        key = ("any", depth)
        if key not in self._known:
            names = ["null", "boolean", "number", "string"]
            parts = [self._typed(name, Case(())) for name in names]
            if depth > 0:
                inner = self._anything(depth - 1)
                parts += [self._list([], inner, 0, None), self._members([], inner, 0, None)]
            self._known[key] = choice(parts)
        return self._known[key]

    def _rest(self, conjunction: Conjunction) -> Expression:
        """Write items or members of which there may be any number; or of which nothing is said."""
        said = any(node.value is not True for node in conjunction)
        return self.value(conjunction) if said else self._anything(self._depth - 1)

    def _array(self, case: Case) -> Expression:
        least, most = case.sizes("Items")
        first = max((len(x) for x in case.all("prefixItems")), default=0)
        prefix = [self.value(case.item(place)) for place in range(first)]
        if not first or case.all("items"):
            return self._list(prefix, self._rest(case.item(first)), least, most)
        # A rest of which nothing is said is left out, unless it must be there.
        rest = self._rest(()) if least > first else NEVER
        return self._list(prefix, rest, least, max(first, least) if most is None else most)

    def _list(
        self, prefix: Sequence[Expression], rest: Expression, least: int, most: int | None
    ) -> Expression:
        """Write an array of first items and others."""
        begin, end = literal(b"["), literal(b"]")
        if most is not None and most < least:
            return NEVER
        first = len(prefix) if most is None else min(len(prefix), most)
        # Nodes from 2 on: so many of the first items are there.
        edges: list[tuple[int, Expression | None, int]] = [(0, begin, 2)]
        for place in range(first):
            comma = self._comma if place else EMPTY
            edges.append((2 + place, sequence(comma, prefix[place]), 3 + place))
        edges += [(2 + count, end, 1) for count in range(least, first)]
        others = max(least - first, 0), None if most is None else most - first
        tail = _repeated(self._comma, rest, *others, follows=first > 0)
        edges.append((2 + first, sequence(tail, end), 1))
        return graph(3 + first, edges)

    def _object(self, case: Case) -> Expression:
        least, most = case.sizes("Properties")
        needed = case.required()
        declared = [name for names in case.all("properties") for name in names]
        names = list(dict.fromkeys(declared + needed))
        extras = case.all("additionalProperties")
        others: Expression = NEVER
        if not names and not case.all("properties"):
            others = self._rest(case.member(""))
            if least > 1 and others is not NEVER:
                case.nodes[0].refuse(
                    "`minProperties` must be at most 1 where no properties are declared, since "
                    f"names cannot be held to differ; got {least}. Declare properties."
                )
        elif any(isinstance(schema, dict) for schema in extras):
            said = [node for node in case.nodes if "additionalProperties" in node.value]
            others = self._rest(tuple(node.child("additionalProperties") for node in said))
        members = [(name, self.value(case.member(name)), name in needed) for name in names]
        return self._members(members, others, least, most)

    def _members(
        self,
        declared: Sequence[tuple[str, Expression, bool]],
        others: Expression,
        least: int,
        most: int | None,
    ) -> Expression:
        """Write an object.

        Args:
            declared: Names, their values, and whether they must be there; in order.
            others: The values of other names.
            least: Fewest members.
            most: Most members.
        """
        count = len(declared)
        # Members need to be counted only where their number can be wrong; else: none, or some.
        if least <= sum(needed for _, _, needed in declared):
            least = 0
        cap = max(1, least)
        if most is not None and (most < count or others is not NEVER):
            cap = max(cap, most + 1)
        cap = min(cap, count)
        if count * cap > MOST_PARTS:
            raise ConstraintError(
                f"properties times the most to be counted must be at most {MOST_PARTS:,}; got "
                f"{count:,} times {cap:,}. Leave out `minProperties` and `maxProperties`."
            )
        places: dict[tuple, int] = {("begin",): 0, ("end",): 1}

        def at(*key: object) -> int:
            return places.setdefault(key, len(places))

        edges: list[tuple[int, Expression | None, int]] = [(0, literal(b"{"), at(0, 0))]
        for place, (name, value, needed) in enumerate(declared):
            key = sequence(literal(b'"' + inside(name) + b'"'), self._colon)
            for there in range(min(place, cap) + 1):
                more = min(there + 1, cap)
                comma = self._comma if there else EMPTY
                edges.append((at(place, there), sequence(comma, key), at("value", place, more)))
                if not needed:
                    edges.append((at(place, there), None, at(place + 1, there)))
            for more in range(min(1, cap), min(place + 1, cap) + 1):
                edges.append((at("value", place, more), value, at(place + 1, more)))
        excluded = tuple(name for name, _, _ in declared)
        key = sequence(_QUOTE, language(strings_but(excluded)), _QUOTE, self._colon)
        member = sequence(key, others)
        for there in range(min(count, cap) + 1):
            left = None if most is None else most - there
            # Other names may be the same: no more than one of them is sure to count.
            if (left is None or left >= 0) and least - there <= int(others is not NEVER):
                tail = _repeated(
                    self._comma, member, max(least - there, 0), left, follows=there > 0
                )
                edges.append((at(count, there), sequence(tail, literal(b"}")), 1))
        return graph(len(places), edges)


def _number(name: str, case: Case) -> Expression:
    low, high = case.bounds()
    if name == "integer" or case.all("multipleOf"):
        return integers(low, high, case.step())
    return numbers(low, high)


def _repeated(
    comma: Expression, body: Expression, least: int, most: int | None, *, follows: bool
) -> Expression:
    """Write bodies with commas between, and before the first too if something is there already."""
    if most is not None and most < least:
        return NEVER
    if body is NEVER or most == 0:
        return NEVER if least else EMPTY
    if follows:
        return repeat(sequence(comma, body), least, most)
    if least <= 1 and most is None:
        # 2: a body comes; 3: it is there. So it is written out but once.
        edges: list[tuple[int, Expression | None, int]] = [(0, None, 2), (2, body, 3)]
        edges += [(3, comma, 2), (3, None, 1)]
        some = graph(4, edges)
    else:
        more = None if most is None else most - 1
        some = sequence(body, repeat(sequence(comma, body), max(least - 1, 0), more))
    return some if least else optional(some)
