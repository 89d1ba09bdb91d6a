"""Sets of embedded tasks: to learn from, to be asked about, and to be measured by."""

import dataclasses
import functools

from genai_jax.data.conversations import Example
from genai_jax.data.tasks.gold_preferences import reply_examples
from genai_jax.data.tasks.split import FAMILIES, Side, tasks
from genai_jax.data.tasks.task import DIFFICULTIES, Difficulty, Family, Task

# What a small model learns slowly comes more often.
_PRACTICE = {"arithmetic": 6, "sorting": 2, "strings": 2, "lookup": 2}


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which of the embedded tasks.

    Attributes:
        families: Names of the families: arithmetic, sorting, strings, lookup, json, functions, ...;
            none takes all.
        hard_share: Share of hard tasks among those that are learnt or asked, from 0 to 1.
        examples: Tasks that are learnt from, of the training side.
        replies: Short replies in a tone that are learnt beside them: what the embedded preferences
            are about.
        practice: Whether families that a small model learns slowly come more often.
        held_out: Tasks of each family and difficulty that are measured, of the other side.
    """

    families: tuple[str, ...] = ()
    hard_share: float = 0.015
    examples: int = 60_000
    replies: int = 20_000
    practice: bool = True
    held_out: int = 50

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        known = [family.name for family in FAMILIES]
        if unknown := [name for name in self.families if name not in known]:
            raise ValueError(f"`families` must be among {', '.join(known)}; got {unknown[0]!r}.")
        if not 0 <= self.hard_share <= 1:
            raise ValueError(f"`hard_share` must be from 0 to 1; got {self.hard_share}.")
        for name, least in (("examples", 1), ("replies", 0), ("held_out", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")

    @property
    def chosen(self) -> tuple[Family, ...]:
        """The families."""
        return tuple(f for f in FAMILIES if not self.families or f.name in self.families)


@dataclasses.dataclass(frozen=True)
class MixedTasks:
    """Easy and hard tasks of one side, by number, without end.

    Attributes:
        config: Which.
        side: train or held out.
        seed: Of the tasks.
    """

    config: TaskConfig
    side: Side
    seed: int

    def __getitem__(self, i: int) -> Task:
        """Make task i: hard tasks, and those of each family, are spread evenly."""
        before = int(i * self.config.hard_share)
        hard = int((i + 1) * self.config.hard_share) > before
        kind: Difficulty = "hard" if hard else "easy"
        turns, number = divmod(before if hard else i - before, len(self._turns))
        family, turn, per_round = self._turns[number]
        return tasks((family,), kind, self.side, self.seed)[turns * per_round + turn]

    @functools.cached_property
    def _turns(self) -> tuple[tuple[Family, int, int], ...]:
        """The turns of a round: a family, which of its turns it is, and how many it has."""
        more = _PRACTICE if self.config.practice else {}
        practice = {family: more.get(family.name, 1) for family in self.config.chosen}
        return tuple(
            (family, turn, count)
            for turn in range(max(practice.values()))
            for family, count in practice.items()
            if turn < count
        )


def task_examples(config: TaskConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """Make demonstrations of tasks: those to learn from, and those that are held out."""
    sides: tuple[tuple[Side, int], ...] = (
        ("train", config.examples),
        ("held out", config.held_out * len(config.chosen)),
    )
    made = []
    for side, count in sides:
        mixed = MixedTasks(config, side, seed)
        each = [mixed[i] for i in range(count)]
        made.append([Example.of(task.prompt, task.answer) for task in each])
    replies = reply_examples(seed, "train", config.replies)
    return made[0] + replies, made[1]


def held_out_tasks(config: TaskConfig) -> dict[Difficulty, list[Task]]:
    """Make the tasks that models are measured by: always the same ones."""
    count = config.held_out * len(config.chosen)
    measured: dict[Difficulty, list[Task]] = {}
    for kind in DIFFICULTIES:
        side = tasks(config.chosen, kind, "held out", seed=0)
        measured[kind] = [side[i] for i in range(count)]
    return measured
