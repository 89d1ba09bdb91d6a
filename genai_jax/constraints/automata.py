"""Deterministic finite automata over bytes: built, made minimal, combined; never without bounds.

An automaton is found by exploration: from a start state, whose moves lead to others, and so on. A
set of bytes is an integer, bit b for byte b. S states, K classes of bytes that act alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int

MOST_STATES = 32_000
"""Most states of an automaton while it is built; their numbers fit into 16 bits."""

ANY_BYTE = (1 << 256) - 1
"""The set of all bytes."""

Move = tuple[int, int]
"""A set of bytes, and the state that they lead to."""

_State = TypeVar("_State", bound=Hashable)


class ConstraintError(ValueError):
    """What is asked of a text cannot be held to: the rule, what was received, and a fix."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dfa:
    """A minimal deterministic automaton; its start is state 0.

    Every state is reached and can still accept, unless it accepts nothing at all: then it is one
    state without successors. Equal languages have equal arrays.

    Attributes:
        successors: The state after a byte of a class; -1 if no text goes on so.
        byte_classes: The class of each byte.
        accepting: Whether the text may end there.
    """

    successors: Int[np.ndarray, "s k"]
    byte_classes: Int[np.ndarray, " 256"]
    accepting: Bool[np.ndarray, " s"]

    @property
    def is_empty(self) -> bool:
        """Whether it accepts nothing."""
        return not self.accepting.any()

    @functools.cached_property
    def table(self) -> Int[np.ndarray, "s 256"]:
        """The state after each byte; -1 if there is none."""
        return self.successors[:, self.byte_classes]

    @functools.cached_property
    def moves(self) -> list[list[Move]]:
        """For every state, the disjoint sets of bytes that lead on, and where to."""
        masks = [_mask(np.flatnonzero(self.byte_classes == k)) for k in range(self._classes)]
        moves = []
        for row in self.successors.tolist():
            towards: dict[int, int] = {}
            for mask, target in zip(masks, row, strict=True):
                if target >= 0:
                    towards[target] = towards.get(target, 0) | mask
            moves.append([(mask, target) for target, mask in towards.items()])
        return moves

    @property
    def _classes(self) -> int:
        return self.successors.shape[1]

    def accepts(self, text: bytes) -> bool:
        """Say whether a text is in the language."""
        state = 0
        for k in self.byte_classes[np.frombuffer(text, np.uint8)].tolist():
            state = int(self.successors[state, k])
            if state < 0:
                return False
        return bool(self.accepting[state])


def byte_set(first: int, last: int) -> int:
    """Give the set of the bytes from `first` to `last`, both included."""
    return (1 << (last + 1)) - (1 << first)


@functools.lru_cache(maxsize=4096)
def bytes_in(mask: int) -> Int[np.ndarray, " n"]:
    """List the bytes of a set."""
    bits = np.frombuffer(mask.to_bytes(32, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def _mask(members: Int[np.ndarray, " n"]) -> int:
    return sum(1 << byte for byte in members.tolist())


def explore(
    start: _State,
    moves: Callable[[_State], Iterable[tuple[int, _State]]],
    accepts: Callable[[_State], bool],
) -> Dfa:
    """Find all states that can be reached, and make the automaton of them minimal.

    Args:
        start: The first state.
        moves: From a state to disjoint sets of bytes and the states that they lead to.
        accepts: Whether a text may end in a state.

    Raises:
        ConstraintError: If there are more than `MOST_STATES`.
    """
    numbers = {start: 0}
    order = [start]
    rows: list[np.ndarray] = []
    while len(rows) < len(order):
        row = np.full(256, -1, np.int32)
        for mask, target in moves(order[len(rows)]):
            number = numbers.setdefault(target, len(order))
            if number == len(order):
                if number >= MOST_STATES:
                    raise ConstraintError(
                        f"an automaton must have at most {MOST_STATES:,} states; this one has more."
                        " Bound lengths and repetitions by less, or make patterns more specific."
                    )
                order.append(target)
            row[bytes_in(mask)] = number
        rows.append(row)
    return _minimal(np.stack(rows), np.array([accepts(state) for state in order]))


def intersection(first: Dfa, second: Dfa) -> Dfa:
    """Accept what both accept."""

    def moves(pair: tuple[int, int]) -> Iterable[tuple[int, tuple[int, int]]]:
        for mask, target in first.moves[pair[0]]:
            for other, onward in second.moves[pair[1]]:
                if mask & other:
                    yield mask & other, (target, onward)

    return explore((0, 0), moves, lambda x: bool(first.accepting[x[0]] & second.accepting[x[1]]))


def difference(first: Dfa, second: Dfa) -> Dfa:
    """Accept what the first accepts and the second does not."""

    def moves(pair: tuple[int, int]) -> Iterable[tuple[int, tuple[int, int]]]:
        for mask, target in first.moves[pair[0]]:
            for other, onward in second.moves[pair[1]] if pair[1] >= 0 else ():
                if mask & other:
                    yield mask & other, (target, onward)
                mask &= ~other
            if mask:  # the second has given up
                yield mask, (target, -1)

    def accepts(pair: tuple[int, int]) -> bool:
        refused = pair[1] >= 0 and second.accepting[pair[1]]
        return bool(first.accepting[pair[0]] and not refused)

    return explore((0, 0), moves, accepts)


class Arrows:
    """The arrows between numbered states, by the state that they leave.

    Args:
        tails: Where each arrow leaves.
        heads: Where it leads.
        states: Number of states.
    """

    def __init__(
        self, tails: Int[np.ndarray, " n"], heads: Int[np.ndarray, " n"], states: int
    ) -> None:
        self._heads = heads[np.argsort(tails, kind="stable")]
        self._begins = np.concatenate([[0], np.cumsum(np.bincount(tails, minlength=states))])
        self._states = states

    def after(self, states: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """List the states that arrows from any of `states` lead to, sorted, each once."""
        begins = self._begins[states]
        counts = self._begins[states + 1] - begins
        total = int(counts.sum())
        places = np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(total)
        return np.unique(self._heads[places])

    def fewest_steps(self, sources: Int[np.ndarray, " n"]) -> Int[np.ndarray, " s"]:
        """Count the arrows of a shortest path from any of `sources`; -1 where there is none."""
        steps = np.full(self._states, -1, np.int32)
        step = 0
        while sources.size:
            steps[sources] = step
            step += 1
            sources = self.after(sources)
            sources = sources[steps[sources] < 0]
        return steps


def _minimal(table: Int[np.ndarray, "s 256"], accepting: Bool[np.ndarray, " s"]) -> Dfa:
    """Drop states that cannot accept, merge states with the same language, number them anew."""
    _, kept, byte_classes = _distinct(table.T)
    table = table[:, kept]
    tails, column = np.nonzero(table >= 0)
    backward = Arrows(table[tails, column], tails, len(table))
    ahead = backward.fewest_steps(np.flatnonzero(accepting))
    if ahead[0] < 0:
        nothing = np.full((1, 1), -1, np.int32)
        return Dfa(nothing, np.zeros(256, np.int32), np.zeros(1, bool))
    # Bytes to the nearest end are a property of the language: a first guess that states differ.
    block = _coarsest(table, backward, ahead)
    block[ahead < 0] = -1
    # A state that is in no block is where -1 leads too.
    merged = np.append(block, -1)[table]
    _, first = np.unique(block, return_index=True)
    first = first[block[first] >= 0]
    return _in_order(merged[first], accepting[first], int(block[0]), byte_classes)


def _coarsest(
    table: Int[np.ndarray, "s k"], backward: Arrows, ahead: Int[np.ndarray, " s"]
) -> Int[np.ndarray, " s"]:
    """Refine a partition until states of a block go to the same blocks; number blocks 0, 1, ...

    Only states with a successor whose block is new are looked at again. In a block, the others have
    kept what they have in common, and differ from these, since a new block has a new number.

    Reference: E. F. Moore, "Gedanken-experiments on sequential machines", 1956, theorem 4; and for
        the order of work J. Hopcroft, "An n log n algorithm", 1971.
    """
    block = np.append(ahead, -1)  # states that cannot accept share a block with -1, nowhere
    sizes = np.bincount(block + 1, minlength=len(table) + 2)
    blocks = int(block.max()) + 1
    again = np.flatnonzero(ahead >= 0)
    while again.size:
        rows = np.column_stack([block[again], block[table[again]]])
        _, first, group = _distinct(rows)
        old, counts = rows[first, 0], np.bincount(group)
        # Where a whole block is looked at, its largest part keeps the number.
        whole = np.bincount(old, counts, minlength=blocks)[old] == sizes[old + 1]
        largest = np.lexsort((-counts, old))
        leads = np.zeros(len(old), bool)
        leads[largest[np.diff(old[largest], prepend=-1) != 0]] = True
        fresh = ~(whole & leads)
        number = np.where(fresh, blocks + np.cumsum(fresh) - 1, old)
        blocks += int(fresh.sum())
        changed = again[fresh[group]]
        np.subtract.at(sizes, old[fresh] + 1, counts[fresh])
        sizes[number[fresh] + 1] = counts[fresh]
        block[again] = number[group]
        again = backward.after(changed)
        again = again[ahead[again] >= 0]
    return block[:-1]


def _in_order(
    table: Int[np.ndarray, "s k"],
    accepting: Bool[np.ndarray, " s"],
    start: int,
    byte_classes: Int[np.ndarray, " 256"],
) -> Dfa:
    """Number states as they are met from the start, byte by byte, and classes by first byte."""
    _, kept, inverse = _distinct(table.T)
    byte_classes = inverse[byte_classes]
    _, first, byte_classes = np.unique(byte_classes, return_index=True, return_inverse=True)
    by_byte = np.argsort(np.argsort(first))
    table = table[:, kept][:, np.argsort(by_byte)]
    byte_classes = by_byte[byte_classes.reshape(-1)].astype(np.int32)
    found = np.zeros(len(table), bool)
    order = front = np.array([start])
    found[start] = True
    while front.size:
        met = table[front].reshape(-1)
        met = met[met >= 0]
        met = met[~found[met]]
        _, earliest = np.unique(met, return_index=True)
        front = met[np.sort(earliest)]
        found[front] = True
        order = np.concatenate([order, front])
    number = np.full(len(table) + 1, -1, np.int32)
    number[order] = np.arange(len(order))
    return Dfa(number[table[order]], byte_classes, accepting[order])


def _distinct(rows: np.ndarray) -> Sequence[np.ndarray]:
    """Sort distinct rows; returns them, where each is first, and which of them each row is."""
    unique, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return unique, first, inverse.reshape(-1)
