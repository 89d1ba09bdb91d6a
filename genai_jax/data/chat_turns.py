"""Conversations as ids, and where the assistant's turns are in them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from genai_jax.data.chat_templates import ChatTemplate, ChatTemplateError, Message
from genai_jax.data.tokenizers import Ids, Tokenizer, digest_of


class Turns(NamedTuple):
    """A conversation as ids.

    Attributes:
        ids: Of the whole.
        turns: First and past-the-last place of what the assistant says in each of its turns, the
            token that ends the turn included: what it has to learn to write.
    """

    ids: Ids
    turns: tuple[tuple[int, int], ...]


@runtime_checkable
class ChatRenderer(Protocol):
    """What turns conversations into ids.

    Attributes:
        tokenizer: Of the model.
        template: In Jinja2's language, to be kept with a run.
        digest: SHA-256 of all that the ids depend on but the tokenizer, in hexadecimal.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    digest: str

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        ...

    def render(
        self, conversations: Sequence[Sequence[Message]], *, last_only: bool = False
    ) -> list[Turns]:
        """Render conversations, and say where the assistant's turns, or the last one's, are."""
        ...

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Ids]:
        """Render conversations as ids, up to where the assistant is to answer."""
        ...


class TemplateChat:
    """Renders conversations by any chat template.

    Where a turn begins is found by rendering what comes before it, with the beginning of an answer:
    these ids must begin the ids of the whole, as they do where the model is asked. It ends with the
    first id that ends answers; what a template writes after that (ChatML a newline) is not learnt.

    Attributes:
        tokenizer: Of the model.
        template: Of the model.
        digest: SHA-256 of all that the ids depend on but the tokenizer, in hexadecimal.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, today: str = "2024-07-26"
    ) -> None:
        """Take the template of a model.

        Args:
            tokenizer: Of the model.
            template: Of the model.
            today: The date that the template is told: rows must not depend on the clock. Llama 3's
                asks, and says this one itself where there is no clock.
        """
        self.tokenizer, self.template = tokenizer, template
        self._dated = dataclasses.replace(template, today=today)
        dates = [today] if "strftime_now" in template.source else []
        self.digest = digest_of(template.source, *sorted(template.tokens.items()), *dates)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.template.end_ids(self.tokenizer)

    def render(
        self, conversations: Sequence[Sequence[Message]], *, last_only: bool = False
    ) -> list[Turns]:
        """Render conversations, and say where the assistant's turns are.

        Args:
            conversations: Messages of each.
            last_only: Whether the last turn of the assistant is enough.

        Raises:
            ChatTemplateError: If the template refuses a conversation, writes another beginning
                before an answer than in the whole, or nothing that ends one.
        """
        wanted: list[tuple[Sequence[Message], bool]] = []
        places = []
        for messages in conversations:
            turns = [i for i, said in enumerate(messages) if said["role"] == "assistant"]
            places.append(turns[-1:] if last_only else turns)
            if 0 in places[-1]:
                raise ChatTemplateError(
                    "an answer must answer something, for a template to show where it begins; this "
                    "conversation begins with the assistant. Put a message before it."
                )
            wanted.append((messages, False))
            for i in places[-1]:
                wanted += [(messages[:i], True), (messages[: i + 1], False)]
        encoded = iter(self._dated.encode_batch(self.tokenizer, wanted))
        return [self._turns(next(encoded), turns, encoded) for turns in places]

    def _turns(self, whole: Ids, numbers: Sequence[int], encoded: Iterator[Ids]) -> Turns:
        """Find the turns of a conversation between what comes before each and its end."""
        turns = []
        for number in numbers:
            before, through = next(encoded), next(encoded)
            start = len(before)
            for ids in (through, whole):
                same = ids[:start] == before if len(ids) >= start else np.zeros(1, bool)
                if not same.all():
                    raise ChatTemplateError(
                        self._changed(number, before, ids, int(np.argmin(same)))
                    )
            # By `through` the end is this turn's own; in the whole it is where it is learnt.
            ends = [start + np.flatnonzero(self._is_end(x[start:])) for x in (through, whole)]
            if not ends[0].size or not ends[1].size:
                raise ChatTemplateError(
                    f"{self.template.name} must end an answer with one of the ids that end "
                    f"answers, {list(self.end_ids)}; it ends message {number} with none. Name "
                    "the token as `eos_token` in tokenizer_config.json."
                )
            turns.append((start, int(ends[1][0]) + 1))
        return Turns(whole, tuple(turns))

    def _is_end(self, ids: Ids) -> Bool[np.ndarray, " n"]:
        return np.isin(ids, self.end_ids)

    def _changed(self, number: int, before: np.ndarray, whole: np.ndarray, place: int) -> str:
        """Say that what comes before an answer depends on what comes after."""
        return (
            f"{self.template.name} must write the same before message {number}, an answer, as when "
            f"it is asked for one; the ids differ from place {place} on: "
            f"{self._near(before, place)!r} when asked, {self._near(whole, place)!r} in the whole. "
            "Learn the last answer of each conversation only, or take another template."
        )

    def _near(self, ids: np.ndarray, place: int) -> str:
        return self.tokenizer.decode(ids[place : place + 8])

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Ids]:
        """Render conversations as ids, up to where the assistant is to answer.

        Raises:
            ChatTemplateError: If the template refuses a conversation.
        """
        wanted = [(messages, True) for messages in conversations]
        return self._dated.encode_batch(self.tokenizer, wanted)
