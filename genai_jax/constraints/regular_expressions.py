r"""Regular expressions as people write them, of a subset that is the same to all who read them.

Characters; `.` (anything but a newline); classes `[a-z_]`, `[^a-z]`; `\d \w \s \D \W \S`; escapes
`\n \t \r \f \v \0 \xHH \uHHHH \u{H...}` and of punctuation; groups `( )` and `(?: )`; `|`; `* + ?
{m} {m,} {m,n}`, also lazy, which changes no language; `^` and `$` where the expression, or one of
its outermost alternatives, begins and ends. Everything is about characters, not bytes. What is not
in the subset is refused by name: lookaround, backreferences, word boundaries, flags, named groups,
possessive repetition, Unicode's properties.
"""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from genai_jax.constraints.automata import ConstraintError, Dfa
from genai_jax.constraints.byte_expressions import (
    Expression,
    automaton_of,
    choice,
    repeat,
    sequence,
)
from genai_jax.constraints.code_points import (
    ALL,
    Ranges,
    characters,
    complement,
    intersection,
    union,
    utf8,
)

Sets = Callable[[str], Ranges]
"""From `.` `d` `w` `s` to the characters that they stand for."""

_MOST_CHARACTERS = 10_000
_MOST_NESTING = 40
_CONTROL_ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11}
_PUNCTUATION = frozenset("^$\\.*+?()[]{}|/-!\"#%&',:;<=>@_`~ ")
_QUANTIFIER = re.compile(r"[*+?]|\{([0-9]+)(,([0-9]*))?\}")
_SPECIAL_GROUPS = {
    "?=": "a lookahead",
    "?!": "a lookahead",
    "?<=": "a lookbehind",
    "?<!": "a lookbehind",
    "?P<": "a named group",
    "?<": "a named group",
    "?P=": "a backreference",
    "?>": "an atomic group",
    "?(": "a condition",
    "?#": "a comment",
}
_ESCAPES_REFUSED = {
    **dict.fromkeys("bB", "a word boundary"),
    **dict.fromkeys("123456789k", "a backreference"),
    **dict.fromkeys("pP", "a class of Unicode's properties"),
    **dict.fromkeys("AZzG", "an anchor other than ^ and $"),
}

_ASCII = {
    ".": complement(characters("\n")),
    "d": union([(ord("0"), ord("9"))]),
    "w": union([(ord(a), ord(b)) for a, b in ("09", "AZ", "__", "az")]),
    "s": characters("\t\n\v\f\r "),
}
_SPACES = "\t\n\v\f\r \xa0\u1680\u202f\u205f\u3000\ufeff\u2028\u2029"
_ECMA = {
    **_ASCII,
    ".": complement(characters("\n\r\u2028\u2029")),
    "s": union([*characters(_SPACES), (0x2000, 0x200A)]),
}


def ascii_set(name: str) -> Ranges:
    """Give what `.`, `d`, `w` or `s` stands for to Python with the flag ASCII."""
    return _ASCII[name]


def ecma_set(name: str) -> Ranges:
    """Give what it stands for in ECMA 262, sections 22.2.2.7 and 22.2.2.9."""
    return _ECMA[name]


@functools.cache
def python_set(name: str) -> Ranges:
    """Give what it stands for to Python, by asking."""
    every = "".join(map(chr, range(0x110000)))
    hits = re.finditer(".+" if name == "." else rf"\{name}+", every)
    return union([(hit.start(), hit.end() - 1) for hit in hits])


class Alternative(NamedTuple):
    """One of the outermost alternatives.

    Attributes:
        begins: Whether it begins with `^`.
        body: What is between.
        ends: Whether it ends with `$`.
    """

    begins: bool
    body: Expression
    ends: bool


class Dialect(NamedTuple):
    """How an expression is to be read.

    Attributes:
        sets: What `.` and the letters stand for, to each of those who may read it.
        agreed: Whether a character must be in a set for all readers; else for one of them.
        written: How one character of a set is written.
    """

    sets: tuple[Sets, ...]
    agreed: bool
    written: Callable[[Ranges], Expression]


def read_pattern(pattern: str, dialect: Dialect) -> list[Alternative]:
    """Read a regular expression.

    Raises:
        ConstraintError: If it is none, or not of the subset; says what and where.
    """
    return _Parser(pattern, dialect).alternatives()


@functools.lru_cache(maxsize=16)
def full_match(pattern: str) -> Dfa:
    """Build the automaton of the texts, in UTF-8, that an expression matches from end to end.

    Raises:
        ConstraintError: As `read_pattern`; or if the automaton would be too large, or is empty.
    """
    dfa = automaton_of(
        choice(x.body for x in read_pattern(pattern, Dialect((ascii_set,), True, utf8)))
    )
    if dfa.is_empty:
        raise ConstraintError(
            f"a regular expression must match some text; {pattern[:80]!r} matches none. Look for "
            "a class that excludes every character."
        )
    return dfa


class _Parser:
    """Recursive descent, one character ahead."""

    def __init__(self, pattern: str, dialect: Dialect) -> None:
        self._pattern = pattern
        self._dialect = dialect
        self._at = 0
        self._depth = 0
        if len(pattern) > _MOST_CHARACTERS:
            raise ConstraintError(
                f"a regular expression must have at most {_MOST_CHARACTERS:,} characters; got "
                f"{len(pattern):,}."
            )
        for place, character in enumerate(pattern):
            if "\ud800" <= character <= "\udfff":
                self._refuse("half of a surrogate pair", place, "Write the character itself.")

    def alternatives(self) -> list[Alternative]:
        found = [self._outermost()]
        while self._take("|"):
            found.append(self._outermost())
        if self._at < len(self._pattern):
            self._refuse("a ) without its (", self._at, r"Write \) for the character.")
        return found

    def _outermost(self) -> Alternative:
        begins = self._take("^")
        body = self._sequence()
        return Alternative(begins, body, self._take("$"))

    def _sequence(self) -> Expression:
        parts = []
        while (c := self._peek()) and c not in "|)":
            if c == "$" and not self._depth and self._peek(1) in ("", "|"):
                break
            if c in "^$":
                self._refuse(
                    f"a {c} inside",
                    self._at,
                    f"Put it at the outer ends; write \\{c} for the character.",
                )
            parts.append(self._quantified(self._atom()))
        return sequence(*parts)

    def _atom(self) -> Expression:
        at, c = self._at, self._next()
        if c == "(":
            return self._group(at)
        if c == "[":
            return self._class(at)
        if c == ".":
            return self._one([c], False)
        if c == "\\":
            return self._one([self._escape(at)], False)
        if c in "*+?{":
            self._refuse(f"a {c} with nothing to repeat", at, f"Write \\{c} for the character.")
        return self._one([(ord(c), ord(c))], False)

    def _group(self, at: int) -> Expression:
        if self._peek() == "?" and not self._take("?:"):
            rest = self._pattern[self._at :]
            names = [n for begin, n in _SPECIAL_GROUPS.items() if rest.startswith(begin)]
            fix = "Use groups ( ) and (?: ) alone."
            self._refuse(names[0] if names else "a flag", at, fix)
        self._depth += 1
        if self._depth > _MOST_NESTING:
            self._refuse(f"more than {_MOST_NESTING} groups in one another", at, "Use fewer.")
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        if not self._take(")"):
            self._refuse("a ( without its )", at, r"Write \( for the character.")
        self._depth -= 1
        return choice(parts)

    def _quantified(self, body: Expression) -> Expression:
        at = self._at
        match = _QUANTIFIER.match(self._pattern, at)
        if not match:
            if self._peek() == "{":
                self._refuse("a { that is no {m}, {m,} or {m,n}", at, r"Write \{ for itself.")
            return body
        self._at = match.end()
        sign, (first, comma, last) = match[0], match.groups()
        if max(len(first or ""), len(last or "")) > 9:
            self._refuse("a repetition of more than nine digits", at, "Repeat less often.")
        if first is None:
            least, most = int(sign == "+"), 1 if sign == "?" else None
        else:
            least = int(first)
            most = least if comma is None else int(last) if last else None
        if most is not None and most < least:
            self._refuse("a repetition whose least exceeds its most", at, "Exchange them.")
        if not self._take("?") and self._peek() == "+":
            self._refuse("a possessive repetition", at, "Leave its + out.")
        if _QUANTIFIER.match(self._pattern, self._at):
            self._refuse("a repetition of a repetition", self._at, "Put a group (?: ) around it.")
        return repeat(body, least, most)

    def _class(self, at: int) -> Expression:
        negated = self._take("^")
        if self._peek() == "]":
            self._refuse("a class without members", at, r"Write \] for the character.")
        items: list[str | tuple[int, int]] = []
        while not self._take("]"):
            if not self._peek():
                self._refuse("a [ without its ]", at, r"Write \[ for the character.")
            here = self._at
            first = self._member()
            if self._peek() == "-" and self._peek(1) not in ("", "]"):
                self._next()
                last = self._member()
                if isinstance(first, str) or isinstance(last, str):
                    self._refuse("a range to or from a class", here, r"Write \- for the character.")
                if last[0] < first[0]:
                    self._refuse("a range that ends before it begins", here, "Exchange its ends.")
                first = (first[0], last[0])
            items.append(first)
        return self._one(items, negated)

    def _member(self) -> str | tuple[int, int]:
        at, c = self._at, self._next()
        if c != "\\":
            return (ord(c), ord(c))
        if self._take("b"):  # in a class, a backspace
            return (8, 8)
        return self._escape(at)

    def _escape(self, at: int) -> str | tuple[int, int]:
        """Read what follows a backslash: the letter of a set, or a character."""
        c = self._next()
        if c and c in "dwsDWS":
            return c
        if c in _ESCAPES_REFUSED:
            self._refuse(_ESCAPES_REFUSED[c], at, "Spell out the characters.")
        point = -1
        if c in _CONTROL_ESCAPES:
            point = _CONTROL_ESCAPES[c]
        elif c in _PUNCTUATION:
            point = ord(c)
        elif c == "0" and not self._peek().isdigit():
            point = 0
        elif c in ("x", "u"):
            digits = r"\{([0-9a-fA-F]{1,6})\}|([0-9a-fA-F]{4})" if c == "u" else "([0-9a-fA-F]{2})"
            if match := re.compile(digits).match(self._pattern, self._at):
                self._at = match.end()
                point = int(match[1] or match[match.lastindex or 1], 16)
        if not 0 <= point <= 0x10FFFF or 0xD800 <= point <= 0xDFFF:
            fix = "Write the character itself, or its number as \\u{...}."
            self._refuse(f"the escape {self._pattern[at : self._at]!r}", at, fix)
        return (point, point)

    def _one(self, items: list[str | tuple[int, int]], negated: bool) -> Expression:
        """Match one character of a class."""
        agreed: Ranges | None = None
        for sets in self._dialect.sets:
            ranges: list[tuple[int, int]] = []
            for item in items:
                if isinstance(item, tuple):
                    ranges.append(item)
                else:
                    named = sets(item.lower())
                    ranges += complement(named) if item.isupper() else named
            found = complement(union(ranges)) if negated else union(ranges)
            if agreed is None:
                agreed = found
            elif self._dialect.agreed:
                agreed = intersection(agreed, found)
            else:
                agreed = union(agreed + found)
        return self._dialect.written(ALL if agreed is None else agreed)

    def _peek(self, ahead: int = 0) -> str:
        return self._pattern[self._at + ahead : self._at + ahead + 1]

    def _next(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1 : self._at]

    def _take(self, text: str) -> bool:
        taken = self._pattern.startswith(text, self._at)
        self._at += len(text) * taken
        return taken

    def _refuse(self, what: str, at: int, fix: str) -> NoReturn:
        raise ConstraintError(
            "a regular expression must be one, of the subset that is supported; got "
            f"{what} at position {at} of {self._pattern[:80]!r}. {fix}"
        )
