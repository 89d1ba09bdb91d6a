"""Looking up: the pair of a key, of two or three such as `c17`; hard ones have five or six.

Key and value touch, and the answer is the pair: so the value comes after its key in the prompt and
in the answer alike, which is what attention learns first. With `c=17`, or with the value alone as
the answer, a model of a million parameters still guessed after three million tokens.
"""

from math import perm

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question

_KEYS = "abcdef"
_VALUES = tuple(map(str, range(100)))
_LENGTHS = {"easy": (2, 3), "hard": (5, 6)}
_PHRASINGS = ("{pairs}. Find {asked}.", "{pairs}. Where is {asked}?", "In {pairs}, find {asked}.")
_STATEMENTS = ("Of {pairs} the one with {asked} is {answer}.", "{pairs}: for {asked}, {answer}.")


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    number = draws.choose(_LENGTHS[difficulty])
    keys, values = draws.sample(_KEYS, number), draws.sample(_VALUES, number)
    place = draws.below(number)
    pairs = [f"{key}{value}" for key, value in zip(keys, values, strict=True)]
    names = {"pairs": " ".join(pairs), "asked": keys[place], "answer": pairs[place]}
    return Question(
        content=f"{names['asked']} in {names['pairs']}",
        phrasings=tuple(text.format(**names) for text in _PHRASINGS),
        statements=tuple(text.format(**names) for text in _STATEMENTS),
        answer=names["answer"],
    )


_EASY, _HARD = (
    sum(n * perm(len(_KEYS), n) * perm(len(_VALUES), n) for n in lengths)
    for lengths in _LENGTHS.values()
)

LOOKUP = Family("lookup", _draw, (_EASY, _HARD))
