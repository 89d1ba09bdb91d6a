"""Looking up: which of two or three pairs has a key; hard ones have five or six, or give the value.

The answer is the whole pair, such as `q=17`: having said the key, a small model finds the value.
"""

from math import perm

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question

_KEYS = "abcdefghijklmnopqrstuvwxyz"
_VALUES = tuple(map(str, range(100)))
_LENGTHS = {"easy": (2, 3), "hard": (5, 6)}
_PHRASINGS = ("{pairs}. Find {asked}.", "{pairs}. Where is {asked}?", "In {pairs}, find {asked}.")
_STATEMENTS = ("In {pairs}, {asked} comes in {answer}.", "{pairs}: {asked} is in {answer}.")


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    number = draws.choose(_LENGTHS[difficulty])
    keys, values = draws.sample(_KEYS, number), draws.sample(_VALUES, number)
    place = draws.below(number)
    back = difficulty == "hard" and draws.below(2) == 1
    pairs = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    names = {
        "pairs": " ".join(pairs),
        "asked": values[place] if back else keys[place],
        "answer": pairs[place],
    }
    return Question(
        content=f"{names['asked']} in {names['pairs']}",
        phrasings=tuple(text.format(**names) for text in _PHRASINGS),
        statements=tuple(text.format(**names) for text in _STATEMENTS),
        answer=names["answer"],
    )


_EASY, _HARD = (
    sum(ways * n * perm(len(_KEYS), n) * perm(len(_VALUES), n) for n in _LENGTHS[difficulty])
    for difficulty, ways in (("easy", 1), ("hard", 2))
)

LOOKUP = Family("lookup", _draw, (_EASY, _HARD))
