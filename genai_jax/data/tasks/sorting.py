"""Sorting: three or four digits or letters in order; hard ones are five or six."""

from math import perm

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question

_KINDS = {"digits": "0123456789", "letters": "abcdefghijklmnopqrstuvwxyz"}
_LENGTHS = {"easy": (3, 4), "hard": (5, 6)}
_PHRASINGS = (
    "Sort {items}.",
    "Put {items} in order.",
    "Sort the {kind} {items}.",
    "Order {items}.",
)
_STATEMENTS = (
    "The {kind} {items} in order are {answer}.",
    "Sorted, {items} becomes {answer}.",
    "In order, {items} is {answer}.",
)


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    kind = draws.choose(tuple(_KINDS))
    items = draws.sample(_KINDS[kind], draws.choose(_LENGTHS[difficulty]))
    names = {"kind": kind, "items": " ".join(items), "answer": " ".join(sorted(items))}
    return Question(
        content=names["items"],
        phrasings=tuple(text.format(**names) for text in _PHRASINGS),
        statements=tuple(text.format(**names) for text in _STATEMENTS),
        answer=names["answer"],
    )


_EASY, _HARD = (
    sum(perm(len(symbols), n) for symbols in _KINDS.values() for n in lengths)
    for lengths in _LENGTHS.values()
)

SORTING = Family("sorting", _draw, (_EASY, _HARD))
