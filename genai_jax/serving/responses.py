"""The objects of OpenAI's API that answers are made of, whole or in parts.

A stream's parts, put together, are what the whole answer would have been.
"""

import dataclasses
import functools
import json
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.serving.asked import Asked, Served
from genai_jax.serving.choices import Delta, Token

_LEAST_LOG_PROB = -9999.0  # stands for -inf, which JSON lacks
_PREFIX = {"completion": "cmpl", "chat": "chatcmpl"}
_WHOLE = {"completion": "text_completion", "chat": "chat.completion"}
_PART = {"completion": "text_completion", "chat": "chat.completion.chunk"}

DONE = b"data: [DONE]\n\n"
"""Ends a stream that has nothing more to say."""


def as_event(value: dict[str, Any]) -> bytes:
    """Write an object as a server-sent event."""
    return b"data: " + as_json(value) + b"\n\n"


def as_json(value: dict[str, Any]) -> bytes:
    """Write an object, in ASCII: there are line ends that not everyone takes for characters."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def models(served: Served) -> dict[str, Any]:
    """List the only model."""
    return {"object": "list", "data": [model(served)]}


def model(served: Served) -> dict[str, Any]:
    """Describe the model."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "genai_jax",
        "max_model_len": served.context,
    }


@dataclasses.dataclass
class Written:
    """A text as far as it has come.

    Attributes:
        parts: Its characters.
        tokens: Its tokens, where they are wanted.
        finish_reason: Why it ended; None while it has not.
        count: How many tokens it has.
    """

    parts: list[str] = dataclasses.field(default_factory=list)
    tokens: list[Token] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    count: int = 0


class Answer:
    """What is sent for a request."""

    def __init__(self, asked: Asked, served: Served) -> None:
        """Begin, with an id of its own."""
        self._asked, self._tokenizer = asked, served.tokenizer
        self._head = {
            "id": f"{_PREFIX[asked.kind]}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }
        self._begun: set[int] = set()

    def whole(self, texts: Sequence[Written]) -> dict[str, Any]:
        """Give the answer in one piece."""
        chat = self._asked.kind == "chat"
        choices = []
        for index, written in enumerate(texts):
            text = "".join(written.parts)
            said: dict[str, Any] = {"text": text}
            if chat:
                message = {"role": "assistant", "content": text, "refusal": None}
                said = {"message": message}
            log_probs = self._log_probs(written.tokens)
            choices.append(_choice(index, said, log_probs, written.finish_reason))
        counts = [written.count for written in texts]
        kind = _WHOLE[self._asked.kind]
        return self._head | {"object": kind, "choices": choices, "usage": self.usage(counts)}

    def part(self, index: int, delta: Delta, finish_reason: str | None) -> list[dict[str, Any]]:
        """Give what is sent when a text goes on, or ends."""
        if self._asked.kind == "completion":
            if not delta.text and not delta.tokens and finish_reason is None:
                return []
            said = {"text": delta.text}
            log_probs = self._log_probs(delta.tokens) if delta.tokens else None
            return [self._chunk(_choice(index, said, log_probs, finish_reason))]
        choices = []
        if index not in self._begun:
            self._begun.add(index)
            choices.append(_choice(index, {"delta": {"role": "assistant", "content": ""}}))
        if delta.text or delta.tokens:
            log_probs = self._log_probs(delta.tokens) if delta.tokens else None
            choices.append(_choice(index, {"delta": {"content": delta.text}}, log_probs))
        if finish_reason is not None:
            choices.append(_choice(index, {"delta": {}}, None, finish_reason))
        return [self._chunk(choice) for choice in choices]

    def last(self, counts: Sequence[int]) -> list[dict[str, Any]]:
        """Give what is sent when all texts have ended."""
        if not self._asked.include_usage:
            return []
        return [self._chunk() | {"usage": self.usage(counts)}]

    def usage(self, counts: Sequence[int]) -> dict[str, int]:
        """Count the tokens."""
        return {
            "prompt_tokens": self._asked.prompt_tokens,
            "completion_tokens": sum(counts),
            "total_tokens": self._asked.prompt_tokens + sum(counts),
        }

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head | {"object": _PART[self._asked.kind], "choices": list(choices)}
        return chunk | ({"usage": None} if self._asked.include_usage else {})

    def _log_probs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        if self._asked.kind == "chat":
            return _chat_log_probs(self._tokenizer, tokens)
        return _completion_log_probs(self._tokenizer, tokens, self._asked.logprobs)


def _choice(
    index: int,
    said: dict[str, Any],
    log_probs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    """Give what is said of one text."""
    return {"index": index, **said, "logprobs": log_probs, "finish_reason": finish_reason}


def _completion_log_probs(
    tokenizer: Tokenizer, tokens: Sequence[Token], most: int
) -> dict[str, Any]:
    """Write log-probabilities as `completions` has them: lists, and the token among the others."""
    name = functools.partial(token_text, tokenizer)
    likeliest = None
    if most:
        likeliest = [
            _by_name(name, (*token.likeliest, (token.token, token.log_prob))) for token in tokens
        ]
    return {
        "tokens": [name(token.token) for token in tokens],
        "token_logprobs": [_number(token.log_prob) for token in tokens],
        "top_logprobs": likeliest,
        "text_offset": [token.offset for token in tokens],
    }


def _by_name(
    name: Callable[[int], str], likeliest: Iterable[tuple[int, float]]
) -> dict[str, float]:
    """Give log-probabilities by the texts of their tokens; of those with one text, the first."""
    found: dict[str, float] = {}
    for token, log_prob in likeliest:
        found.setdefault(name(token), _number(log_prob))
    return found


def _chat_log_probs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """Write log-probabilities as `chat/completions` has them: an object a token."""

    def one(token: int, log_prob: float) -> dict[str, Any]:
        data = tokenizer.decode_bytes([token])
        return {
            "token": token_text(tokenizer, token),
            "logprob": _number(log_prob),
            "bytes": list(data) or None,
        }

    content = [
        one(token.token, token.log_prob)
        | {"top_logprobs": [one(*other) for other in token.likeliest]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""Write a token: its text, `bytes:\xe2\x82` where that is none, or a special one's name."""
    data = tokenizer.decode_bytes([token])
    if not data:
        names = tokenizer.special_ids.items()
        return next((name for name, special in names if special == token), f"<|{token}|>")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _number(log_prob: float) -> float:
    """Write a log-probability, which JSON must be able to."""
    return log_prob if log_prob > _LEAST_LOG_PROB else _LEAST_LOG_PROB
