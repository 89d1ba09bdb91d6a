"""Reads a program of the small language: the statements around its expressions."""

from genai_jax.data.tasks.small_reader import Reader, tokenize
from genai_jax.data.tasks.small_syntax import (
    Assign,
    For,
    If,
    Pass,
    Program,
    ProgramError,
    Return,
    Statement,
    While,
)

_MOST_BLOCKS = 8
_AUGMENTED = ("+=", "-=", "*=", "//=", "%=")


def parse_program(text: str) -> Program:
    """Read the one function that a text defines.

    Args:
        text: Any text.

    Raises:
        ProgramError: If it is not a program of the language, and nothing but a program.
    """
    try:
        return _Parser(text).program()
    except RecursionError:  # of a caller that is deep already
        raise ProgramError("it is nested too deep") from None


class _Parser:
    def __init__(self, text: str) -> None:
        self._read = Reader(tokenize(text))
        self._name = ""
        self._blocks = 0

    def program(self) -> Program:
        read = self._read
        indentation = read.take()
        if indentation.kind != "line" or indentation.text:
            raise ProgramError("a program begins with def, not indented")
        read.need("def")
        self._name = read.variable()
        read.need("(")
        parameters: list[str] = []
        while not read.took(")"):
            parameters.append(self._variable())
            if not read.took(","):
                read.need(")")
                break
        if len(set(parameters)) < len(parameters):
            raise ProgramError("parameters have different names")
        body = self._block(0)
        if read.next.kind != "end":
            raise ProgramError(f"expected the end, found {read.next.text or read.next.kind!r}")
        return Program(self._name, tuple(parameters), body)

    def _variable(self) -> str:
        name = self._read.variable()
        if name == self._name:
            raise ProgramError(f"the function is called {name!r}: no variable is")
        return name

    def _block(self, outside: int) -> tuple[Statement, ...]:
        """Read what comes after a head: the rest of its line, or lines indented deeper."""
        read = self._read
        read.need(":")
        if read.next.kind != "line":
            return self._simple_line()
        self._blocks += 1
        if self._blocks > _MOST_BLOCKS:
            raise ProgramError(f"blocks nest at most {_MOST_BLOCKS} deep")
        inside = len(read.next.text)
        if inside <= outside:
            raise ProgramError("expected an indented block")
        body: list[Statement] = []
        while read.next.kind == "line" and len(read.next.text) >= inside:
            if len(read.take().text) > inside:
                raise ProgramError("a line is indented deeper than its block")
            body.extend(self._line(inside))
        if read.next.kind == "line" and len(read.next.text) > outside:
            raise ProgramError("a line is indented like no block around it")
        self._blocks -= 1
        return tuple(body)

    def _simple_line(self) -> tuple[Statement, ...]:
        """Read statements parted by semicolons, up to the end of the line."""
        read = self._read
        body = [self._simple()]
        while read.took(";") and read.next.kind not in ("line", "end"):
            body.append(self._simple())
        if read.next.kind not in ("line", "end"):
            raise ProgramError(f"expected the end of the line, found {read.next.text!r}")
        return tuple(body)

    def _simple(self) -> Statement:
        read = self._read
        if read.took("return"):
            return Return(read.expression())
        if read.took("pass"):
            return Pass()
        name = self._variable()
        operator = read.took("=", *_AUGMENTED)
        if not operator:
            raise ProgramError(f"expected '=' after {name!r}, found {read.next.text!r}")
        return Assign(name, operator[:-1], read.expression())

    def _line(self, indentation: int) -> tuple[Statement, ...]:
        read = self._read
        if read.took("if"):
            return (self._branches(indentation),)
        if read.took("while"):
            return (While(read.expression(), self._block(indentation)),)
        if read.took("for"):
            name = self._variable()
            read.need("in")
            return (For(name, read.expression(), self._block(indentation)),)
        return self._simple_line()

    def _branches(self, indentation: int) -> If:
        """Read what follows `if` or `elif`."""
        read = self._read
        arms = [(read.expression(), self._block(indentation))]
        otherwise: tuple[Statement, ...] = ()
        while read.next.kind == "line" and len(read.next.text) == indentation:
            word = read.after_line("elif", "else")
            if word == "elif":
                arms.append((read.expression(), self._block(indentation)))
                continue
            if word == "else":
                otherwise = self._block(indentation)
            break
        for test, then in reversed(arms):
            tree = If(test, then, otherwise)
            otherwise = (tree,)
        return tree
