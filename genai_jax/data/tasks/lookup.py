"""Looking up: the value of one of two or three keys; hard ones have five or six, or ask back."""

from math import perm

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question

_KEYS = "abcdefghijklmnopqrstuvwxyz"
_VALUES = {"easy": tuple("0123456789"), "hard": tuple(map(str, range(100)))}
_LENGTHS = {"easy": (2, 3), "hard": (5, 6)}
_FORWARD = (
    "{pairs}. What is {key}?",
    "Given {pairs}, what is {key}?",
    "{pairs} {key}=?",
)
_BACK = ("{pairs}. Which letter is {value}?", "{pairs} ?={value}")
_FORWARD_STATEMENTS = (
    "With {pairs}, {key} is {value}.",
    "{pairs}: so {key} = {value}.",
)
_BACK_STATEMENTS = ("With {pairs}, {value} is {key}.",)


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    number = draws.choose(_LENGTHS[difficulty])
    keys, values = draws.sample(_KEYS, number), draws.sample(_VALUES[difficulty], number)
    asked = draws.below(number)
    back = difficulty == "hard" and draws.below(2) == 1
    pairs = " ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    names = {"pairs": pairs, "key": keys[asked], "value": values[asked]}
    statements = _BACK_STATEMENTS if back else _FORWARD_STATEMENTS
    return Question(
        content=f"{pairs}: {values[asked] if back else keys[asked]}",
        phrasings=tuple(text.format(**names) for text in (_BACK if back else _FORWARD)),
        statements=tuple(text.format(**names) for text in statements),
        answer=keys[asked] if back else values[asked],
    )


_EASY, _HARD = (
    sum(
        ways * n * perm(len(_KEYS), n) * perm(len(_VALUES[difficulty]), n)
        for n in _LENGTHS[difficulty]
    )
    for difficulty, ways in (("easy", 1), ("hard", 2))
)

LOOKUP = Family("lookup", _draw, (_EASY, _HARD))
