import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.byte_expressions import automaton_of
from genai_jax.constraints.json_numbers import Bound, integers, numbers

EDGES = (0, 1, -1, 0.1, -0.1, 0.3, 1e23, -1e23, 2**53, 2**53 + 1, -(2**53) - 1, 10**25, 1e-7, 1.5)
EDGES += (
    1e308,
    -1e308,
    5e-324,
    -5e-324,
    1e-310,
    1.7976931348623157e308,
    10**400 - 1,
    123456789.125,
)


def within(value, lower, upper):
    """As validators compare."""
    above = lower is None or (value > lower.value if lower.excluded else value >= lower.value)
    below = upper is None or (value < upper.value if upper.excluded else value <= upper.value)
    return above and below


def sample(dfa, rng):
    """A text at random that is likely to be as long as it can."""
    state, text, found = 0, "", None
    while True:
        found = text if dfa.accepting[state] else found
        moves = dfa.moves[state]
        if not moves or (dfa.accepting[state] and rng.random() < 0.05):
            return found
        mask, state = moves[rng.integers(len(moves))]
        members = [byte for byte in range(256) if mask >> byte & 1]
        text += chr(members[rng.integers(len(members))])


BOUNDS = st.one_of(
    st.none(),
    st.builds(Bound, st.one_of(st.integers(-1500, 1500), st.floats(-99, 99)), st.booleans()),
    st.builds(Bound, st.sampled_from(EDGES), st.booleans()),
)


@given(BOUNDS, BOUNDS, st.integers(1, 7))
def test_integers_of_a_range(lower, upper, step):
    dfa = automaton_of(integers(lower, upper, step))
    near = {int(bound.value) + d for bound in (lower, upper) if bound for d in (-2, -1, 0, 1, 2)}
    for value in [*range(-30, 30), *range(-1500, 1500, 61), *near]:
        if abs(value) < 10**19 or (lower and upper):
            expected = within(value, lower, upper) and value % step == 0
            assert dfa.accepts(b"%d" % value) == expected, value
    for text in (b"", b"-", b"-0", b"00", b"01", b"-01", b"1.0", b"1e2", b"+1", b" 1"):
        assert not dfa.accepts(text)


@given(BOUNDS, BOUNDS, st.integers(0, 2**32))
@example(None, Bound(-1e308, False), 0)
@example(Bound(1e308, True), None, 0)
def test_numbers_of_a_range_stay_there_when_they_are_rounded(lower, upper, seed):
    """Whoever reads a text rounds it to float64, or to an integer if it has no point."""
    dfa = automaton_of(numbers(lower, upper))
    rng = np.random.default_rng(seed)
    for _ in range(0 if dfa.is_empty else 10):
        text = sample(dfa, rng)
        value = json.loads(text)
        assert math.isfinite(value) and within(value, lower, upper), text


@given(BOUNDS, BOUNDS, st.lists(st.floats(-150, 150), max_size=20))
def test_numbers_of_a_range_are_all_there(lower, upper, values):
    """Shortest decimals of float64, of at most 19 digits behind the point."""
    if lower is None and upper is None:
        return
    dfa = automaton_of(numbers(lower, upper))
    ends = [b.value for b in (lower, upper) if b and 1e-300 < abs(b.value) < 1e15]
    for value in [*values, *ends, *(math.nextafter(x, 1e9) for x in ends), *range(-5, 5)]:
        text = format(Decimal(repr(value)), "f")
        if len(text.partition(".")[2]) <= 19 and not (value == 0 and text.startswith("-")):
            assert dfa.accepts(text.encode()) == within(value, lower, upper), text


@pytest.mark.parametrize(
    ("bounds", "accepted", "refused"),
    [
        ((None, None), ["0", "-0", "-0.0", "12.50", "1e5", "1E+05", "-3.1e-7"], ["01", ".5", "1."]),
        (
            (None, None),
            ["9" * 19, "0." + "1" * 19],
            ["9" * 20, "0." + "1" * 20, "1e100", "e5", "-"],
        ),
        ((Bound(0, True), None), ["0.1", "1", "0.0000000000000000001"], ["0", "0.0", "-1", "1e5"]),
        ((Bound(0, False), None), ["0", "0.00", "7"], ["-0", "-0.1"]),
        ((Bound(0.1, False), Bound(0.1, False)), ["0.1", "0.10", "0.100"], ["0.11", "0.09"]),
        # 0.1 and so little that float64 does not see it.
        ((Bound(0.1, True), None), ["0.10000000000000002"], ["0.1", "0.100000000000000005"]),
        ((None, Bound(5, True)), ["4.9", "-5"], ["5", "5.0", "4.9999999999999999"]),
        # 2⁵³ + 1 is no float64: what is read as 2⁵³ is below it.
        ((Bound(2**53 + 1, False), None), ["9007199254740994.0"], ["9007199254740993.0"]),
        # 1e23 is the float64 99999999999999991611392.
        ((Bound(1e23, False), None), ["99999999999999991611392"], ["99999999999999991611391"]),
        ((Bound(5, False), Bound(5, False)), ["5", "5.0", "5.000"], ["4", "5.1", "6"]),
        (
            (Bound(-2.5, False), Bound(-1.25, True)),
            ["-2.5", "-1.26", "-2"],
            ["-1.25", "-2.51", "2"],
        ),
    ],
)
def test_known_answers(bounds, accepted, refused):
    dfa = automaton_of(numbers(*bounds))
    assert [text for text in accepted if not dfa.accepts(text.encode())] == []
    assert [text for text in refused if dfa.accepts(text.encode())] == []


@pytest.mark.parametrize(
    "bounds",
    [
        (Bound(1, True), Bound(1, False)),
        (Bound(2, False), Bound(1, False)),
        (Bound(1.7976931348623157e308, True), None),
        (Bound(10**400 - 1, False), None),
    ],
)
def test_ranges_without_numbers(bounds):
    assert automaton_of(numbers(*bounds)).is_empty


def test_integers_between_integers():
    assert automaton_of(integers(Bound(1, True), Bound(2, True))).is_empty
    assert automaton_of(integers(Bound(0.2, False), Bound(0.8, False))).is_empty
    assert automaton_of(integers(Bound(-0.5, False), Bound(0.5, False))).accepts(b"0")


def test_large_bounds_are_small_automata():
    """Linear in the digits: a bound of 309 digits has no more than a few states for each."""
    for made in (numbers, integers):
        dfa = automaton_of(made(Bound(-1e308, False), Bound(1e308, False)))
        assert 300 < len(dfa.accepting) < 1500


def test_steps_that_would_be_too_large_are_refused():
    with pytest.raises(ConstraintError, match="32,000 states"):
        integers(None, None, 99_991)
