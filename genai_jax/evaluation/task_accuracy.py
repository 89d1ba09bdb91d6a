"""How many of some tasks a language model gets exactly right."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.conversations import said
from genai_jax.data.tasks.split import FAMILIES
from genai_jax.data.tasks.task import Task
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel

GRADES = {family.name: family.grade for family in FAMILIES}
"""Graders by the family of a task."""


def grade(task: Task, answer: str) -> float:
    """Grade an answer by the grader of the task's family: 1 is exactly right."""
    return GRADES[task.family](task, answer)


class Answered(NamedTuple):
    """What became of a task.

    Attributes:
        task: What was asked.
        answers: Texts of all answers to it.
        grades: Of each.
    """

    task: Task
    answers: tuple[str, ...]
    grades: tuple[float, ...]


def answer_tasks(
    model: LanguageModel,
    renderer: ChatRenderer,
    tasks: Sequence[Task],
    *,
    max_tokens: int = 64,
    length: int = 0,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    rows: int = 64,
    check: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Have a model answer tasks, and grade that.

    Args:
        model: A language model, of one device or of several that all hold it.
        renderer: How it is asked.
        tasks: What it is asked.
        max_tokens: Most tokens of an answer; one that does not end is wrong.
        length: Most tokens of a prompt and its answer; 0 is the model's context.
        samples: Answers to each.
        temperature: 0 takes the likeliest token, always.
        seed: Of the noise.
        rows: Answers that are drawn at a time.
        check: Is called every few tokens; may raise, to give up.
    """
    prompts = renderer.prompts([[said("user", task.prompt)] for task in tasks])
    requests = [
        Request(
            ids, SamplingConfig(temperature), max_tokens, seed + i * samples + j, renderer.end_ids
        )
        for i, ids in enumerate(prompts)
        for j in range(samples)
    ]
    engine = Engine(
        model,
        rows=rows,
        context=min(length or model.config.max_length, model.config.max_length),
        vocab_size=renderer.tokenizer.vocab_size,
        chunk=32,
        prefixes=int(samples > 1),
    )
    results = engine.run(requests, check)
    found = []
    for i, task in enumerate(tasks):
        texts, grades = [], []
        for result in results[i * samples : (i + 1) * samples]:
            ended = result.reason == "stop"
            text = renderer.tokenizer.decode(result.tokens[: len(result.tokens) - ended])
            texts.append(text)
            grades.append(grade(task, text) if ended else 0.0)
        found.append(Answered(task, tuple(texts), tuple(grades)))
    return found


def accuracies(answered: Sequence[Answered]) -> dict[str, float]:
    """Compute the share of exactly right answers: of each family, and as `all` their mean."""
    by_family: dict[str, list[float]] = defaultdict(list)
    for each in answered:
        by_family[each.task.family] += [float(x == 1.0) for x in each.grades]
    shares = {name: float(np.mean(grades)) for name, grades in sorted(by_family.items())}
    return shares | {"all": float(np.mean(list(shares.values())))}


def measure_tasks(
    model: LanguageModel,
    renderer: ChatRenderer,
    tasks: Sequence[Task],
    *,
    max_tokens: int = 64,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compute the share of tasks that a model's likeliest answer gets exactly right.

    Arguments: `answer_tasks`; result: `accuracies`.
    """
    return accuracies(answer_tasks(model, renderer, tasks, max_tokens=max_tokens, check=check))


def show_answers(answered: Sequence[Answered], most: int | None = None) -> str:
    """Show tasks with their answers, all or the first, for people."""
    lines = []
    for each in answered[:most]:
        mark = "right" if each.grades[0] == 1.0 else f"wrong, it is {each.task.answer!r}"
        lines.append(f"{each.task.prompt}\n  {each.answers[0]!r} ({mark})")
    return "\n".join(lines)
