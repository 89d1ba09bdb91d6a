"""What a client may ask for, as numbers and names; what a served model is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from genai_jax.constraints.token_automaton import TokenAutomaton
from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.requests import Request

Kind = Literal["completion", "chat"]


@runtime_checkable
class Chat(Protocol):
    """What turns a conversation into what a model reads."""

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Give the ids of a conversation, the beginning of an answer included.

        Raises:
            ValueError: If the template refuses the conversation.
        """

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Give the ids that end an answer."""


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as its clients see it.

    Attributes:
        name: By which they ask for it.
        tokenizer: Of its texts.
        vocab_size: Number of ids that may be drawn.
        context: Most tokens of a prompt and what follows it.
        chat: What turns conversations into what it reads; None if it was not tuned for them.
        compile_regex: Makes of a regular expression what a text must be; raises ValueError.
        compile_schema: Makes it of a JSON Schema; raises ValueError.
        fingerprint: Changes when the same request and seed may give another text.
        created: When the server began, in seconds since 1970.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int
    chat: Chat | None
    compile_regex: Callable[[str], TokenAutomaton]
    compile_schema: Callable[[Mapping[str, Any]], TokenAutomaton]
    fingerprint: str = ""
    created: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much anyone may ask for.

    Attributes:
        body: Most bytes of a request.
        requests: Most requests under way, those that wait for a row included; more are told to
            come again.
        choices: Most texts that a request may ask for: its prompts, times `n`.
        messages: Most messages of a conversation.
        max_tokens: Most tokens of a text.
        seconds: Within which a text is written: after that, it ends with what it has, as if
            `max_tokens` were reached. A request that has nothing by then fails.
        unread: Most parts of a stream, of a few tokens each, that wait for a reader who is slower
            than the model; where more would have to, it ends.
        delivery: Seconds that a client has to send its request, and to read the rest of a stream
            after the time is over.
    """

    body: int = 1 << 22
    requests: int = 64
    choices: int = 16
    messages: int = 1024
    max_tokens: int = 1 << 16
    seconds: float = 600.0
    unread: int = 1 << 12
    delivery: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"`{field.name}` must be above 0; got {getattr(self, field.name)}."
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """What a client asks for.

    Attributes:
        kind: Text that follows prompts, or the answer in a conversation.
        requests: One for each text: `n` of the first prompt, `n` of the second, ...
        prompt_tokens: Of all prompts, each counted once.
        stop: Texts before which to end.
        logprobs: Of how many likeliest tokens the probabilities are wanted, beside each token's
            own; None wants none.
        stream: Whether text is sent as it comes.
        include_usage: Whether a stream ends with the numbers of tokens.
    """

    kind: Kind
    requests: tuple[Request, ...]
    prompt_tokens: int
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
