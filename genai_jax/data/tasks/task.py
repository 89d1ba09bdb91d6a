"""What a task is, and a family of tasks: prompts, a reference answer, and an exact grader."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from genai_jax.data.tasks.draws import Draws

Difficulty = Literal["easy", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "hard")


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, before one of its phrasings is chosen.

    Attributes:
        content: What is asked, whatever the words: two prompts with the same content have the same
            answer, and are both for training or both held out.
        phrasings: Prompts that ask for it.
        statements: Sentences that tell it together with its answer, for pre-training.
        answer: A right answer.
        checks: What the grader needs beyond the answer; can be hashed.
    """

    content: str
    phrasings: tuple[str, ...]
    statements: tuple[str, ...]
    answer: str
    checks: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A question in words, with what grades an answer to it.

    Attributes:
        family: Name of its family.
        difficulty: easy or hard.
        number: Of the task in its family; with the seed it says everything else.
        prompt: What is asked; ASCII, one line.
        answer: A right answer, ASCII; another may be right too where the grader says so.
        content: What is asked, whatever the words.
        checks: What the grader needs beyond the answer.
    """

    family: str
    difficulty: Difficulty
    number: int
    prompt: str
    answer: str
    content: str
    checks: tuple[Any, ...] = ()


def exact(task: Task, text: str) -> float:
    """Grade a text: 1 if it is the answer, but for white space at its ends; else 0."""
    return float(text.strip() == task.answer)


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks of one kind.

    Attributes:
        name: Of the family.
        draw: Draws a question.
        sizes: How many contents there are: easy, hard.
        grade: `(task, text) -> float` in [0, 1]; 1 is exactly right. Any text can be graded.
    """

    name: str
    draw: Callable[[Draws, Difficulty], Question]
    sizes: tuple[int, int]
    grade: Callable[[Task, str], float] = exact

    def size(self, difficulty: Difficulty) -> int:
        """Count the different contents; each is asked in several ways, so prompts are more."""
        return self.sizes[DIFFICULTIES.index(difficulty)]

    def make(self, seed: int, number: int, difficulty: Difficulty) -> Task:
        """Make a task, a function of the arguments alone.

        Args:
            seed: Any integer.
            number: From 0 to 2^57 - 1.
            difficulty: Which of the two splits.

        Raises:
            ValueError: If there is no such number or difficulty.
        """
        question, draws = self._question(seed, number, difficulty)
        return Task(
            self.name,
            difficulty,
            number,
            draws.choose(question.phrasings),
            question.answer,
            question.content,
            question.checks,
        )

    def tell(self, seed: int, number: int, difficulty: Difficulty) -> str:
        """Tell the question of the task with these arguments, and its answer, in a sentence."""
        question, draws = self._question(seed, number, difficulty)
        return draws.choose(question.statements)

    def _question(self, seed: int, number: int, difficulty: Difficulty) -> tuple[Question, Draws]:
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"a difficulty must be easy or hard; got {difficulty!r}.")
        draws = Draws(seed, f"{difficulty} {self.name}", number)
        return self.draw(draws, difficulty), draws
