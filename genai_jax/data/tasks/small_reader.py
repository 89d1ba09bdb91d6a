"""Reads words and expressions of the small language, whose syntax `small_syntax` describes."""

import keyword
import re
from typing import NamedTuple

from genai_jax.data.tasks.small_syntax import (
    Binary,
    Call,
    Choice,
    Comparison,
    Constant,
    Display,
    Expression,
    Item,
    Logical,
    Name,
    ProgramError,
    Slice,
    Unary,
)

MOST_CHARACTERS = 1000
MOST_TOKENS = 300
_MOST_NESTING = 10
_MOST_DIGITS = 18

FUNCTIONS = ("abs", "len", "list", "max", "min", "range", "sorted", "sum")


class Token(NamedTuple):
    """A word of a program: a number, a name, a sign; or the end of a line and its indentation.

    Attributes:
        kind: number, name, sign, line (begins one; its text is the indentation) or end.
        text: As it is written.
    """

    kind: str
    text: str


_WORD = re.compile(
    r"(?P<number>[0-9]+(?![0-9A-Za-z_.]))|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|//=|//|==|!=|<=|>=|\+=|-=|\*=|%=|[-+*%()\[\],:;<>=])"
)


def tokenize(text: str) -> list[Token]:
    """Cut a text into tokens; lines of white space and comments are dropped.

    Raises:
        ProgramError: If it has characters or numbers that the language lacks, or too many.
    """
    if len(text) > MOST_CHARACTERS:
        raise ProgramError(f"a program has at most {MOST_CHARACTERS} characters; got {len(text)}")
    tokens: list[Token] = []
    for line in text.split("\n"):
        code = line.split("#", 1)[0].rstrip(" ")
        indentation = len(code) - len(code.lstrip(" "))
        if indentation == len(code):
            continue
        tokens.append(Token("line", code[:indentation]))
        at = indentation
        while at < len(code):
            if code[at] == " ":
                at += 1
                continue
            found = _WORD.match(code, at)
            if found is None:
                raise ProgramError(f"the language has no {code[at : at + 8]!r}")
            kind, word = str(found.lastgroup), found[0]
            if kind == "number" and (len(word) > _MOST_DIGITS or word.lstrip("0") != word != "0"):
                raise ProgramError(f"a number has 1 to {_MOST_DIGITS} digits, no 0 before; {word}")
            tokens.append(Token(kind, word))
            at = found.end()
    if len(tokens) > MOST_TOKENS:
        raise ProgramError(f"a program has at most {MOST_TOKENS} tokens; got {len(tokens)}")
    return [*tokens, Token("end", "")]


def is_variable(name: str) -> bool:
    """Whether a variable may have this name: no keyword, no built-in function, no `__name`."""
    return not (keyword.iskeyword(name) or name in FUNCTIONS or name.startswith("__"))


class Reader:
    """Reads expressions off tokens, by recursive descent in the order of Python's precedence."""

    def __init__(self, tokens: list[Token]) -> None:
        """Begin at the first token."""
        self._tokens, self._at, self._nesting = tokens, 0, 0

    @property
    def next(self) -> Token:
        """The token to be read next."""
        return self._tokens[self._at]

    def take(self) -> Token:
        """Read a token."""
        token = self.next
        self._at += token.kind != "end"
        return token

    def took(self, *texts: str) -> str:
        """Read the next sign or word if it is one of these; else give an empty text."""
        token = self.next
        if token.kind in ("sign", "name") and token.text in texts:
            return self.take().text
        return ""

    def after_line(self, *words: str) -> str:
        """Read the beginning of a line and its first word, if it is one of these."""
        following = self._tokens[self._at + 1]
        if following.kind != "name" or following.text not in words:
            return ""
        self._at += 2
        return following.text

    def need(self, text: str) -> None:
        """Read this sign or word.

        Raises:
            ProgramError: If something else comes.
        """
        if not self.took(text):
            raise ProgramError(f"expected {text!r}, found {self.next.text or self.next.kind!r}")

    def variable(self) -> str:
        """Read the name of a variable.

        Raises:
            ProgramError: If it is not one, or cannot be.
        """
        token = self.take()
        if token.kind != "name" or not is_variable(token.text):
            raise ProgramError(f"expected the name of a variable, found {token.text!r}")
        return token.text

    def expression(self) -> Expression:
        """Read an expression.

        Raises:
            ProgramError: If there is none, or it is nested too deep.
        """
        self._nesting += 1
        if self._nesting > _MOST_NESTING:
            raise ProgramError(f"expressions nest at most {_MOST_NESTING} deep")
        value = self._logical("or")
        if self.took("if"):
            test = self._logical("or")
            self.need("else")
            value = Choice(value, test, self.expression())
        self._nesting -= 1
        return value

    def _logical(self, operator: str) -> Expression:
        below = self._inversion if operator == "and" else lambda: self._logical("and")
        value = below()
        while self.took(operator):
            value = Logical(operator, value, below())
        return value

    def _inversion(self) -> Expression:
        inversions = 0
        while self.took("not"):
            inversions += 1
        value = self._comparison()
        for _ in range(inversions):
            value = Unary("not", value)
        return value

    def _comparison(self) -> Expression:
        first = self._sum()
        operators, others = [], []
        while operator := self.took("<", ">", "<=", ">=", "==", "!=", "in", "not"):
            if operator == "not":
                self.need("in")
                operator = "not in"
            operators.append(operator)
            others.append(self._sum())
        return Comparison(first, tuple(operators), tuple(others)) if operators else first

    def _sum(self) -> Expression:
        value = self._product()
        while operator := self.took("+", "-"):
            value = Binary(operator, value, self._product())
        return value

    def _product(self) -> Expression:
        value = self._signed()
        while operator := self.took("*", "//", "%"):
            value = Binary(operator, value, self._signed())
        return value

    def _signed(self) -> Expression:
        signs = []
        while sign := self.took("-", "+"):
            signs.append(sign)
        value = self._power()
        for sign in reversed(signs):
            value = Unary(sign, value)
        return value

    def _power(self) -> Expression:
        base = self._primary()
        if not self.took("**"):
            return base
        self._nesting += 1
        if self._nesting > _MOST_NESTING:
            raise ProgramError(f"expressions nest at most {_MOST_NESTING} deep")
        exponent = self._signed()  # binds tighter than a sign before it, not than one after
        self._nesting -= 1
        return Binary("**", base, exponent)

    def _primary(self) -> Expression:
        value = self._atom()
        while self.took("["):
            value = self._subscript(value)
        return value

    def _subscript(self, of: Expression) -> Expression:
        bounds: list[Expression | None] = [None]
        while not self.took("]"):
            if self.took(":"):
                bounds.append(None)
            elif bounds[-1] is None:
                bounds[-1] = self.expression()
            else:
                raise ProgramError(f"expected ']', found {self.next.text!r}")
            if len(bounds) > 3:
                raise ProgramError("a slice has at most three parts")
        if len(bounds) == 1:
            if bounds[0] is None:
                raise ProgramError("expected an index, found ']'")
            return Item(of, bounds[0])
        return Slice(of, tuple(bounds))

    def _atom(self) -> Expression:
        token = self.take()
        if token.kind == "number":
            return Constant(int(token.text))
        if token.text in ("True", "False"):
            return Constant(token.text == "True")
        if token.text == "(":
            value = self.expression()
            self.need(")")
            return value
        if token.text == "[":
            return Display(self._arguments("]"))
        if token.kind == "name" and token.text in FUNCTIONS:
            self.need("(")
            return Call(token.text, self._arguments(")"))
        if token.kind == "name" and is_variable(token.text):
            return Name(token.text)
        raise ProgramError(f"expected a value, found {token.text or token.kind!r}")

    def _arguments(self, end: str) -> tuple[Expression, ...]:
        values: list[Expression] = []
        while not self.took(end):
            values.append(self.expression())
            if not self.took(","):
                self.need(end)
                break
        return tuple(values)
