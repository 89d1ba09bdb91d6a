"""Following instructions on format: the answer is a JSON object with the keys that are stated."""

import itertools
import json
from typing import Any

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.task import Difficulty, Family, Question, Task
from genai_jax.data.tasks.words import SYLLABLES, draw_word

_WORD_KEYS = ("name", "pet", "town")
_NUMBER_KEYS = ("age", "size", "id")
_KEYS = _WORD_KEYS + _NUMBER_KEYS
_NUMBERS = 100
_MOST_TEXT = 1000
_LENGTHS = {"easy": 2, "hard": 3}
_PHRASINGS = {
    "easy": (
        "Write JSON with {pairs}.",
        "JSON, please: {pairs}.",
        "Give {pairs} as JSON.",
    ),
    "hard": (
        "Write JSON with {keys} of {values}.",
        "JSON with keys {keys}: {values}.",
    ),
}
_STATEMENTS = {
    "easy": ("As JSON, {pairs} is {answer}.", "The JSON of {pairs} is {answer}."),
    "hard": ("JSON with {keys} of {values} is {answer}.", "As JSON, {keys}: {values} is {answer}."),
}


def _listed(parts: tuple[str, ...]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _draw(draws: Draws, difficulty: Difficulty) -> Question:
    keys = draws.sample(_KEYS, _LENGTHS[difficulty])
    record: dict[str, str | int] = {
        key: draw_word(draws, 1) if key in _WORD_KEYS else draws.below(_NUMBERS) for key in keys
    }
    answer = json.dumps(record, separators=(",", ":"))
    names = {
        "pairs": _listed(tuple(f"{key} {value}" for key, value in record.items())),
        "keys": " ".join(keys),
        "values": " ".join(map(str, record.values())),
        "answer": answer,
    }
    return Question(
        content=json.dumps(record, sort_keys=True),
        phrasings=tuple(text.format(**names) for text in _PHRASINGS[difficulty]),
        statements=tuple(text.format(**names) for text in _STATEMENTS[difficulty]),
        answer=answer,
    )


def _parsed(text: str) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none, or a key comes twice."""
    if len(text) > _MOST_TEXT:  # so that nothing nests too deep
        return None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=refused)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def keeps_format(task: Task, text: str) -> float:
    """Grade the format alone: 1 if a text is a JSON object with the keys asked for; else 0."""
    found = _parsed(text)
    return float(found is not None and found.keys() == json.loads(task.answer).keys())


def grade_json(task: Task, text: str) -> float:
    """Grade a text: 1 if it is the JSON object asked for, in any order and spacing; else 0.

    A number is not a string, nor 7.0 the integer 7; a key that comes twice is an error.
    """
    found, wanted = _parsed(text), json.loads(task.answer)
    if found is None or found.keys() != wanted.keys():
        return 0.0
    same = (type(found[key]) is type(x) and found[key] == x for key, x in wanted.items())
    return float(all(same))


def _count(length: int) -> int:
    """Count the objects: choices of keys, and the values of each."""
    words = [
        sum(key in _WORD_KEYS for key in keys) for keys in itertools.combinations(_KEYS, length)
    ]
    return sum(len(SYLLABLES) ** n * _NUMBERS ** (length - n) for n in words)


JSON_FORMAT = Family("json", _draw, (_count(2), _count(3)), grade_json)
