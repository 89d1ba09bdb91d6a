import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.constraints.byte_expressions import automaton_of
from genai_jax.constraints.code_points import (
    ALL,
    characters,
    complement,
    intersection,
    json_string,
    union,
    utf8,
)

CHARACTERS = 0x110000 - 0x800
LENGTHS = ((0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))


def accepted_texts(dfa):
    """The number of texts, by counting paths; the language must be finite."""
    counts = np.zeros(len(dfa.accepting), object)
    counts[0], total = 1, 0
    for _ in range(16):
        total += counts[dfa.accepting].sum()
        after = np.zeros_like(counts)
        for state in np.flatnonzero(counts):
            for mask, target in dfa.moves[state]:
                after[target] += counts[state] * mask.bit_count()
        counts = after
    assert not counts.any()
    return total


def run(dfa, encoded):
    """Run an automaton on many texts of one length."""
    state = np.zeros(len(encoded), int)
    for column in encoded.T:
        state = np.where(state >= 0, dfa.table[state, column], -1)
    return (state >= 0) & dfa.accepting[state]


def test_every_character_has_its_bytes_and_nothing_else_has():
    """All 1,112,064 are accepted, and just as many texts are: neither surrogates nor others."""
    dfa = automaton_of(utf8(ALL))
    for first, end in LENGTHS:
        points = np.arange(first, end, dtype="<u4").tobytes().decode("utf-32-le")
        encoded = np.frombuffer(points.encode(), np.uint8).reshape(end - first, -1)
        assert run(dfa, encoded).all()
    assert accepted_texts(dfa) == CHARACTERS


def test_every_character_stands_in_json_as_python_writes_it():
    dfa = automaton_of(json_string(ALL))
    plain = [*range(0x80), *range(0x80, 0xD800, 7), *range(0xE000, 0x110000, 97), 0xFFFF, 0x10FFFF]
    for point in plain:
        text = json.dumps(chr(point), ensure_ascii=False)[1:-1]
        assert dfa.accepts(text.encode()), hex(point)
    assert accepted_texts(dfa) == CHARACTERS, "in one way only"


POINTS = st.one_of(
    st.integers(0, 0x10FFFF),
    st.sampled_from(
        [
            p + d
            for p in (0x7F, 0x7FF, 0xFFF, 0xD7FF, 0xDFFF, 0xFFFF, 0x3FFFF, 0xFFFFF)
            for d in (-1, 0, 1, 2)
        ]
    ),
)
RANGES = st.lists(st.tuples(POINTS, POINTS).map(sorted).map(tuple), max_size=4)


@given(RANGES, RANGES, st.lists(POINTS, max_size=30))
def test_sets_and_their_bytes(first, second, points):
    one, other = union(first), union(second)
    dfa = automaton_of(utf8(one))
    assert accepted_texts(dfa) == sum(last - begin + 1 for begin, last in one)

    def inside(ranges, point):
        return any(begin <= point <= last for begin, last in ranges)

    edges = [p for pair in first + second for p in pair]
    for point in points + edges:
        if 0xD800 <= point <= 0xDFFF:
            assert not inside(one, point) and not inside(complement(one), point)
            continue
        assert inside(one, point) == inside(first, point) == dfa.accepts(chr(point).encode())
        assert inside(complement(one), point) != inside(one, point)
        both = inside(one, point) and inside(other, point)
        assert inside(intersection(one, other), point) == both


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80", b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xc3\xa9\xa9",
    ],
)  # fmt: skip
def test_what_is_not_utf8_is_in_no_set(data):
    """Overlong, surrogates, beyond the last, cut off."""
    assert not automaton_of(utf8(ALL)).accepts(data)


def test_sets_are_sorted_apart_and_without_surrogates():
    assert union([(5, 9), (0, 3), (4, 4), (20, 30)]) == ((0, 9), (20, 30))
    assert union([(0xD000, 0xE001)]) == ((0xD000, 0xD7FF), (0xE000, 0xE001))
    assert characters("cab") == ((97, 99),)
    assert complement(()) == ALL and complement(ALL) == ()
