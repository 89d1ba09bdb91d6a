"""A request under way: what has come of it, and what stands in its row."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from genai_jax.decoding.requests import Request
from genai_jax.decoding.results import Piece
from genai_jax.decoding.tables import Constraint, fit_together


@dataclasses.dataclass(eq=False)
class Task:
    """A request under way.

    Attributes:
        ticket: Its number.
        request: What is asked for.
        on_piece: Is told what comes.
        kept: The tokens in its row when it took it.
        since: How many tokens were drawn before that.
        pieces: What has come.
        cancelled: Whether the caller has ended it.
    """

    ticket: int
    request: Request
    on_piece: Callable[[Piece], None]
    kept: np.ndarray
    since: int = 0
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    cancelled: bool = False

    def drawn(self) -> np.ndarray:
        """All tokens that were drawn."""
        return np.concatenate([np.zeros(0, np.int32), *(piece.tokens for piece in self.pieces)])

    def text(self) -> np.ndarray:
        """The tokens that stand in its row by now."""
        return np.concatenate([self.kept, self.drawn()[self.since :]])


def constraint_of(task: Task | None) -> Constraint | None:
    """Say what the text of a row must be."""
    if task is None or task.request.automaton is None:
        return None
    return Constraint(task.request.automaton, task.request.stop_ids)


def choose(tasks: Sequence[Task | None], queue: Collection[Task], together: int) -> dict[int, Task]:
    """Choose who takes which of the free rows next.

    Args:
        tasks: Of each row, None where it is free.
        queue: Who waits, the first first; who does not fit beside the others goes on waiting.
        together: Different texts that are read at a time; 1 chooses one task.
    """
    chosen: dict[int, Task] = {}
    texts: set[bytes] = set()
    for place in (n for n, task in enumerate(tasks) if task is None):
        held = [constraint_of(task) for task in (*tasks, *chosen.values())]
        waiting = (task for task in queue if task not in chosen.values())
        fitting = (task for task in waiting if fit_together([*held, constraint_of(task)]))
        task = next(fitting, None)
        if task is None:
            break
        texts.add(task.kept[:-1].tobytes())
        if len(texts) > together:
            break
        chosen[place] = task
        if together == 1:
            break
    return chosen
