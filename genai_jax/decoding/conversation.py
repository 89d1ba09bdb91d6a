"""A conversation with a model: what was said is read through the chat template, and answered."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from genai_jax.data.chat_templates import ChatTemplate, Message
from genai_jax.data.tokenizers import Ids, Tokenizer
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request
from genai_jax.decoding.text import stream_request


class Conversation:
    """Messages of a user and answers of a model.

    Attributes:
        messages: All that was said, with `role` and `content`.
        forgotten: How many messages, the oldest, did not fit into the context at the last answer.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        request: Request,
        *,
        system: str = "",
        stop: Sequence[str] = (),
    ) -> None:
        """Begin a conversation.

        Args:
            engine: Of the model; one that keeps a prefix reads only what is new.
            tokenizer: The one that the model was trained with.
            template: The model's own.
            request: How answers are drawn; its prompt is replaced, the template's ids that end a
                turn are added, and the n-th answer has the seed `seed + n`.
            system: What the model is told before all else; empty is nothing.
            stop: Texts before which an answer ends.
        """
        self.messages: list[Message] = [_said("system", system)] if system else []
        self.forgotten = 0
        self._engine, self._tokenizer, self._template = engine, tokenizer, template
        self._request, self._stop = request, tuple(stop)
        self._answers, self._answering = 0, False

    def answer(self, text: str, check: Callable[[], None] = lambda: None) -> Iterator[str]:
        """Say something, and hear the answer as it comes.

        What was heard of an answer that is broken off counts as said.

        Args:
            text: What the user says.
            check: Called between parts; may raise, to give up.

        Raises:
            ValueError: If the template or the engine refuses it, or what was said last does not fit
                into the context by itself. It then counts as not said.
            RuntimeError: If another answer is under way.
        """
        if self._answering:
            raise RuntimeError("one answer must end, or be closed, before the next one begins.")
        said = [*self.messages, _said("user", text)]
        ends = (*self._template.end_ids(self._tokenizer), *self._request.stop_ids)
        request = dataclasses.replace(
            self._request,
            prompt=self._fitting(said),
            seed=self._request.seed + self._answers,
            stop_ids=tuple(dict.fromkeys(ends)),
        )
        heard: list[str] = []
        self._answering = True
        try:
            parts = stream_request(
                self._engine, self._tokenizer, request, stop=self._stop, check=check
            )
            for part in parts:
                heard.append(part)
                yield part
        except ValueError:  # it was never taken in
            said = self.messages
            raise
        finally:
            self._answering = False
            if said is not self.messages:
                self.messages = [*said, _said("assistant", "".join(heard))]
                self._answers += 1

    def _fitting(self, said: list[Message]) -> Ids:
        """Encode what fits, leaving out the oldest messages but the system's."""
        room = self._engine.context - min(self._request.max_tokens, self._engine.context // 2)
        kept = [message for message in said if message["role"] != "system"]
        system = [message for message in said if message["role"] == "system"]
        self.forgotten = 0
        prompt = self._template.encode(self._tokenizer, said)
        while len(prompt) > room and len(kept) > 2:
            kept = kept[2:]  # a question and its answer: templates want them in turn
            self.forgotten += 2
            prompt = self._template.encode(self._tokenizer, [*system, *kept])
        if len(prompt) >= self._engine.context:
            raise ValueError(
                f"what is said must fit into a context of {self._engine.context} tokens; it takes "
                f"{len(prompt)}. Say it in parts, or give a larger context."
            )
        return prompt


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}
