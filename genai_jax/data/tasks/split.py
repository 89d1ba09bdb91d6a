"""Two sides: tasks to train on, and tasks that are held out; no prompt is on both.

The side of a task is a hash of what is asked: of its content, which its prompt determines, whatever
the seed. So a held-out question is never trained on in other words either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from genai_jax.data.tasks.arithmetic import ARITHMETIC
from genai_jax.data.tasks.functions import FUNCTIONS
from genai_jax.data.tasks.json_format import JSON_FORMAT
from genai_jax.data.tasks.lookup import LOOKUP
from genai_jax.data.tasks.sorting import SORTING
from genai_jax.data.tasks.strings import STRINGS
from genai_jax.data.tasks.task import Difficulty, Family, Task

Side = Literal["train", "held out"]

FAMILIES: tuple[Family, ...] = (ARITHMETIC, SORTING, STRINGS, LOOKUP, JSON_FORMAT, FUNCTIONS)

_HELD_OUT_OF = 5  # one content in so many is held out
_MOST_TRIES = 256  # each fails with probability 0.8 at most: all with 1e-25


def side_of(family: str, content: str) -> Side:
    """Say on which side a question is.

    Args:
        family: Name of its family.
        content: What is asked.
    """
    digest = blake2b(f"{family}: {content}".encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest, "big") % _HELD_OUT_OF else "held out"


@dataclass(frozen=True)
class Tasks:
    """The tasks of a side, by number: task i is a function of these fields and i.

    Attributes:
        families: Task i is of family i modulo their number; one may be named more than once.
        difficulty: easy or hard.
        side: train or held out.
        seed: Of the tasks. Others draw from the same sides.
    """

    families: tuple[Family, ...]
    difficulty: Difficulty
    side: Side
    seed: int

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        if not self.families:
            raise ValueError("`families` must name at least one; got none. Choose FAMILIES.")
        if self.side not in ("train", "held out"):
            raise ValueError(f"`side` must be 'train' or 'held out'; got {self.side!r}.")

    def __getitem__(self, i: int) -> Task:
        """Make task i, from 0 on, without end.

        Raises:
            IndexError: If i is negative.
        """
        if i < 0:
            raise IndexError(f"tasks are numbered from 0 on, without end; got {i}.")
        family = self.families[i % len(self.families)]
        for attempt in range(_MOST_TRIES):
            task = family.make(self.seed, i * _MOST_TRIES + attempt, self.difficulty)
            if side_of(task.family, task.content) == self.side:
                return task
        raise AssertionError(f"{_MOST_TRIES} tasks of {family.name} on one side")


def tasks(families: Sequence[Family], difficulty: Difficulty, side: Side, seed: int) -> Tasks:
    """Give random access to the tasks of one side, family by family in turn."""
    return Tasks(tuple(families), difficulty, side, seed)
