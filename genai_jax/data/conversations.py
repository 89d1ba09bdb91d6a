"""What post-training learns from: demonstrations, answers put in order, and judged answers.

All three begin with a conversation, a tuple of messages with `role` and `content`, which is text.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence

from genai_jax.data.chat_templates import Message, check_messages

Messages = tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A demonstration: a conversation whose assistant is to be imitated.

    Attributes:
        messages: In their order.
        silent: Numbers of the assistant's messages that are read, not learnt (`weight` 0 in
            OpenAI's form).
        where: File and line that it is from, for people.
    """

    messages: Messages
    silent: tuple[int, ...] = ()
    where: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no conversation."""
        check_messages(self.messages)
        for number in self.silent:
            known = range(len(self.messages))
            if number not in known or self.messages[number]["role"] != "assistant":
                raise ValueError(
                    f"`silent` must hold numbers of the assistant's messages; got {number}."
                )

    @classmethod
    def of(cls, prompt: str, answer: str) -> "Example":
        """Make the example of a user's prompt and the assistant's answer."""
        return cls((said("user", prompt), said("assistant", answer)))

    @property
    def opening(self) -> Messages:
        """What is said before the assistant's first answer."""
        return opening_of(self.messages)


@dataclasses.dataclass(frozen=True)
class Preference:
    """Answers to one prompt, in an order that somebody prefers.

    Attributes:
        prompt: The conversation that they answer.
        answers: The best first; at least two.
        margin: By how much the first is better, in nats of the Bradley-Terry model; None if nobody
            said.
        where: File and line that it is from, for people.
    """

    prompt: Messages
    answers: tuple[str, ...]
    margin: float | None = None
    where: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse what puts nothing in order."""
        if len(self.answers) < 2:
            raise ValueError(
                f"there must be two answers or more to prefer one; got {len(self.answers)}. Leave "
                "the line out, or make an example of it."
            )
        for answer in self.answers:
            check_messages((*self.prompt, said("assistant", answer)))
        if self.margin is not None and not math.isfinite(self.margin):
            raise ValueError(f"`margin` must be finite; got {self.margin}. Leave it out.")

    @property
    def opening(self) -> Messages:
        """What is said before the assistant's first answer."""
        return opening_of(self.prompt)


@dataclasses.dataclass(frozen=True)
class Judged:
    """An answer that somebody found good or bad, beside no other.

    Attributes:
        prompt: The conversation that it answers.
        answer: What the assistant says.
        desirable: Whether it is good.
        where: File and line that it is from, for people.
    """

    prompt: Messages
    answer: str
    desirable: bool
    where: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no conversation."""
        check_messages((*self.prompt, said("assistant", self.answer)))

    @property
    def opening(self) -> Messages:
        """What is said before the assistant's first answer."""
        return opening_of(self.prompt)


def said(role: str, content: str) -> Message:
    """Make a message."""
    return {"role": role, "content": content}


def opening_of(messages: Sequence[Message]) -> Messages:
    """Give what is said before the assistant first answers somebody; all, if it never does."""
    asked = False
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and asked:
            return tuple(messages[:number])
        asked = asked or message["role"] in ("user", "tool")
    return tuple(messages)


def digest_of_messages(messages: Sequence[Message]) -> bytes:
    """Compute the BLAKE2b digest of messages, 32 bytes."""
    content = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=True)
    return hashlib.blake2b(content.encode(), digest_size=32).digest()
