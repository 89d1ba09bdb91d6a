"""Small functions: specified in words or by examples, written in Python, and run on hidden tests.

The text is run by the interpreter of `small_language`: no sandbox is needed. A program that is
none, fails, or takes too long is wrong like any other.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.small_language import run_program
from genai_jax.data.tasks.small_parser import parse_program
from genai_jax.data.tasks.small_syntax import Program, ProgramError
from genai_jax.data.tasks.task import Difficulty, Family, Question, Task

Check = tuple[tuple[int, ...], int]

_INPUTS = (-100, -7, -2, -1, 0, 1, 2, 3, 5, 8, 13, 50, 1000)
_FACTORS = range(2, 10)
_TERMS = range(1, 100)
_BOUNDS = range(1, 10)


class _Kind(NamedTuple):
    """A kind of function, with constants a, b and c.

    Attributes:
        words: What it is; `{a}` is the first constant, and so on.
        code: The expression.
        value: What it gives, of x and the constants.
        constants: Choices of each.
        shown: Inputs for which `words` tells the value, as `{y0}` and so on.
    """

    words: str
    code: str
    value: Callable[[int, int, int, int], int]
    constants: tuple[range, ...]
    shown: tuple[int, ...] = ()


_EASY = (
    _Kind("x times {a}, plus {b}", "x*{a}+{b}", lambda x, a, b, _: x * a + b, (_FACTORS, _TERMS)),
    _Kind("x times {a}, minus {b}", "x*{a}-{b}", lambda x, a, b, _: x * a - b, (_FACTORS, _TERMS)),
    _Kind(
        "x plus {b}, times {a}", "(x+{b})*{a}", lambda x, a, b, _: (x + b) * a, (_FACTORS, _TERMS)
    ),
    _Kind(
        "x minus {b}, times {a}", "(x-{b})*{a}", lambda x, a, b, _: (x - b) * a, (_FACTORS, _TERMS)
    ),
)
_HARD = (
    _Kind(
        "x times {a} if x over {c}, else x plus {b}",
        "x*{a} if x>{c} else x+{b}",
        lambda x, a, b, c: x * a if x > c else x + b,
        (_FACTORS, _TERMS, _BOUNDS),
    ),
    _Kind(
        "x minus {b} if x under {c}, else x times {a}",
        "x-{b} if x<{c} else x*{a}",
        lambda x, a, b, c: x - b if x < c else x * a,
        (_FACTORS, _TERMS, _BOUNDS),
    ),
    _Kind(
        "x times {a}, or {b} if that is more",
        "max(x*{a},{b})",
        lambda x, a, b, _: max(x * a, b),
        (_FACTORS, _TERMS),
    ),
    _Kind(
        "a line with f(0)={y0}, f(1)={y1}",
        "x*{a}+{b}",
        lambda x, a, b, _: x * a + b,
        (_FACTORS, _TERMS),
        (0, 1),
    ),
)
_KINDS = {"easy": _EASY, "hard": _HARD}
_PHRASINGS = ("Write f(x): {what}.", "Code f(x): {what}.", "f(x) is {what}. Write it.")
_STATEMENTS = ("For {what}, write {answer}", "f(x) is {what}: {answer}")


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    kind = draws.choose(_KINDS[difficulty])
    a, b, c = (*(draws.choose(options) for options in kind.constants), 0, 0)[:3]
    # Beside what is asked of all: both sides of where a condition, or a maximum, changes over.
    turns = (c - 1, c, c + 1) if len(kind.constants) == 3 else (b // a, b // a + 1)
    inputs = (*_INPUTS, *turns)
    shown = {f"y{x}": kind.value(x, a, b, c) for x in kind.shown}
    what = kind.words.format(a=a, b=b, c=c, **shown)
    answer = f"def f(x): return {kind.code.format(a=a, b=b, c=c)}"
    return Question(
        content=what,
        phrasings=tuple(text.format(what=what) for text in _PHRASINGS),
        statements=tuple(text.format(what=what, answer=answer) for text in _STATEMENTS),
        answer=answer,
        checks=tuple(((x,), kind.value(x, a, b, c)) for x in inputs),
    )


def share_of_tests(task: Task, text: str) -> float:
    """Compute the share of the hidden tests that a program passes, which are at least 15.

    Args:
        task: With tests, (arguments, value), as its checks.
        text: Any text; one that is no program passes none.
    """
    try:
        program = parse_program(text.strip())
    except ProgramError:
        return 0.0
    passed = sum(_passes(program, check) for check in task.checks)
    return passed / len(task.checks)


def _passes(program: Program, check: Check) -> bool:
    arguments, wanted = check
    try:
        found = run_program(program, arguments)
    except ProgramError:
        return False
    return type(found) is type(wanted) and found == wanted


def grade_function(task: Task, text: str) -> float:
    """Grade a text: 1 if it is a function that passes every hidden test; else 0."""
    return float(share_of_tests(task, text) == 1)


def _count(difficulty: Difficulty) -> int:
    total = 0
    for kind in _KINDS[difficulty]:
        total += prod(len(options) for options in kind.constants)
    return total


FUNCTIONS = Family("functions", _draw, (_count("easy"), _count("hard")), grade_function)
