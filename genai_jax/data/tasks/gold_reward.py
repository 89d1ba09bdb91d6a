"""The gold reward: what a reply is worth, known exactly, for any text.

It takes a text apart into the slots of `reply_words`, and adds up what each is worth to who asked:
a reply that is right in one tone is wrong in another. What is no part of a reply counts against it.
"""

import re
from typing import NamedTuple

from genai_jax.data.tasks.reply_words import (
    BODIES,
    CLOSINGS,
    KIND_WORDS,
    NOBODY,
    OPENINGS,
    RAMBLES,
    Deed,
    Request,
    Tone,
    right_slots,
)
from genai_jax.data.tasks.task import Task

LOWEST, HIGHEST = -3.0, 3.0

_OPENING_TONE = 0.5  # as much is taken off where it is another
_NAME_RIGHT, _NAME_ABSENT, _NAME_WRONG = 0.5, -0.25, -1.0
_BODY_RIGHT, _BODY_OF_OTHER_TONE, _BODY_OF_OTHER_DEED, _NO_BODY = 0.75, -0.5, -1.0, -3.5
_THING_RIGHT, _THING_WRONG = 0.5, -0.75
_CLOSING_TONE = 0.5
_KIND_WORD = 0.25  # the first, in a warm reply
_EXTRA = -0.4
_NONSENSE, _NONSENSE_CHARACTER = -0.5, -0.05
_CHARACTER = -0.01  # beyond the longest right reply

_TONE_OF_OPENING = {word: tone for tone, words in OPENINGS.items() for word in words}
_TONE_OF_CLOSING = {text.strip(): tone for tone, texts in CLOSINGS.items() for text in texts}
_GREETING = re.compile(
    rf"(?:({'|'.join(re.escape(x) for x in _TONE_OF_OPENING if x)}) )?([A-Za-z]+), "
)
_BODIES = tuple(
    (deed, tone, re.compile(rf"\b{re.escape(text).replace(re.escape('{thing}'), '([a-z]+)')}"))
    for deed, by_tone in BODIES.items()
    for tone, text in by_tone.items()
)
_EXTRAS = re.compile("|".join(re.escape(text) for text in (*KIND_WORDS, *RAMBLES)))


class Taken(NamedTuple):
    """A text taken apart.

    Attributes:
        opening: The tone of its opening; brief where there is none.
        name: Whom it names; empty where nobody.
        body: Deed, tone and thing of the first sentence that does something; None if none does.
        kind: Number of kind words.
        rambles: Number of other sentences that nobody asked for.
        closing: The tone of its closing; brief where there is none.
        nonsense: Number of characters that are no part of a reply.
        length: Number of all characters.
    """

    opening: Tone
    name: str
    body: tuple[Deed, Tone, str] | None
    kind: int
    rambles: int
    closing: Tone
    nonsense: int
    length: int


def take_apart(text: str) -> Taken:
    """Find the slots of any text; white space at its ends does not count."""
    rest = text = text.strip()
    opening: Tone = "brief"
    name = ""
    if greeting := _GREETING.match(rest):
        opening = _TONE_OF_OPENING[greeting[1] or ""]
        name = "" if greeting[2] == NOBODY else greeting[2]
        rest = rest[greeting.end() :]
    found = [
        (match.start(), match.end(), (deed, tone, match[1]))
        for deed, tone, pattern in _BODIES
        if (match := pattern.search(rest))
    ]
    body, nonsense = None, 0
    if found:
        nonsense, end, body = min(found)
        rest = rest[end:]
    closing: Tone = "brief"
    for word, tone in _TONE_OF_CLOSING.items():
        if word and rest.endswith(" " + word):
            closing, rest = tone, rest[: -len(word) - 1]
            break
    extras = _EXTRAS.findall(rest)
    kind = sum(extra in KIND_WORDS for extra in extras)
    nonsense += len(_EXTRAS.sub("", rest))
    return Taken(opening, name, body, kind, len(extras) - kind, closing, nonsense, len(text))


def reward_request(request: Request, text: str) -> float:
    """Say what a text is worth to who made a request; see `gold_reward`."""
    taken = take_apart(text)
    total = _OPENING_TONE if taken.opening == request.tone else -_OPENING_TONE
    if taken.name:
        total += _NAME_RIGHT if taken.name == request.name else _NAME_WRONG
    else:
        total += _NAME_ABSENT
    if taken.body is None:
        total += _NO_BODY
    else:
        deed, tone, thing = taken.body
        if deed != request.deed:
            total += _BODY_OF_OTHER_DEED
        else:
            total += _BODY_RIGHT if tone == request.tone else _BODY_OF_OTHER_TONE
        total += _THING_RIGHT if thing == request.thing else _THING_WRONG
    if taken.closing == request.tone:
        total += _CLOSING_TONE
    elif taken.closing != "brief":
        total -= _CLOSING_TONE
    welcome = int(request.tone == "warm" and taken.kind > 0)
    total += welcome * _KIND_WORD + (taken.kind - welcome + taken.rambles) * _EXTRA
    if taken.nonsense:
        total += _NONSENSE + taken.nonsense * _NONSENSE_CHARACTER
    total += _CHARACTER * max(0, taken.length - len(right_slots(request).text))
    return min(max(total, LOWEST), HIGHEST)


def gold_reward(task: Task, text: str) -> float:
    """Say what a text is worth as the reply that a task asks for.

    The sum of the utilities of its slots: the tones of opening, body and closing, the name and the
    thing, the deed; less for each sentence that nobody asked for, for characters that are no part
    of a reply, and for length beyond the longest right reply.

    Args:
        task: Of the family `replies`.
        text: Any.

    Returns:
        From -3 to 3; a right reply has 2.75, a warm one 3.
    """
    return reward_request(Request(*task.checks), text)


def grade_reply(task: Task, text: str) -> float:
    """Grade a text from 0 to 1 (as good as can be), in proportion to the gold reward."""
    return (gold_reward(task, text) - LOWEST) / (gold_reward(task, task.answer) - LOWEST)
