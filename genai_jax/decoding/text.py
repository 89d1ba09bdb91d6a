"""From a prompt as text to what a model writes, as it comes."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from genai_jax.decoding.generate import DecodingModel, Generation
from genai_jax.decoding.sampling import SamplingConfig

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
    `max_tokens`, or where the model's context is full. Joined, the parts do not depend on how the
    text was cut into them.

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
        ValueError: If a stop text is empty, or as `Generation` does.
    """
    if "" in stop:
        raise ValueError("a stop text must not be empty: every text ends before that; got ''.")
    generation = Generation(
        model,
        [prompt_tokens(tokenizer, prompt)],
        sampling,
        max_tokens=max_tokens,
        seed=seed,
        stop_ids=tokenizer.end_ids,
        vocab_size=tokenizer.vocab_size,
    )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    held = ""  # may be the beginning of a stop text
    while not generation.ended[0]:
        check()
        tokens = generation.advance(_TOKENS_AT_A_TIME).tokens[0]
        held += decoder.decode(tokenizer.decode_bytes(tokens), final=bool(generation.ended[0]))
        found = [held.index(text) for text in stop if text in held]
        if found:
            yield held[: min(found)]
            return
        kept = 0 if generation.ended[0] else _longest_beginning(held, stop)
        cut = len(held) - kept
        if cut:
            yield held[:cut]
        held = held[cut:]


def _longest_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of a text that a stop text begins with."""
    longest = max((len(word) for word in stop), default=0)
    return next(
        (n for n in range(min(longest, len(text)), 0, -1) if text.endswith(_prefixes(stop, n))), 0
    )


def _prefixes(stop: Sequence[str], length: int) -> tuple[str, ...]:
    return tuple(word[:length] for word in stop if len(word) >= length)
