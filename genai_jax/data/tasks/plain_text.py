"""Plain text to pre-train on: the skills of the tasks, told in sentences that ask for nothing.

Document i is a function of (seed, i). Its sentences tell questions of the training side alone, with
their answers: what is held out is never told.
"""

from hashlib import blake2b

from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.split import FAMILIES, tasks
from genai_jax.data.tasks.task import Difficulty

SENTENCES = 16
"""Of a document, each a line."""

_EASY_OF = (3, 4)  # so many sentences are easy, out of so many


def make_document(seed: int, i: int) -> str:
    """Write document i: a line a sentence, of families and difficulties drawn at random.

    Args:
        seed: Any integer.
        i: From 0 on, without end.
    """
    draws = Draws(seed, "families of a plain text", i)
    lines = []
    for sentence in range(SENTENCES):
        family = draws.choose(FAMILIES)
        difficulty: Difficulty = "easy" if draws.below(_EASY_OF[1]) < _EASY_OF[0] else "hard"
        source = tasks((family,), difficulty, "train", seed)
        task = source[i * SENTENCES + sentence]
        lines.append(family.tell(seed, task.number, difficulty) + "\n")
    return "".join(lines)


def text_stamp(seed: int) -> str:
    """Digest the first documents: changes with whatever the text is made of."""
    text = "".join(make_document(seed, i) for i in range(SENTENCES))
    return blake2b(text.encode(), digest_size=16).hexdigest()
