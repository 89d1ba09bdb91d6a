"""From a prompt as text to what a model writes, as it comes."""

import codecs
import collections
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from genai_jax.decoding.engine import Engine, Generated, Piece
from genai_jax.decoding.generate import fitting_engine
from genai_jax.decoding.loop import DecodingModel
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig

_NONE = np.zeros(0, np.int32)
# Enough for a call to be cheap beside its tokens, few enough for a reader to see them come.
_TOKENS_AT_A_TIME = 8


@runtime_checkable
class TextTokenizer(Protocol):
    """What generation needs of a tokenizer.

    Attributes:
        vocab_size: Number of ids.
        eot_id: The id that stands between documents; None if there is none.
        begin_ids: Ids that every text begins with.
        end_ids: Ids that end what a model writes.
    """

    vocab_size: int
    eot_id: int | None
    begin_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def encode(self, text: str) -> np.ndarray:
        """Turn text into ids."""

    def decode_bytes(self, ids: np.ndarray) -> bytes:
        """Turn ids into the bytes that they stand for."""


def prompt_tokens(tokenizer: TextTokenizer, prompt: str) -> np.ndarray:
    """Encode a prompt as the beginning of a document.

    An empty prompt is the end of a document before; where the tokenizer knows no documents, a
    line's end, as in nanoGPT.
    """
    if not prompt and not tokenizer.begin_ids:
        return tokenizer.encode("\n") if tokenizer.eot_id is None else np.array([tokenizer.eot_id])
    return np.concatenate([tokenizer.begin_ids, tokenizer.encode(prompt)]).astype(np.int32)


class TextParts:
    """Text out of tokens as they come: whole characters, and nothing from a stop text on.

    Joined, the parts do not depend on how the tokens came.

    Attributes:
        ended: Whether a stop text has come.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        """Begin a text.

        Args:
            tokenizer: The one that the model was trained with.
            stop: Texts before which to end.

        Raises:
            ValueError: If a stop text is empty.
        """
        if "" in stop:
            raise ValueError("a stop text must not be empty: every text ends before that; got ''.")
        self.ended = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop text

    def take(self, tokens: np.ndarray, *, last: bool) -> str:
        """Give what can be shown once these tokens have come too.

        Args:
            tokens: The next ones.
            last: Whether none come after them.
        """
        if self.ended:
            return ""
        text = self._held + self._decoder.decode(self._tokenizer.decode_bytes(tokens), final=last)
        # The one that is whole first, as if characters came one by one; the longest of these.
        found = [(text.index(word) + len(word), -len(word)) for word in self._stop if word in text]
        if found:
            self.ended = True
            end, length = min(found)
            return text[: end + length]
        cut = len(text) - (0 if last else _longest_beginning(text, self._stop))
        self._held = text[cut:]
        return text[:cut]


def stream_text(
    model: DecodingModel,
    tokenizer: TextTokenizer,
    prompt: str,
    sampling: SamplingConfig,
    *,
    max_tokens: int,
    seed: int = 0,
    stop: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Write what follows a prompt, a few tokens at a time.

    The text ends where the model ends the document, before the first of the stop texts, after
    `max_tokens`, or where the model's context is full.

    Args:
        model: A language model.
        tokenizer: The one that the model was trained with.
        prompt: What the text begins with; not repeated.
        sampling: How tokens are drawn.
        max_tokens: Most tokens to draw.
        seed: Of the noise.
        stop: Texts before which to end.
        check: Called between parts; may raise, to give up.

    Raises:
        ValueError: If a stop text is empty, or as `generate` does.
    """
    request = Request(
        prompt_tokens(tokenizer, prompt),
        sampling,
        max_tokens=max_tokens,
        seed=seed,
        stop_ids=tokenizer.end_ids,
    )
    engine = fitting_engine(model, [request], vocab_size=tokenizer.vocab_size)
    yield from stream_request(engine, tokenizer, request, stop=stop, check=check)


def stream_request(
    engine: Engine,
    tokenizer: TextTokenizer,
    request: Request,
    *,
    stop: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> Generator[str, None, Generated]:
    """Write what follows a prompt, as one of the requests of an engine.

    Args:
        engine: Of the model.
        tokenizer: The one that the model was trained with.
        request: What is asked for.
        stop: Texts before which to end.
        check: Called between parts; may raise, to give up.

    Returns:
        What became of it.

    Raises:
        ValueError: If a stop text is empty, or as `Engine.submit` does.
    """
    text, pieces = TextParts(tokenizer, stop), collections.deque[Piece]()
    ticket = engine.submit(request, pieces.append)
    results: dict[int, Generated] = {}
    try:
        while ticket not in results:
            check()
            found = engine.step(_TOKENS_AT_A_TIME)
            results = {n: result for n, result in found.items() if n == ticket}
            engine.keep({n: result for n, result in found.items() if n != ticket})
            tokens = np.concatenate([_NONE, *(piece.tokens for piece in pieces)])
            pieces.clear()
            part = text.take(tokens, last=ticket in results)
            if part:
                yield part
            if text.ended:
                break
    finally:
        ended = results[ticket] if ticket in results else engine.cancel(ticket)
    return ended._replace(reason="stop") if text.ended else ended


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of a text that a stop text begins with."""
    longest = max((len(word) for word in stop), default=0)
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if text.endswith(_prefixes(stop, n))), 0
    )


def _prefixes(stop: Sequence[str], length: int) -> tuple[str, ...]:
    return tuple(word[:length] for word in stop if len(word) >= length)
