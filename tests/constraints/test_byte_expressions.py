import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.constraints import byte_expressions as be
from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.byte_expressions import automaton_of

WORDS = [bytes(word) for n in range(6) for word in itertools.product(b"abc", repeat=n)]


# Leaves, and the patterns that mean the same to Python.
LEAVES = (
    (be.literal(b"a"), b"a"),
    (be.literal(b"ab"), b"ab"),
    (be.byte_range(ord("b"), ord("c")), b"[b-c]"),
    (be.EMPTY, b"(?:)"),
    (be.NEVER, b"[^\\x00-\\xff]"),
    (be.language(automaton_of(be.literal(b"ca"))), b"ca"),
    (be.language(automaton_of(be.repeat(be.literal(b"ab"), 0, None))), b"(?:ab)*"),
)
TREES = st.recursive(
    st.integers(0, len(LEAVES) - 1),
    lambda part: st.one_of(
        st.tuples(st.just("sequence"), st.lists(part, max_size=3)),
        st.tuples(st.just("choice"), st.lists(part, min_size=1, max_size=3)),
        st.tuples(st.just("optional"), st.lists(part, min_size=1, max_size=1)),
        st.tuples(st.integers(0, 2), st.sampled_from([None, 0, 1, 2]), part),
    ),
    max_leaves=8,
)


def written(tree):
    """An expression, and the pattern that means the same to Python."""
    if isinstance(tree, int):
        return LEAVES[tree]
    if len(tree) == 3:
        least, more, part = tree
        body, pattern = written(part)
        most = None if more is None else least + more
        end = b"" if most is None else b"%d" % most
        return be.repeat(body, least, most), b"(?:%s){%d,%s}" % (pattern, least, end)
    parts = [written(part) for part in tree[1]]
    expressions, patterns = [x for x, _ in parts], [p for _, p in parts]
    if tree[0] == "sequence":
        return be.sequence(*expressions), b"".join(patterns)
    if tree[0] == "choice":
        return be.choice(expressions), b"(?:%s)" % b"|".join(patterns)
    return be.optional(expressions[0]), b"(?:%s)?" % patterns[0]


@given(TREES)
def test_expressions_match_what_python_matches(tree):
    expression, pattern = written(tree)
    dfa = automaton_of(expression)
    wrong = [w for w in WORDS if dfa.accepts(w) != bool(re.fullmatch(pattern, w))]
    assert not wrong, pattern


def test_graphs_share_their_nodes():
    """Members with commas between those that are there: two paths that meet."""
    a, b, comma = be.literal(b"a"), be.literal(b"b"), be.literal(b",")
    # 2: something is written; 3: `b` comes next.
    edges = [(0, a, 2), (0, None, 3), (2, comma, 3), (3, b, 1), (2, None, 1)]
    dfa = automaton_of(be.graph(4, edges))
    words = [bytes(w) for n in range(5) for w in itertools.product(b"ab,", repeat=n)]
    assert {w for w in words if dfa.accepts(w)} == {b"a", b"b", b"a,b"}


def test_graphs_that_never_arrive_are_nothing():
    assert be.graph(3, [(0, be.literal(b"a"), 2), (2, be.NEVER, 1)]) is be.NEVER
    assert be.sequence(be.literal(b"a"), be.NEVER) is be.NEVER
    assert automaton_of(be.NEVER).is_empty


@pytest.mark.parametrize("letters", [3, 6, 10])
def test_the_nth_letter_from_the_end_needs_two_to_the_n_states(letters):
    """M. Rabin and D. Scott, 1959: the subset construction's blow-up is real."""
    any_letter = be.byte_range(ord("a"), ord("b"))
    before, after = be.repeat(any_letter, 0, None), be.repeat(any_letter, letters - 1, letters - 1)
    dfa = automaton_of(be.sequence(before, be.literal(b"a"), after))
    assert len(dfa.accepting) == 2**letters


A = be.literal(b"a")
ANY = be.byte_range(ord("a"), ord("b"))


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        (be.repeat(be.repeat(be.repeat(A, 1000, 1000), 1000, 1000), 1000, 1000), "100,000 parts"),
        (be.repeat(A, 10**12, 10**13), "100,000 parts"),
        (be.repeat(A, 10**12, None), "100,000 parts"),
        (be.repeat(be.repeat(be.optional(A), 1000, 1000), 0, 1000), "100,000 parts"),
        (be.sequence(be.repeat(ANY, 0, None), A, be.repeat(ANY, 24, 24)), "32,000 states"),
        (be.repeat(A, 40_000, 40_000), "32,000 states"),
        (be.repeat(be.optional(A), 0, 4000), "2,000,000 steps"),
    ],
)
def test_what_would_be_too_large_is_refused(expression, rule):
    with pytest.raises(ConstraintError, match=rule):
        automaton_of(expression)


def test_a_body_within_itself_is_refused_as_often_as_it_is_written():
    expression = A
    for _ in range(60):  # 2⁶⁰ parts, if they were written out
        expression = be.sequence(expression, expression)
    with pytest.raises(ConstraintError, match="100,000 parts"):
        automaton_of(expression)
