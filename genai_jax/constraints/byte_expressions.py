"""Regular expressions over bytes, as values to combine; made into automata by subsets.

An expression is immutable and may be a part of others many times: that costs nothing until the
automaton is built, which stops where it would be too large.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from genai_jax.constraints.automata import (
    ConstraintError,
    Dfa,
    Move,
    byte_set,
    explore,
)

MOST_PARTS = 100_000
"""Most states of the nondeterministic automaton."""

_MOST_STEPS = 2_000_000  # of building subsets: two or three seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
    """One byte of a set."""

    mask: int


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat:
    """A body, at least and at most so often; `most` None is without an end."""

    body: "Expression"
    least: int
    most: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Texts along the paths from node 0 to node 1; None is an edge without text."""

    nodes: int
    edges: tuple[tuple[int, "Expression | None", int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
    """What an automaton accepts."""

    dfa: Dfa


Expression = Symbol | Repeat | Graph | Language

NEVER = Graph(2, ())
"""Matches nothing."""

EMPTY = Graph(2, ((0, None, 1),))
"""Matches the empty text."""


@functools.cache
def byte_range(first: int, last: int) -> Symbol:
    """Match one byte from `first` to `last`."""
    return Symbol(byte_set(first, last))


@functools.lru_cache(maxsize=4096)
def literal(text: bytes) -> Expression:
    """Match these bytes."""
    return sequence(*(byte_range(byte, byte) for byte in text))


def language(dfa: Dfa) -> Expression:
    """Match what an automaton accepts."""
    return NEVER if dfa.is_empty else Language(dfa)


def sequence(*parts: Expression) -> Expression:
    """Match the parts, one after another."""
    parts = tuple(part for part in parts if part is not EMPTY)
    if any(part is NEVER for part in parts):
        return NEVER
    if len(parts) < 2:
        return parts[0] if parts else EMPTY
    places = [0, *range(2, len(parts) + 1), 1]
    return Graph(len(parts) + 1, tuple(zip(places[:-1], parts, places[1:], strict=True)))


def choice(parts: Iterable[Expression]) -> Expression:
    """Match one of the parts."""
    kept = tuple(dict.fromkeys(part for part in parts if part is not NEVER))
    if len(kept) < 2:
        return kept[0] if kept else NEVER
    return Graph(2, tuple((0, part, 1) for part in kept))


def optional(part: Expression) -> Expression:
    """Match the part or the empty text."""
    return choice([EMPTY, part])


def repeat(body: Expression, least: int, most: int | None) -> Expression:
    """Match the body at least and at most so often; `most` None is without an end."""
    if body is EMPTY or most == 0:
        return EMPTY
    if body is NEVER:
        return NEVER if least else EMPTY
    return body if least == most == 1 else Repeat(body, least, most)


def graph(nodes: int, edges: Sequence[tuple[int, Expression | None, int]]) -> Expression:
    """Match the texts along the paths from node 0 to node 1."""
    kept = tuple(edge for edge in edges if edge[1] is not NEVER)
    onward: dict[int, list[int]] = {}
    for tail, _, head in kept:
        onward.setdefault(tail, []).append(head)
    reached, front = {0}, [0]
    while front:
        for head in onward.get(front.pop(), ()):
            if head not in reached:
                reached.add(head)
                front.append(head)
    return Graph(nodes, kept) if 1 in reached else NEVER


class _Nfa:
    """Thompson's automaton: state 0 begins, state 1 accepts.

    Between its two states a part adds nothing that enters the first or leaves the second, unless
    these are one: then its texts may be repeated.
    """

    def __init__(self, expression: Expression) -> None:
        self.edges: list[list[Move]] = []
        self.skips: list[list[int]] = []
        self._new(2)
        pending: list[tuple[Expression, int, int]] = [(expression, 0, 1)]
        while pending:
            part, begin, end = pending.pop()
            if isinstance(part, Symbol):
                self.edges[begin].append((part.mask, end))
            elif isinstance(part, Language):
                self._add_language(part.dfa, begin, end)
            elif isinstance(part, Repeat):
                pending += self._chain(part, begin, end)
            else:
                first = self._new(part.nodes - 2)
                place = {0: begin, 1: end}
                for tail, label, head in part.edges:
                    ends = (place.get(tail, first + tail - 2), place.get(head, first + head - 2))
                    if label is None:
                        self.skips[ends[0]].append(ends[1])
                    else:
                        pending.append((label, *ends))

    def _new(self, count: int) -> int:
        """Make states; returns the first."""
        first = len(self.edges)
        if first + count > MOST_PARTS:
            raise ConstraintError(
                f"an expression must have at most {MOST_PARTS:,} parts when its repetitions are "
                "written out; this one has more. Bound lengths and repetitions by less."
            )
        self.edges += [[] for _ in range(count)]
        self.skips += [[] for _ in range(count)]
        return first

    def _add_language(self, dfa: Dfa, begin: int, end: int) -> None:
        first = self._new(len(dfa.moves))
        self.skips[begin].append(first)
        for state, moves in enumerate(dfa.moves):
            self.edges[first + state] += [(mask, first + target) for mask, target in moves]
            if dfa.accepting[state]:
                self.skips[first + state].append(end)

    def _chain(self, part: Repeat, begin: int, end: int) -> list[tuple[Expression, int, int]]:
        """Write out a repetition."""
        count = part.least if part.most is None else part.most
        first = self._new(count + 1)
        self.skips[begin].append(first)
        for place in range(part.least, count + 1):
            self.skips[first + place].append(end)
        chain: list[tuple[Expression, int, int]] = [
            (part.body, first + place, first + place + 1) for place in range(count)
        ]
        if part.most is None:
            loop = self._new(1)
            self.skips[first + count].append(loop)
            self.skips[loop].append(end)
            chain.append((part.body, loop, loop))
        return chain


class _Subsets:
    """The moves from a set of states to others."""

    def __init__(self, nfa: _Nfa) -> None:
        self._nfa = nfa
        self._closures: dict[int, frozenset[int]] = {}
        self._steps = 0

    def closure(self, state: int) -> frozenset[int]:
        """Find the states that are reached without text, of those that have edges or accept."""
        found = self._closures.get(state)
        if found is None:
            seen, front = {state}, [state]
            while front:
                for target in self._nfa.skips[front.pop()]:
                    if target not in seen:
                        seen.add(target)
                        front.append(target)
            self._count(len(seen))
            found = frozenset(s for s in seen if s == 1 or self._nfa.edges[s])
            self._closures[state] = found
        return found

    def moves(self, states: frozenset[int]) -> Iterable[tuple[int, frozenset[int]]]:
        """Find disjoint sets of bytes and the sets of states that they lead to."""
        self._count(len(states))
        towards: dict[int, set[int]] = {}
        for state in states:
            for mask, target in self._nfa.edges[state]:
                towards.setdefault(mask, set()).add(target)
        parts: list[tuple[int, set[int]]] = []
        taken = 0
        for mask, targets in towards.items():
            if mask & taken:
                self._count(len(parts))
                parts = list(_split(parts, mask, targets))
            if mask & ~taken:
                parts.append((mask & ~taken, targets))
            taken |= mask
        for mask, targets in parts:
            after = frozenset().union(*map(self.closure, targets))
            self._count(len(after))
            yield mask, after

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ConstraintError(
                f"to make an expression deterministic must take at most {_MOST_STEPS:,} steps; "
                "this one takes more. Bound repetitions by less, and let alternatives begin "
                "differently."
            )


def _split(
    parts: list[tuple[int, set[int]]], mask: int, targets: set[int]
) -> Iterable[tuple[int, set[int]]]:
    """Cut parts along a set of bytes; what is inside leads to the targets too."""
    for other, others in parts:
        if other & mask:
            yield other & mask, others | targets
        if other & ~mask:
            yield other & ~mask, others


def automaton_of(expression: Expression) -> Dfa:
    """Build the minimal deterministic automaton of an expression.

    Raises:
        ConstraintError: If the expression written out, the automaton, or the work would be too
            large.

    Reference: K. Thompson, "Regular expression search algorithm", 1968; M. O. Rabin and D. Scott,
        "Finite automata and their decision problems", 1959, theorem 11.
    """
    subsets = _Subsets(_Nfa(expression))
    return explore(subsets.closure(0), subsets.moves, lambda states: 1 in states)
