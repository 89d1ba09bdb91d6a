import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.constraints.automata import (
    MOST_STATES,
    ConstraintError,
    byte_set,
    bytes_in,
    difference,
    explore,
    intersection,
)
from tests.constraints.any_automaton import LETTERS, automata, made, runs

WORDS = [bytes(word) for n in range(8) for word in itertools.product(LETTERS, repeat=n)]


def language(dfa):
    return {word for word in WORDS if dfa.accepts(word)}


def same(first, second):
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("successors", "byte_classes", "accepting")
    )


def distinguishable_pairs(dfa):
    """By filling the table of pairs."""
    states = range(len(dfa.accepting))
    accepting = [*dfa.accepting.tolist(), False]
    table = np.append(dfa.successors, np.full((1, dfa.successors.shape[1]), -1), 0).tolist()
    pairs = {(s, t) for s in states for t in states if accepting[s] != accepting[t]}
    while True:
        more = {
            (s, t)
            for s in states
            for t in states
            if (s, t) not in pairs
            and any(
                (a, b) in pairs or (a < 0) != (b < 0)
                for a, b in zip(table[s], table[t], strict=True)
            )
        }
        if not more:
            return pairs
        pairs |= more


@given(automata())
def test_exploration_keeps_the_language(automaton):
    dfa = made(automaton)
    assert language(dfa) == {word for word in WORDS if runs(automaton, word)}


@given(automata())
def test_automata_are_minimal_and_in_order(automaton):
    dfa = made(automaton)
    states = len(dfa.accepting)
    assert len(distinguishable_pairs(dfa)) == states * (states - 1)
    if dfa.is_empty:
        assert states == 1 and (dfa.successors < 0).all()
        return
    met = [0]
    for state in met:
        met += [t for t in dict.fromkeys(dfa.table[state].tolist()) if t >= 0 and t not in met]
    assert met == list(range(states)), "reached, and numbered as they are met byte by byte"
    columns = [tuple(column) for column in dfa.successors.T.tolist()]
    assert len(set(columns)) == len(columns), "classes differ"
    firsts = [int(np.argmax(dfa.byte_classes == k)) for k in range(len(columns))]
    assert firsts == sorted(firsts)
    alive = set(np.flatnonzero(dfa.accepting).tolist())
    for _ in range(states):
        alive |= {s for s in range(states) if alive & set(dfa.successors[s].tolist())}
    assert alive == set(range(states)), "every state can accept"


@given(automata(), st.randoms(use_true_random=False))
def test_equal_languages_give_equal_arrays(automaton, random):
    table, accepting = automaton
    order = [0, *random.sample(range(1, len(table)), len(table) - 1)]
    place = {old: new for new, old in enumerate(order)} | {-1: -1}
    renamed = [[place[t] for t in table[old]] for old in order]
    # A state twice: what led to the one leads to the copy.
    twin = len(renamed)
    renamed.append(list(renamed[-1]))
    renamed[1] = [twin if t == twin - 1 else t for t in renamed[1]]
    ends = [accepting[old] for old in order]
    assert same(made(automaton), made((renamed, [*ends, ends[-1]])))


@given(automata(6), automata(6))
def test_combinations(first, second):
    a, b = made(first), made(second)
    assert language(intersection(a, b)) == language(a) & language(b)
    assert language(difference(a, b)) == language(a) - language(b)
    assert difference(a, a).is_empty
    assert same(intersection(a, b), difference(a, difference(a, b)))


def test_multiples_of_three_have_three_states():
    """In binary: the remainder is all that matters."""
    moves = lambda s: [(1 << ord("0"), s * 2 % 12), (1 << ord("1"), (s * 2 + 1) % 12)]  # noqa: E731
    dfa = explore(0, moves, lambda s: s % 3 == 0)
    table = dfa.successors[:, dfa.byte_classes[[ord("0"), ord("1"), ord("2")]]]
    assert table.tolist() == [[0, 1, -1], [2, 0, -1], [1, 2, -1]]
    assert dfa.accepting.tolist() == [True, False, False]


def test_long_chains_keep_their_states():
    """Minimising looks again only where something changed, however long that takes."""
    length = 3000
    moves = lambda s: [(byte_set(0, 99), min(s + 1, length)), (1 << 200, -1)][: 1 + (s > 0)]  # noqa: E731
    dfa = explore(0, lambda s: moves(s) if s >= 0 else (), lambda s: s == -1)
    # After `length` every state is like the one before it: a loop.
    assert len(dfa.accepting) == 3
    dfa = explore(0, lambda s: [(1, s + 1)] if s < length else (), lambda s: s % 7 == 0)
    assert len(dfa.accepting) == length - length % 7 + 1


def test_too_many_states_are_refused():
    with pytest.raises(ConstraintError, match=f"at most {MOST_STATES:,} states"):
        explore(0, lambda s: [(1, s + 1)], lambda s: True)


@given(st.sets(st.integers(0, 255)))
def test_sets_of_bytes(members):
    assert bytes_in(sum(1 << byte for byte in members)).tolist() == sorted(members)


def test_ranges_of_bytes():
    assert bytes_in(byte_set(3, 5)).tolist() == [3, 4, 5]
    assert bytes_in(byte_set(0, 255)).tolist() == list(range(256))
