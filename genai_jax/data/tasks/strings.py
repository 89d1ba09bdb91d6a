"""Strings: what becomes of a word of two syllables; hard ones have three, or two things to do."""

from collections.abc import Callable
from typing import NamedTuple

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question
from genai_jax.data.tasks.words import SYLLABLES, VOWELS, draw_word


class _Operation(NamedTuple):
    """Something to do with a word.

    Attributes:
        apply: What it gives, of the word and a letter.
        phrasings: How it is asked for.
        statements: How it is told.
        counts: Whether the letter matters.
    """

    apply: Callable[[str, str], str]
    phrasings: tuple[str, ...]
    statements: tuple[str, ...]
    counts: bool = False


_OPERATIONS = {
    "reverse": _Operation(
        lambda word, _: word[::-1],
        ("Reverse {word}.", "Write {word} backwards.", "What is {word} backwards?"),
        ("{word} backwards is {answer}.", "Reversed, {word} is {answer}."),
    ),
    "first": _Operation(
        lambda word, _: word[0],
        ("First letter of {word}?", "What letter does {word} begin with?"),
        ("{word} begins with {answer}.", "The first letter of {word} is {answer}."),
    ),
    "last": _Operation(
        lambda word, _: word[-1],
        ("Last letter of {word}?", "What letter does {word} end with?"),
        ("{word} ends with {answer}.", "The last letter of {word} is {answer}."),
    ),
    "double": _Operation(
        lambda word, _: word * 2,
        ("Write {word} twice.", "Double the word {word}."),
        ("{word} twice is {answer}.", "Doubled, {word} is {answer}."),
    ),
    "capitals": _Operation(
        lambda word, _: word.upper(),
        ("Write {word} in capitals.", "Put {word} in upper case."),
        ("{word} in capitals is {answer}.", "In upper case, {word} is {answer}."),
    ),
    "count": _Operation(
        lambda word, letter: str(word.count(letter)),
        ("How many {letter} are in {word}?", "Count the {letter} in {word}."),
        (
            "{word} has the letter {letter} {answer} times.",
            "In {word} {letter} comes {answer} times.",
        ),
        counts=True,
    ),
}
_HARD_OPERATIONS = _OPERATIONS | {
    "reverse capitals": _Operation(
        lambda word, _: word[::-1].upper(),
        ("Reverse {word}, in capitals.", "Write {word} backwards in capitals."),
        ("{word} backwards in capitals is {answer}.",),
    ),
    "reverse twice": _Operation(
        lambda word, _: word[::-1] * 2,
        ("Write {word} backwards twice.", "Reverse {word}, and double it."),
        ("{word} backwards twice is {answer}.",),
    ),
}
_CHOICES = {"easy": (2, _OPERATIONS), "hard": (3, _HARD_OPERATIONS)}


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    syllables, operations = _CHOICES[difficulty]
    name = draws.choose(tuple(operations))
    operation = operations[name]
    word = draw_word(draws, syllables)
    letter = draws.choose(VOWELS) if operation.counts else ""
    names = {"word": word, "letter": letter, "answer": operation.apply(word, letter)}
    return Question(
        content=f"{name} {word} {letter}".strip(),
        phrasings=tuple(text.format(**names) for text in operation.phrasings),
        statements=tuple(text.format(**names) for text in operation.statements),
        answer=names["answer"],
    )


_EASY, _HARD = (
    sum(len(SYLLABLES) ** n * (len(VOWELS) if one.counts else 1) for one in operations.values())
    for n, operations in _CHOICES.values()
)

STRINGS = Family("strings", _draw, (_EASY, _HARD))
