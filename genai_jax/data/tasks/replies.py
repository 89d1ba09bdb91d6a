"""Short replies in a tone: prompts that ask for one, and a writer whose answers vary in all parts.

The writer often keeps the tone, often does not, sometimes leaves out the name or rambles: who
imitates it writes in all these ways, which is what a reward can then choose among.
"""

from collections.abc import Sequence
from typing import TypeVar

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.gold_reward import grade_reply
from genai_jax.data.tasks.reply_words import (
    ADVERBS,
    BODIES,
    CLOSINGS,
    DEEDS,
    KIND_WORDS,
    OPENINGS,
    RAMBLES,
    THINGS,
    TONES,
    Request,
    Slots,
    Tone,
    right_slots,
)
from genai_jax.data.tasks.task import Difficulty, Family, Question, Task
from genai_jax.data.tasks.words import SYLLABLES, draw_word

T = TypeVar("T")

_ENDINGS = ("", "n", "l", "ra")
_SYLLABLES = {"easy": 1, "hard": 2}

# Of 16: how often the writer does as asked, in one respect.
_TONE_AS_ASKED = 8
_SLOT_AS_TONE = 12
_NAME_RIGHT, _NAME_ABSENT = 12, 2
_DEED_RIGHT = 13
_THING_RIGHT = 11
_EXTRAS = (10, 14)  # with none, with at most one
_CLOSES = 12


def _draw_name(draws: Draws, syllables: int) -> str:
    return (draw_word(draws, syllables) + draws.choose(_ENDINGS)).capitalize()


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    syllables = _SYLLABLES[difficulty]
    name = _draw_name(draws, syllables)
    request = Request(draws.choose(DEEDS), name, draws.choose(THINGS), draws.choose(TONES))
    words, adverb = request.words, ADVERBS[request.tone]
    written = _write(draws, request, syllables)
    return Question(
        content=f"{words}, {request.tone}",
        phrasings=(
            f"{words[0].upper()}{words[1:]}, {adverb}.",
            f"Be {request.tone}: {words}.",
            f"{adverb.capitalize()}, {words}.",
        ),
        statements=(
            f"To {words}, {adverb}: {written}",
            f"Asked to {words} and be {request.tone}, one writes: {written}",
        ),
        answer=right_slots(request).text,
        checks=tuple(request),
    )


def _other(draws: Draws, options: Sequence[T], but: T) -> T:
    return draws.choose([option for option in options if option != but])


def _write(draws: Draws, request: Request, syllables: int) -> str:
    """Write a reply as the writer does."""
    tone = request.tone if draws.below(16) < _TONE_AS_ASKED else draws.choose(TONES)

    def slot_tone() -> Tone:
        return tone if draws.below(16) < _SLOT_AS_TONE else draws.choose(TONES)

    name, chance = request.name, draws.below(16)
    if chance >= _NAME_RIGHT:
        name = "" if chance < _NAME_RIGHT + _NAME_ABSENT else _draw_name(draws, syllables)
    deed, thing = request.deed, request.thing
    if draws.below(16) >= _DEED_RIGHT:
        deed = _other(draws, DEEDS, deed)
    if draws.below(16) >= _THING_RIGHT:
        thing = _other(draws, THINGS, thing)
    chance = draws.below(16)
    extras = sum(chance >= bound for bound in _EXTRAS)
    opening, body, closing = slot_tone(), slot_tone(), slot_tone()
    return Slots(
        opening,
        draws.choose(OPENINGS[opening]),
        name,
        BODIES[deed][body].format(thing=thing),
        tuple(draws.choose(KIND_WORDS + RAMBLES) for _ in range(extras)),
        draws.choose(CLOSINGS[closing]) if draws.below(16) < _CLOSES else "",
    ).text


def draw_answer(task: Task, seed: int, number: int) -> str:
    """Write an answer to a prompt as the writer does; supervised fine-tuning imitates it.

    Args:
        task: Of `REPLIES`.
        seed: Any integer.
        number: Of the answer, from 0 to 2^57 - 1; others are independent.
    """
    draws = Draws(seed, f"reply to {task.content}", number)
    return _write(draws, Request(*task.checks), _SYLLABLES[task.difficulty])


def _count(syllables: int) -> int:
    names = len(SYLLABLES) ** syllables * len(_ENDINGS)
    return names * len(DEEDS) * len(THINGS) * len(TONES)


REPLIES = Family("replies", _draw, (_count(1), _count(2)), grade_reply)
