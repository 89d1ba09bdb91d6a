"""Sets of Unicode's characters, and the bytes that they are written with.

A set is a tuple of ranges, sorted and apart; surrogates, which are no characters, are in none.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from genai_jax.constraints.byte_expressions import (
    Expression,
    Symbol,
    automaton_of,
    byte_range,
    choice,
    language,
    literal,
    sequence,
)

Ranges = tuple[tuple[int, int], ...]

ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
"""Every character."""

_LAST = 0x10FFFF
# Where the length of UTF-8 changes (RFC 3629, section 3).
_LENGTHS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, _LAST))
_SHORT_ESCAPES = {ord(c): e for c, e in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)}
_ESCAPED: Ranges = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")))


def characters(text: str) -> Ranges:
    """Give the set of a text's characters."""
    return union([(ord(character),) * 2 for character in text])


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Put ranges together, in order, and without surrogates."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return _common(merged, ALL)


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """Give what is in both sets."""
    return _common(one, other)


def complement(ranges: Ranges) -> Ranges:
    """Give all other characters."""
    ends = [-1, *itertools.chain.from_iterable(ranges), _LAST + 1]
    gaps = zip(ends[::2], ends[1::2], strict=True)
    return union([(last + 1, first - 1) for last, first in gaps if last + 1 < first])


def _common(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> Ranges:
    """Walk two sorted lists of ranges side by side."""
    found = []
    i = j = 0
    while i < len(one) and j < len(other):
        first, last = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if first <= last:
            found.append((first, last))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def utf8(ranges: Ranges) -> Expression:
    """Match one character of a set, as UTF-8."""
    cut = [_common([r], (length,)) for length in _LENGTHS for r in ranges]
    parts = [
        sequence(*(byte_range(*pair) for pair in pairs))
        for first, last in itertools.chain.from_iterable(cut)
        for pairs in _byte_ranges(chr(first).encode(), chr(last).encode())
    ]
    return _small(choice(parts))


@functools.lru_cache(maxsize=1024)
def json_string(ranges: Ranges) -> Expression:
    r"""Match one character of a set, as it stands in a string of JSON.

    What must be escaped is, in one way: as two characters where it can be, else as \u00 and two
    lower-case digits (RFC 8259, section 7; what Python's `json.dumps` writes).
    """
    plain = utf8(_common(ranges, complement(_ESCAPED)))
    escaped = [
        literal(("\\" + _SHORT_ESCAPES.get(point, f"u{point:04x}")).encode())
        for first, last in _common(ranges, _ESCAPED)
        for point in range(first, last + 1)
    ]
    return _small(choice([plain, *escaped]))


def _small(expression: Expression) -> Expression:
    """Make an expression minimal: it may be repeated many times."""
    return expression if isinstance(expression, Symbol) else language(automaton_of(expression))


def _byte_ranges(first: bytes, last: bytes) -> Iterator[list[tuple[int, int]]]:
    """Cut the encodings between two, equally long, into products of ranges of bytes."""
    if len(first) == 1:
        yield [(first[0], last[0])]
        return
    lows, highs = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
    begin, end = first[0], last[0]
    if begin == end:
        pieces = [(begin, end, first[1:], last[1:])]
    else:
        pieces = []
        if first[1:] != lows:
            pieces.append((begin, begin, first[1:], highs))
            begin += 1
        if last[1:] != highs:
            pieces.append((end, end, lows, last[1:]))
            end -= 1
        pieces.append((begin, end, lows, highs))
    for head, tail, low, high in pieces:
        if head <= tail:
            yield from ([(head, tail), *rest] for rest in _byte_ranges(low, high))
