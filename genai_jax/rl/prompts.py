"""Prompts for a policy: embedded tasks, requests for replies, or conversations of your own."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.conversations import Messages, said
from genai_jax.data.random_order import permutation
from genai_jax.data.tasks.task import Task
from genai_jax.rl.rollouts import Prompt


@dataclasses.dataclass(frozen=True)
class TaskPrompts:
    """Tasks by number, as prompts.

    Attributes:
        renderer: How they are asked.
        task: Gives task i, for i from 0 on.
    """

    renderer: ChatRenderer
    task: Callable[[int], Task]

    def take(self, first: int, count: int) -> list[Prompt]:
        """Give the prompts first ... first + count - 1."""
        tasks = [self.task(i) for i in range(first, first + count)]
        rendered = self.renderer.prompts([[said("user", task.prompt)] for task in tasks])
        return [Prompt(ids, task.prompt, task) for ids, task in zip(rendered, tasks, strict=True)]


@dataclasses.dataclass(frozen=True)
class ConversationPrompts:
    """Conversations, epoch after epoch, each in another order.

    Attributes:
        renderer: How they are rendered.
        conversations: Up to where the assistant is to answer.
        seed: Of the order.
        tasks: What graders need of each; none has none.
    """

    renderer: ChatRenderer
    conversations: Sequence[Messages]
    seed: int
    tasks: Sequence[Any] = ()

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to ask."""
        if not self.conversations:
            raise ValueError("there must be a prompt; got none.")

    def take(self, first: int, count: int) -> list[Prompt]:
        """Give the prompts first ... first + count - 1."""
        chosen: list[int] = []
        total = len(self.conversations)
        while len(chosen) < count:
            epoch, place = divmod(first + len(chosen), total)
            order = permutation(self.seed, f"prompts of epoch {epoch}", total)
            chosen += order[place : place + count - len(chosen)].tolist()
        asked = [self.conversations[i] for i in chosen]
        return [
            Prompt(ids, messages[-1]["content"], self.tasks[i] if self.tasks else None)
            for ids, messages, i in zip(self.renderer.prompts(asked), asked, chosen, strict=True)
        ]
