"""The interpreter of a small language, a subset of Python: bounded, and total but for its error.

Every expression costs a unit of fuel, and a sequence as many as it has items; integers and lists
have a greatest size. So any text can be run: it ends, in little time and memory, with a value or
with `ProgramError`. Where it ends with a value, so does Python, and with the same one.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from genai_jax.data.tasks.small_parser import parse_program
from genai_jax.data.tasks.small_syntax import (
    Assign,
    Binary,
    Call,
    Choice,
    Comparison,
    Constant,
    Display,
    Expression,
    For,
    If,
    Item,
    Logical,
    Name,
    Pass,
    Program,
    ProgramError,
    Return,
    Slice,
    Statement,
    Unary,
    While,
)

Value = int | list[int]

FUEL = 10_000
GREATEST = 10**18
MOST_ITEMS = 1000
_MOST_EXPONENT = 64

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda x, y: x in y,
    "not in": lambda x, y: x not in y,
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "-": operator.neg,
    "+": operator.pos,
    "not": operator.not_,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "list": list,
    "max": max,
    "min": min,
    "range": range,
    "sorted": sorted,
    "sum": sum,
}


def run_program(
    program: Program | str, arguments: Sequence[int | Sequence[int]], *, fuel: int = FUEL
) -> Value:
    """Call a function of the small language.

    Args:
        program: The function, or any text.
        arguments: What it is given: integers, and sequences of them, which become lists.
        fuel: Most steps.

    Returns:
        What it returns: an integer, True, False, or a list of these.

    Raises:
        ProgramError: If the text is no program, or it is given too many or too few arguments, fails
            as Python does (division by zero, a name without a value, ...), needs more fuel, or
            makes something too large; nothing else is ever raised.
    """
    if isinstance(program, str):
        program = parse_program(program)
    if len(arguments) != len(program.parameters):
        raise ProgramError(f"it takes {len(program.parameters)} arguments; got {len(arguments)}")
    values = [list(x) if isinstance(x, Sequence) else x for x in arguments]
    run = _Run(dict(zip(program.parameters, values, strict=True)), fuel)
    try:
        result = run.block(program.body)
    except (TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise ProgramError(f"{type(error).__name__}: {error}") from None
    except RecursionError:
        raise ProgramError("it is nested too deep") from None
    if isinstance(result, int | list):
        return result
    raise ProgramError(f"it returns {'a range' if isinstance(result, range) else 'nothing'}")


class _Run:
    """A call in progress: variables, and the fuel that is left."""

    def __init__(self, names: dict[str, Any], fuel: int) -> None:
        self._names, self._fuel = names, fuel

    def _pay(self, cost: int) -> None:
        self._fuel -= cost
        if self._fuel < 0:
            raise ProgramError("it takes too many steps")

    def block(self, body: tuple[Statement, ...]) -> Any:
        """Run statements; gives what is returned, or None if nothing was yet."""
        for statement in body:
            result = self._statement(statement)
            if result is not None:
                return result
        return None

    def _statement(self, statement: Statement) -> Any:
        self._pay(1)
        match statement:
            case Return(value):
                return self.value(value)
            case Assign(name, "", value):
                self._names[name] = self.value(value)
            case Assign(name, sign, value):
                old, new = self._name(name), self.value(value)
                if isinstance(old, list):  # Python would change the list that others see too
                    raise ProgramError(f"{sign}= is for integers")
                self._names[name] = self._binary(sign, old, new)
            case If(test, then, otherwise):
                return self.block(then if self.value(test) else otherwise)
            case While(test, body):
                while self.value(test):
                    result = self.block(body)
                    if result is not None:
                        return result
            case For(name, over, body):
                for item in iter(self.value(over)):
                    self._pay(1)
                    self._names[name] = item
                    result = self.block(body)
                    if result is not None:
                        return result
            case Pass():
                pass
        return None

    def value(self, expression: Expression) -> Any:
        """Compute an expression."""
        self._pay(1)
        match expression:
            case Constant(value):
                return value
            case Name(name):
                return self._name(name)
            case Unary(sign, operand):
                return _UNARY[sign](self.value(operand))
            case Binary(sign, left, right):
                return self._binary(sign, self.value(left), self.value(right))
            case Logical(word, left, right):
                first = self.value(left)
                return self.value(right) if bool(first) == (word == "and") else first
            case Comparison():
                return self._comparison(expression)
            case Choice(yes, test, no):
                return self.value(yes if self.value(test) else no)
            case Display(items):
                return self._flat([self.value(item) for item in items])
            case Call(function, arguments):
                return self._call(function, [self.value(x) for x in arguments])
            case Item(of, index):
                return self.value(of)[self.value(index)]
            case Slice(of, bounds):
                sequence = self._sequence(self.value(of))
                return sequence[slice(*(None if b is None else self.value(b) for b in bounds))]

    def _name(self, name: str) -> Any:
        if name not in self._names:
            raise ProgramError(f"{name!r} has no value")
        return self._names[name]

    def _sequence(self, value: Any) -> Any:
        self._pay(len(value))
        return value

    def _flat(self, items: Iterable[Any]) -> list[int]:
        found = list(items)
        self._pay(len(found))
        if not all(isinstance(item, int) for item in found):
            raise ProgramError("the items of a list are integers")
        return found

    def _binary(self, sign: str, left: Any, right: Any) -> Any:
        if sign == "**" and not 0 <= right <= _MOST_EXPONENT:
            raise ProgramError(f"an exponent lies in 0 ... {_MOST_EXPONENT}")
        for list_, other in ((left, right), (right, left)):
            if isinstance(list_, list):
                self._pay(len(list_))
                if sign == "*" and isinstance(other, int) and len(list_) * other > MOST_ITEMS:
                    raise ProgramError(f"a list has at most {MOST_ITEMS} items")
        result = _BINARY[sign](left, right)
        if isinstance(result, list):
            self._pay(len(result))
            if len(result) > MOST_ITEMS:
                raise ProgramError(f"a list has at most {MOST_ITEMS} items")
        elif not -GREATEST <= result <= GREATEST:
            raise ProgramError(f"an integer lies in {-GREATEST} ... {GREATEST}")
        return result

    def _comparison(self, comparison: Comparison) -> Any:
        left = self.value(comparison.first)
        result: Any = True
        for sign, other in zip(comparison.operators, comparison.others, strict=True):
            right = self.value(other)
            if sign in ("in", "not in") and not isinstance(left, int):
                raise ProgramError("what is sought in a sequence is an integer")
            for side in (left, right):
                self._pay(len(side) if isinstance(side, list) else 1)
            result = _COMPARISONS[sign](left, right)
            if not result:
                return result
            left = right
        return result

    def _call(self, function: str, arguments: list[Any]) -> Any:
        if function not in ("len", "range"):
            for argument in arguments:
                self._pay(len(argument) if isinstance(argument, list | range) else 1)
        result = _FUNCTIONS[function](*arguments)
        if isinstance(result, int) and not -GREATEST <= result <= GREATEST:
            raise ProgramError(f"an integer lies in {-GREATEST} ... {GREATEST}")
        return result
