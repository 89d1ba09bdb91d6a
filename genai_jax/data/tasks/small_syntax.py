"""The syntax of a small language, a subset of Python: one function of integers and flat lists.

    def f(x): return x*3 if x>4 else x+2

Statements are `return`, `pass`, assignment (also += and its like), `if`, `while` and `for`, in
indented blocks or after a colon. Expressions have Python's operators without `/`, `is`, bitwise
ones and lambdas, list displays, items and slices, and calls of a few built-in functions. Whatever
is accepted here means the same to Python; much that Python accepts is not accepted here.
"""

from dataclasses import dataclass


class ProgramError(Exception):
    """A text is no program, or a program has no result; it says why."""


@dataclass(frozen=True)
class Constant:
    """An integer, True or False."""

    value: int


@dataclass(frozen=True)
class Name:
    """The value of a variable."""

    name: str


@dataclass(frozen=True)
class Display:
    """A list of items written out."""

    items: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Unary:
    """`-x`, `+x` or `not x`."""

    operator: str
    operand: "Expression"


@dataclass(frozen=True)
class Binary:
    """`x + y` and its like."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Logical:
    """`x and y` or `x or y`, whose right is computed only if it matters."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Comparison:
    """`a < b <= c`: as many operators as operands after the first."""

    first: "Expression"
    operators: tuple[str, ...]
    others: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Choice:
    """`yes if test else no`."""

    yes: "Expression"
    test: "Expression"
    no: "Expression"


@dataclass(frozen=True)
class Call:
    """A call of a built-in function."""

    function: str
    arguments: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Item:
    """`of[index]`."""

    of: "Expression"
    index: "Expression"


@dataclass(frozen=True)
class Slice:
    """`of[start:stop:step]`, each of which may be left out."""

    of: "Expression"
    bounds: "tuple[Expression | None, ...]"


Expression = (
    Constant | Name | Display | Unary | Binary | Logical | Comparison | Choice | Call | Item | Slice
)


@dataclass(frozen=True)
class Assign:
    """`name = value`; with an operator, `name += value`."""

    name: str
    operator: str
    value: Expression


@dataclass(frozen=True)
class Return:
    """`return value`."""

    value: Expression


@dataclass(frozen=True)
class If:
    """`if` with its `else`, which is empty where there is none; `elif` is an If in it."""

    test: Expression
    then: "tuple[Statement, ...]"
    otherwise: "tuple[Statement, ...]"


@dataclass(frozen=True)
class While:
    """`while test:`."""

    test: Expression
    body: "tuple[Statement, ...]"


@dataclass(frozen=True)
class For:
    """`for name in over:`."""

    name: str
    over: Expression
    body: "tuple[Statement, ...]"


@dataclass(frozen=True)
class Pass:
    """Nothing."""


Statement = Assign | Return | If | While | For | Pass


@dataclass(frozen=True)
class Program:
    """A function.

    Attributes:
        name: Its name.
        parameters: Names of its arguments.
        body: What it does.
    """

    name: str
    parameters: tuple[str, ...]
    body: tuple[Statement, ...]
