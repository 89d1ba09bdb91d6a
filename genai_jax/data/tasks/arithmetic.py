"""Arithmetic: a number of two digits and one of one; hard ones have two of two digits, or three."""

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question

_MOST = 99
_DIGITS = 9
_WORDS = {"+": "plus", "-": "minus"}
_PHRASINGS = ("What is {sum}?", "{sum} = ?", "What is {words}?")
_STATEMENTS = ("{sum} = {answer}.", "{words} makes {answer}.", "The value of {sum} is {answer}.")


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    """Draw numbers and signs, with no value below 0 on the way."""
    numbers = [draws.between(0, _MOST)]
    if difficulty == "easy":
        numbers += [draws.between(0, _DIGITS)]
    elif draws.below(2):
        numbers += [draws.between(_DIGITS + 1, _MOST)]
    else:
        numbers += [draws.between(0, _DIGITS), draws.between(0, _DIGITS)]
    value = numbers[0]
    parts = [str(value)]
    for number in numbers[1:]:
        sign = draws.choose("+-") if number <= value else "+"
        value = value + number if sign == "+" else value - number
        parts += [sign, str(number)]
    names = {
        "sum": " ".join(parts),
        "words": " ".join(_WORDS.get(part, part) for part in parts),
        "answer": str(value),
    }
    return Question(
        content=names["sum"],
        phrasings=tuple(text.format(**names) for text in _PHRASINGS),
        statements=tuple(text.format(**names) for text in _STATEMENTS),
        answer=names["answer"],
    )


def _count(*ranges: range) -> int:
    """Count expressions of a number of two digits, and then numbers of these ranges."""
    values = list(range(_MOST + 1))
    for numbers in ranges:
        sums = [value + number for value in values for number in numbers]
        values = sums + [value - x for value in values for x in numbers if x <= value]
    return len(values)


_ONE, _TWO = range(_DIGITS + 1), range(_DIGITS + 1, _MOST + 1)

ARITHMETIC = Family("arithmetic", _draw, (_count(_ONE), _count(_TWO) + _count(_ONE, _ONE)))
