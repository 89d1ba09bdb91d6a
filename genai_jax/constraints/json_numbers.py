"""The numbers of JSON between bounds, as automata of their decimal texts.

A text is compared with a bound digit by digit. What reads it may round it to the nearest float64,
so a bound is moved to where no rounding leaves the range.
"""

import functools
import math
import sys
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from genai_jax.constraints.automata import Dfa, explore
from genai_jax.constraints.byte_expressions import (
    NEVER,
    Expression,
    automaton_of,
    byte_range,
    choice,
    language,
    literal,
    optional,
    repeat,
    sequence,
)

MOST_DIGITS = 19
"""Digits before and behind the point, unless a bound has more: they hold 64-bit integers."""

MOST_BOUND_DIGITS = 400
"""Digits of a bound before the point: more than a float64's."""

_EXACT = 1 << 53  # up to here every integer is a float64
_TINY = 1e-300
_HUGE = 1e300
_DIGITS = [(1 << (ord("0") + d), d) for d in range(10)]
_POINT = 1 << ord(".")


class Bound(NamedTuple):
    """One end of a range.

    Attributes:
        value: A number that is finite.
        excluded: Whether the number itself is outside.
    """

    value: int | float
    excluded: bool


class _Side(NamedTuple):
    """A bound of what is behind the sign: digits, without zeros at the ends.

    Attributes:
        before: Before the point; "0" if there are none.
        behind: Behind it.
        excluded: As of `Bound`.
    """

    before: str
    behind: str
    excluded: bool


class _State(NamedTuple):
    """What has been read of a number without its sign.

    Attributes:
        place: Nothing, a first 0, other digits before the point, the point, digits behind it.
        digits: Digits there.
        low: How it compares with the lower bound so far: -1, 0 or 1.
        high: With the upper one.
        remainder: Of the division by `step`.
    """

    place: str
    digits: int
    low: int
    high: int
    remainder: int


@functools.lru_cache(maxsize=64)
def integers(lower: Bound | None, upper: Bound | None, step: int = 1) -> Expression:
    """Match the integers of a range that are multiples of a step; without an exponent.

    A side without a bound ends where there are `MOST_DIGITS` digits, or one more than the other
    bound has.
    """
    least = None if lower is None else math.floor(lower.value) + 1
    if lower is not None and not lower.excluded:
        least = math.ceil(lower.value)
    most = None if upper is None else math.ceil(upper.value) - 1
    if upper is not None and not upper.excluded:
        most = math.floor(upper.value)
    ends = (None if x is None else Decimal(x) for x in (least, most))
    low, high = ((None if x is None else (x, False)) for x in ends)
    return _signed(low, high, 0, step)


@functools.lru_cache(maxsize=64)
def numbers(lower: Bound | None, upper: Bound | None) -> Expression:
    """Match the numbers of a range.

    Without bounds there may be an exponent, of two digits at most.
    """
    if lower is None and upper is None:
        digit, nonzero = byte_range(ord("0"), ord("9")), byte_range(ord("1"), ord("9"))
        whole = choice([literal(b"0"), sequence(nonzero, repeat(digit, 0, MOST_DIGITS - 1))])
        behind = sequence(literal(b"."), repeat(digit, 1, MOST_DIGITS))
        sign = optional(choice([literal(b"+"), literal(b"-")]))
        e = choice([literal(b"e"), literal(b"E")])
        exponent = sequence(e, sign, repeat(digit, 1, 2))
        written = sequence(optional(literal(b"-")), whole, optional(behind), optional(exponent))
        return language(automaton_of(written))
    # One more digit than such a bound has would be more than a float64 holds.
    if upper is None and lower is not None and lower.value > _HUGE:
        upper = Bound(sys.float_info.max, False)
    if lower is None and upper is not None and upper.value < -_HUGE:
        lower = Bound(-sys.float_info.max, False)
    # So small a number may be rounded to nothing.
    tiny = any(bound is not None and 0 < abs(bound.value) < _TINY for bound in (lower, upper))
    low = None if lower is None else _inside(lower, tiny)
    high = None
    if upper is not None:
        value, excluded = _inside(Bound(-upper.value, upper.excluded), tiny)
        high = (value.copy_negate(), excluded)
    return _signed(low, high, MOST_DIGITS, 1)


def _inside(lower: Bound, tiny: bool) -> tuple[Decimal, bool]:
    """Find a lower bound for texts, such that they are within when rounded to float64, too.

    Rounding keeps the order. So an inclusive bound that is a float64 stays; any other is moved to
    the next float64 inside. Where all float64 are integers, texts are compared exactly too, since
    a text without a point may be read as an integer.
    """
    value = lower.value
    if lower.excluded and value == 0 and not tiny:
        return Decimal(0), True
    near = _nearest(value)
    while near < value or (lower.excluded and near <= value):
        near = math.nextafter(near, math.inf)
    if math.isinf(near):
        return Decimal("Infinity"), True
    if isinstance(value, int) and near == value:
        return Decimal(value), False
    return (Decimal(near) if abs(near) >= _EXACT else Decimal(repr(near))), False


def _nearest(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_End = tuple[Decimal, bool]


def _signed(lower: _End | None, upper: _End | None, behind: int, step: int) -> Expression:
    """Match the numbers between two ends; zero has no sign."""
    sizes = [end[0] for end in (lower, upper) if end is not None]
    if any(not size.is_finite() for size in sizes):
        return NEVER
    sides = [_side((size, False)) for size in sizes]
    before = max([MOST_DIGITS, *(len(side.before) + (len(sizes) < 2) for side in sides)])
    if behind:
        behind = max([behind, *(len(side.behind) for side in sides)])
    zero = (Decimal(0), False)
    parts = []
    if upper is None or upper[0] >= 0:
        from_zero = zero if lower is None or lower[0] < 0 else lower
        parts.append(language(_magnitudes(from_zero, upper, before, behind, step)))
    if lower is None or lower[0] < 0:
        below = zero if upper is None or upper[0] >= 0 else upper
        low = (below[0].copy_abs(), below[1] or below[0] == 0)
        high = None if lower is None else (lower[0].copy_abs(), lower[1])
        negative = language(_magnitudes(low, high, before, behind, step))
        parts.append(sequence(literal(b"-"), negative))
    return choice(parts)


def _side(end: _End) -> _Side:
    text = format(end[0].copy_abs(), "f")
    before, _, behind = text.partition(".")
    return _Side(before.lstrip("0") or "0", behind.rstrip("0"), end[1])


@functools.lru_cache(maxsize=64)
def _magnitudes(lower: _End, upper: _End | None, before: int, behind: int, step: int) -> Dfa:
    """Build the automaton of the texts without sign between two ends.

    Args:
        lower: The lower end, not negative.
        upper: The upper one; None for none.
        before: Most digits before the point.
        behind: Most digits behind it; 0 for integers.
        step: What integers are multiples of.
    """
    low = _side(lower)
    high = None if upper is None else _side(upper)

    def moves(state: _State) -> Iterable[tuple[int, _State]]:
        place, count = state.place, state.digits
        if behind and place in ("zero", "before"):
            yield (
                _POINT,
                _State(
                    "point",
                    0,
                    _ended(state.low, count, low),
                    _ended(state.high, count, high),
                    state.remainder,
                ),
            )
        if place == "zero" or count == (before if place in ("none", "before") else behind):
            return
        for mask, digit in _DIGITS:
            if place in ("none", "before"):
                after = "zero" if place == "none" and digit == 0 else "before"
                below = _compared(state.low, digit, count, low.before)
                above = 0 if high is None else _compared(state.high, digit, count, high.before)
                if high is not None and _surely_above(above, count + 1, len(high.before)):
                    continue
                remainder = (10 * state.remainder + digit) % step
            else:
                after, remainder = "behind", state.remainder
                below = _compared_behind(state.low, digit, count, low.behind)
                above = (
                    0 if high is None else _compared_behind(state.high, digit, count, high.behind)
                )
            yield mask, _State(after, count + 1, below, above, remainder)

    def accepts(state: _State) -> bool:
        if state.place in ("none", "point") or state.remainder:
            return False
        below, above = (
            _final(c, state, side) for c, side in ((state.low, low), (state.high, high))
        )
        return (below > 0 or (below == 0 and not low.excluded)) and (
            high is None or above < 0 or (above == 0 and not high.excluded)
        )

    return explore(_State("none", 0, 0, 0, 0), moves, accepts)


def _compared(so_far: int, digit: int, count: int, digits: str) -> int:
    """Compare one more digit before the point, as if both had equally many."""
    if so_far or count >= len(digits):
        return so_far
    return (digit > int(digits[count])) - (digit < int(digits[count]))


def _compared_behind(so_far: int, digit: int, count: int, digits: str) -> int:
    """Compare one more digit behind the point; a bound goes on with zeros."""
    bound = int(digits[count]) if count < len(digits) else 0
    return so_far or (digit > bound) - (digit < bound)


def _surely_above(compared: int, count: int, digits: int) -> bool:
    return count > digits or (count == digits and compared > 0)


def _ended(so_far: int, count: int, side: _Side | None) -> int:
    """Compare the integers before the point, once all their digits are there."""
    if side is None:
        return 0
    return (count > len(side.before)) - (count < len(side.before)) or so_far


def _final(compared: int, state: _State, side: _Side | None) -> int:
    """Compare a whole number with a bound."""
    if side is None:
        return 0
    if state.place in ("zero", "before"):
        compared, count = _ended(compared, state.digits, side), 0
    else:
        count = state.digits
    return compared or -(count < len(side.behind))
