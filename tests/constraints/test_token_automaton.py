import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.constraints import token_automaton as module
from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.byte_expressions import (
    automaton_of,
    byte_range,
    literal,
    repeat,
    sequence,
)
from genai_jax.constraints.token_automaton import PieceTrie, token_automaton
from tests.constraints.any_automaton import automata, made

PIECES = st.lists(st.binary(max_size=4).map(lambda x: bytes(b"ab"[y % 2] for y in x)), max_size=9)


def reference(dfa, pieces):
    """Every token from every state; then what cannot end, or is not reached, goes."""
    states = range(len(dfa.accepting))
    after = {}
    for state, (token, piece) in itertools.product(states, enumerate(pieces)):
        at = state if piece else -1
        for byte in piece:
            at = int(dfa.table[at, byte]) if at >= 0 else -1
        after[state, token] = at
    distance = {s: 0 for s in states if dfa.accepting[s]}
    for _ in states:
        for (state, _), target in after.items():
            if target in distance:
                distance[state] = min(distance.get(state, 10**9), distance[target] + 1)
    return {pair: t if t in distance else -1 for pair, t in after.items()}, distance


@given(automata(), PIECES)
def test_equals_brute_force(automaton, pieces):
    dfa = made(automaton)
    after, distance = reference(dfa, pieces)
    trie = PieceTrie(pieces, len(pieces))
    if 0 not in distance:
        with pytest.raises(ConstraintError, match="some sequence of the tokenizer's tokens"):
            token_automaton(dfa, trie)
        return
    found = token_automaton(dfa, trie)
    assert found.classes.shape == (len(pieces),)
    assert found.classes.dtype == found.successors.dtype == found.distance.dtype == np.int32
    # Walk both, side by side.
    beside, front = {found.start: 0}, [found.start]
    while front:
        state = front.pop()
        assert found.distance[state] == distance[beside[state]]
        for token in range(len(pieces)):
            target = int(found.successors[state, found.classes[token]])
            expected = after[beside[state], token]
            assert (target < 0) == (expected < 0)
            if target >= 0 and target not in beside:
                beside[target] = expected
                front.append(target)
            assert target < 0 or beside[target] == expected
    assert len(beside) == len(found.distance), "every state is reached"
    columns = [tuple(column) for column in found.successors.T.tolist()]
    assert len(set(columns)) == len(columns) == len(set(found.classes.tolist()))
    firsts = list(dict.fromkeys(found.classes.tolist()))
    assert firsts == sorted(firsts), "classes are in the order of their first tokens"


def test_tokens_that_act_alike_share_a_class():
    letters = repeat(byte_range(ord("a"), ord("z")), 2, 3)
    pieces = [b"", b"a", b"b", b"ab", b"xy", b"xyz", b"A", b"", b"abcd"]
    found = token_automaton(automaton_of(letters), PieceTrie(pieces, len(pieces)))
    assert found.classes.tolist() == [0, 1, 1, 2, 2, 3, 0, 0, 0]
    assert found.successors.tolist() == [[-1, 1, 2, 3], [-1, 2, 3, -1], [-1, 3, -1, -1], [-1] * 4]
    assert found.distance.tolist() == [1, 1, 0, 0]


def test_ids_from_the_vocabularys_size_on_are_never_allowed():
    dfa = automaton_of(repeat(literal(b"a"), 1, None))
    found = token_automaton(dfa, PieceTrie([b"a", b"aa", b"aaa"], 2))
    assert found.classes.shape == (2,)
    found = token_automaton(dfa, PieceTrie([b"a"], 4))  # ids without a piece
    assert found.successors[0, found.classes].tolist() == [1, -1, -1, -1]


def test_characters_in_pieces_can_be_put_together():
    """A character of four bytes, of which tokens hold parts that are not UTF-8."""
    text = "é🙂é".encode()
    pieces = [text[:1], text[:3], text[1:4], text[3:5], text[4:], text[5:], text[5:7], b"x"]
    found = token_automaton(automaton_of(literal(text)), PieceTrie(pieces, len(pieces)))
    assert found.distance[found.start] == 3  # text[:1] text[1:4] text[4:]
    assert (found.successors[found.start, found.classes] >= 0).tolist() == [
        *(True, True, False, False, False, False, False, False)
    ]


def test_a_byte_path_without_tokens_is_no_path():
    dfa = automaton_of(sequence(literal(b"a"), byte_range(ord("b"), ord("c"))))
    found = token_automaton(dfa, PieceTrie([b"a", b"b"], 2))
    assert found.successors.tolist() == [[1, -1], [-1, 2], [-1, -1]]
    with pytest.raises(ConstraintError, match="none does"):
        token_automaton(dfa, PieceTrie([b"a", b"d", b"ca"], 3))


def test_the_empty_text_needs_no_tokens():
    found = token_automaton(automaton_of(literal(b"")), PieceTrie([b"a", b""], 2))
    assert found.distance.tolist() == [0] and found.successors.tolist() == [[-1]]


def test_work_in_parts_changes_nothing(monkeypatch):
    pieces = [re.sub(rb"[^a-c]", b"", bytes(x)) for x in itertools.product(b"abcd", repeat=4)]
    dfa = automaton_of(repeat(literal(b"abc"), 1, 7))
    whole = token_automaton(dfa, PieceTrie(pieces, len(pieces)))
    monkeypatch.setattr(module, "_AT_A_TIME", 1)
    for one, other in zip(whole, token_automaton(dfa, PieceTrie(pieces, len(pieces))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tables_that_would_be_too_large_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_ENTRIES", 1000)
    dfa = automaton_of(repeat(byte_range(ord("a"), ord("b")), 0, 200))
    pieces = [b"a" * n for n in range(30)]
    with pytest.raises(ConstraintError, match="at most 1,000 entries; 201 states and more than 5"):
        token_automaton(dfa, PieceTrie(pieces, len(pieces)))
