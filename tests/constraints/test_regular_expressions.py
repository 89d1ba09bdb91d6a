import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.regular_expressions import ecma_set, full_match, python_set

LETTERS = "ab0_ \n-é\u2028🙂"
WORDS = ["".join(word) for n in range(4) for word in itertools.product(LETTERS, repeat=n)]

SETS = tuple(rf"\{letter}" for letter in "dwsDWS")
CLASSES = st.lists(
    st.sampled_from(
        [*"ab0_é🙂.", *SETS, "a-c", "0-9", "à-ü", r"\n", r"\-", r"\]", r"\\", r"\x61", r"\u00e9"]
    ),
    min_size=1,
    max_size=3,
).map("".join)
ATOMS = st.one_of(
    st.sampled_from(["", *"ab0é🙂 -.]}", *SETS, r"\n", r"\.", r"\x62", r"\u00e9"]),
    st.tuples(st.sampled_from(["[", "[^"]), CLASSES).map(lambda pair: "".join(pair) + "]"),
)
REPEATS = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "+?", "??", "{1,2}?"])
PATTERNS = st.recursive(
    ATOMS,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3).map("".join),
        st.lists(part, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(part, REPEATS).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=8,
)


def sample(dfa, rng, steps=12):
    """A text that the automaton accepts, at random; or none found."""
    state, text, found = 0, b"", None
    for _ in range(steps * 4):
        found = text if dfa.accepting[state] else found
        moves = dfa.moves[state]
        if not moves:
            break
        mask, state = moves[rng.integers(len(moves))]
        members = [byte for byte in range(256) if mask >> byte & 1]
        text += bytes([members[rng.integers(len(members))]])
    return found


@given(PATTERNS, st.integers(0, 2**32))
def test_matches_what_python_matches(pattern, seed):
    expected = re.compile(pattern, re.ASCII)
    try:
        dfa = full_match(pattern)
    except ConstraintError as error:
        assert "matches none" in str(error)
        assert not any(expected.fullmatch(word) for word in WORDS)
        return
    wrong = [w for w in WORDS if dfa.accepts(w.encode()) != bool(expected.fullmatch(w))]
    assert not wrong
    rng = np.random.default_rng(seed)
    for _ in range(5):
        text = sample(dfa, rng)
        assert text is None or expected.fullmatch(text.decode()), text


@pytest.mark.parametrize(
    ("pattern", "matched", "refused"),
    [
        (r"\t\r\f\v\0\x41\u0042", ["\t\r\f\v\0AB"], [""]),
        (r"\u{1F642}\u{e9}", ["🙂é"], ["e9"]),
        (r"[\b]", ["\b"], ["b"]),
        (r"\^\$\.\*\+\?\(\)\[\]\{\}\|\/\-\\", ["^$.*+?()[]{}|/-\\"], []),
        ("^a|b$", ["a", "b"], ["ab", "^a"]),
        ("^(?:a|b)$", ["a", "b"], ["ab"]),
        ("^", [""], ["^"]),
        (".", ["\r", "\u2028", "é", "🙂"], ["\n", "", "ab"]),
        ("[^a]", ["\n", "🙂"], ["a"]),
        ("🙂{2}", ["🙂🙂"], ["🙂"]),
        ("(a|)b", ["ab", "b"], ["a"]),
        ("a{0}", [""], ["a"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[-a]", ["a", "-"], ["b"]),
        ("", [""], ["a"]),
    ],
)
def test_known_answers(pattern, matched, refused):
    dfa = full_match(pattern)
    assert [text for text in matched if not dfa.accepts(text.encode())] == []
    assert [text for text in refused if dfa.accepts(text.encode())] == []


def test_half_characters_match_nothing():
    dfa = full_match(".*")
    assert not dfa.accepts("é".encode()[:1]) and not dfa.accepts(b"\xed\xa0\x80")


@pytest.mark.parametrize(
    ("pattern", "what", "position"),
    [
        ("a(?=b)", "a lookahead", 1),
        ("(?!b)", "a lookahead", 0),
        ("(?<=b)", "a lookbehind", 0),
        ("(?<!b)", "a lookbehind", 0),
        (r"(a)\1", "a backreference", 3),
        (r"\k<a>", "a backreference", 0),
        (r"a\b", "a word boundary", 1),
        (r"\B", "a word boundary", 0),
        ("(?i)a", "a flag", 0),
        ("(?P<n>a)", "a named group", 0),
        ("(?<n>a)", "a named group", 0),
        ("(?>a)", "an atomic group", 0),
        (r"\p{L}", "a class of Unicode's properties", 0),
        (r"[a\P{L}]", "a class of Unicode's properties", 2),
        (r"\A", "an anchor other than ^ and $", 0),
        ("a^b", "a ^ inside", 1),
        ("a$b", "a $ inside", 1),
        ("(^a)", "a ^ inside", 1),
        ("a$*", "a $ inside", 1),
        ("^*", "a * with nothing to repeat", 1),
        ("a|+", "a + with nothing to repeat", 2),
        ("a**", "a repetition of a repetition", 2),
        ("a{2}{3}", "a repetition of a repetition", 4),
        ("a++", "a possessive repetition", 1),
        ("a{3,2}", "a repetition whose least exceeds its most", 1),
        ("a{,2}", "a { that is no {m}, {m,} or {m,n}", 1),
        ("a{1" + "0" * 10 + "}", "a repetition of more than nine digits", 1),
        ("(a", "a ( without its )", 0),
        ("a)", "a ) without its (", 1),
        ("[a", "a [ without its ]", 0),
        ("[]", "a class without members", 0),
        ("[^]", "a class without members", 0),
        ("[b-a]", "a range that ends before it begins", 1),
        (r"[\d-z]", "a range to or from a class", 1),
        ("a\\", "the escape", 1),
        (r"\q", "the escape", 0),
        (r"\01", "the escape", 0),
        (r"\xg0", "the escape", 0),
        (r"\u12", "the escape", 0),
        (r"\u{110000}", "the escape", 0),
        (r"\ud83d\ude42", "the escape", 0),
        ("\ud800", "half of a surrogate pair", 0),
        ("(" * 50 + ")" * 50, "more than 40 groups in one another", 40),
    ],
)
def test_what_is_not_in_the_subset_is_named_with_its_place(pattern, what, position):
    with pytest.raises(ConstraintError, match=f"{re.escape(what)}.* at position {position} of"):
        full_match(pattern)


def test_the_escape_is_named():
    with pytest.raises(ConstraintError, match=re.escape(r"the escape '\\q' at position 1")):
        full_match(r"a\q")


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("(a|b)*a(a|b){24}", "32,000 states"),
        ("((a{1000}){1000}){1000}", "100,000 parts"),
        ("a{999999999}", "100,000 parts"),
        ("(a?){4000}", "2,000,000 steps"),
        ("a" * 10_001, "10,000 characters"),
        (r"[^\d\D]", "must match some text"),
    ],
)
def test_what_is_too_large_or_empty_is_refused(pattern, rule):
    with pytest.raises(ConstraintError, match=rule):
        full_match(pattern)


def test_readers_differ_beyond_ascii():
    def has(ranges, character):
        return any(first <= ord(character) <= last for first, last in ranges)

    assert has(python_set("d"), "\u0663") and not has(ecma_set("d"), "\u0663")
    assert has(python_set("w"), "é") and not has(ecma_set("w"), "é")
    assert has(ecma_set("s"), "\ufeff") and not has(python_set("s"), "\ufeff")
    assert has(python_set("."), "\u2028") and not has(ecma_set("."), "\u2028")


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_or_refused(pattern):
    try:
        dfa = full_match(pattern)
    except ConstraintError:
        return
    assert not dfa.is_empty
