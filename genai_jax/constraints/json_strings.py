"""The strings of JSON, by length, pattern and format, as automata of what is between the quotes.

Every character is written in one way, `json.dumps(..., ensure_ascii=False)`'s, so that a language
of strings is one of texts, and lengths count characters.
"""

import functools
from collections.abc import Iterable

from genai_jax.constraints.automata import ConstraintError, Dfa, difference, explore, intersection
from genai_jax.constraints.byte_expressions import (
    Language,
    Symbol,
    automaton_of,
    choice,
    literal,
    optional,
    repeat,
    sequence,
)
from genai_jax.constraints.code_points import ALL, json_string
from genai_jax.constraints.json_formats import FORMATS
from genai_jax.constraints.regular_expressions import (
    Dialect,
    ascii_set,
    ecma_set,
    python_set,
    read_pattern,
)


@functools.lru_cache(maxsize=32)
def strings(
    least: int = 0,
    most: int | None = None,
    patterns: tuple[str, ...] = (),
    formats: tuple[str, ...] = (),
    *,
    wide: bool = False,
) -> Dfa:
    """Build the automaton of all strings of a length, that match all patterns and formats.

    Args:
        least: Fewest characters.
        most: Most characters; None for any number.
        patterns: Regular expressions that must match somewhere. Those who read them disagree on
            some characters (`.`, `d`, `w` and `s` of ECMA 262 and of Python): they are in no set.
        formats: Names of formats.
        wide: Whether they are, so that all strings are there that anybody holds to be right;
            formats, which are narrow, must not be given then.

    Raises:
        ConstraintError: If a pattern or format is not supported, or the automaton too large.
    """
    parts = [_matching(pattern, wide) for pattern in patterns] + [_formatted(f) for f in formats]
    dfa = functools.reduce(intersection, parts) if parts else _any()
    return dfa if least == 0 and most is None else _of_length(dfa, least, most)


def strings_but(excluded: Iterable[str]) -> Dfa:
    """Build the automaton of all strings but some."""
    return difference(_any(), automaton_of(choice(literal(inside(x)) for x in excluded)))


def inside(text: str) -> bytes:
    """Write what is between the quotes of a string."""
    return b"".join(_character(ord(c)) for c in text)


@functools.lru_cache(maxsize=4096)
def _character(point: int) -> bytes:
    """Spell the only text of a character."""
    expression = json_string(((point, point),))
    if isinstance(expression, Symbol):
        return bytes([point])
    assert isinstance(expression, Language)
    spelt, state, moves = b"", 0, expression.dfa.moves
    while moves[state]:
        [(mask, state)] = moves[state]
        spelt += bytes([mask.bit_length() - 1])
    return spelt


@functools.cache
def _any() -> Dfa:
    return automaton_of(repeat(json_string(ALL), 0, None))


@functools.lru_cache(maxsize=32)
def _matching(pattern: str, wide: bool) -> Dfa:
    """Build the automaton of strings in which a pattern matches somewhere."""
    dialect = Dialect((ecma_set, python_set), not wide, json_string)
    anything = repeat(json_string(ALL), 0, None)
    # Python's `$` is also before a last newline.
    end = optional(literal(inside("\n"))) if wide else literal(b"")
    return automaton_of(
        choice(
            sequence(
                literal(b"") if found.begins else anything,
                found.body,
                end if found.ends else anything,
            )
            for found in read_pattern(pattern, dialect)
        )
    )


@functools.cache
def _formatted(name: str) -> Dfa:
    """Build the automaton of a format's strings."""
    if name not in FORMATS:
        raise ConstraintError(
            f"`format` must be one of {', '.join(sorted(FORMATS))}; got {name!r:.80}. Say it by a "
            "`pattern`, or leave it out."
        )
    pattern, most = FORMATS[name]
    dialect = Dialect((ascii_set,), True, json_string)
    dfa = automaton_of(choice(found.body for found in read_pattern(pattern, dialect)))
    return dfa if most is None else _of_length(dfa, 0, most)


def _of_length(dfa: Dfa, least: int, most: int | None) -> Dfa:
    """Keep the strings of some lengths: count characters beside the automaton."""
    one = json_string(ALL)
    assert isinstance(one, Language)
    character = one.dfa
    enough = least if most is None else most  # what is beyond need not be counted

    def moves(state: tuple[int, int, int]) -> Iterable[tuple[int, tuple[int, int, int]]]:
        at, part, count = state
        if count == most:
            return
        for mask, target in dfa.moves[at]:
            for other, onward in character.moves[part]:
                if mask & other and not character.accepting[onward]:
                    yield mask & other, (target, onward, count)
                elif mask & other:
                    yield mask & other, (target, 0, min(count + 1, enough))

    def accepts(state: tuple[int, int, int]) -> bool:
        at, part, count = state
        return part == 0 and count >= least and bool(dfa.accepting[at])

    return explore((0, 0, 0), moves, accepts)
