"""How likely a language model finds texts, token by token.

B rows, T tokens of a row, D width, V vocabulary; L tokens of the model's context.

A text that is longer than the context is read in windows. Each begins with what begins texts (a
model without its first token is lost), ends `stride` scored tokens after the one before, and
reaches back as far as L lets it; it scores the tokens that no window before has. So every token is
scored once, and given at least L - stride tokens before it, or all that there are.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int32

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.objectives.next_token import NextTokenModel
from genai_jax.objectives.token_log_probs import score_rows

_BATCH_TOKENS = 2**13
_LEAST_LENGTH = 16


class Query(NamedTuple):
    """What is asked about.

    Attributes:
        lead: Ids that every window begins with, never scored.
        tokens: Ids of the text.
        first: Tokens of the text that are given and not scored. Without `lead` nothing predicts the
            first one, which is then never scored.
    """

    lead: tuple[int, ...]
    tokens: Int32[np.ndarray, " n"]
    first: int = 0

    @property
    def given(self) -> int:
        """Count the tokens of the text that are not scored."""
        return max(self.first, 0 if self.lead else 1)


class Scores(NamedTuple):
    """Of each scored token.

    Attributes:
        log_probs: Its log-probability, in nats.
        ranks: 1 if none was likelier, 2 if one was, ...
    """

    log_probs: Float64[np.ndarray, " n"]
    ranks: Int32[np.ndarray, " n"]


class _Window(NamedTuple):
    """A row: inputs and targets, of which the last `scored` count.

    Attributes:
        query: Number of its query.
        ids: The inputs and, one further, the targets.
        scored: Number of targets at the end that are scored.
    """

    query: int
    ids: Int32[np.ndarray, " t"]
    scored: int


def score_tokens(
    model: NextTokenModel,
    queries: Sequence[Query],
    *,
    length: int | None = None,
    stride: int | None = None,
) -> list[Scores]:
    r"""Compute $\log p(x_i \mid x_{<i})$ of tokens, and how many others were likelier.

    Rows are padded at their end to lengths that are powers of two, and batches to numbers of rows
    that are, so that few programs are compiled whatever is asked. The logits of a batch are never
    in memory at once.

    Args:
        model: A language model.
        queries: Texts.
        length: L, at most the model's `max_length`, which None takes.
        stride: Tokens that a window scores, but for the first window of a text, which scores all
            it has; from 1 (each token with all the context that there is; slow) to L - 1. None is
            half of the context.

    Raises:
        ValueError: If a bound is not met, or an id is not the model's.
    """
    most = model.config.max_length
    length = most if length is None else length
    if not 2 <= length <= most:
        raise ValueError(
            f"`length` must be from 2 to the model's context, {most}; got {length}. Leave it out."
        )
    windows: list[_Window] = []
    for number, query in enumerate(queries):
        _check_ids(query, model.config.vocab_size)
        windows += _windows(number, query, length, stride)
    found: list[list[Scores]] = [[] for _ in queries]
    by_size: dict[int, list[tuple[int, _Window]]] = defaultdict(list)
    for place, window in enumerate(windows):
        by_size[min(length, _power_of_two(len(window.ids) - 1))].append((place, window))
    scores: dict[int, Scores] = {}
    for size, group in by_size.items():
        rows = max(1, _BATCH_TOKENS // size)
        for start in range(0, len(group), rows):
            batch = group[start : start + rows]
            each = _score_rows(model, [window for _, window in batch], size)
            scores |= zip([place for place, _ in batch], each, strict=True)
    for place, window in enumerate(windows):
        found[window.query].append(scores[place])
    return [_join(parts) for parts in found]


def _check_ids(query: Query, vocab_size: int) -> None:
    """Refuse ids that the model has no row for."""
    ids = np.concatenate([np.array(query.lead, np.int64), query.tokens])
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"ids must be from 0 to {vocab_size - 1}; got {ids.min()} to {ids.max()}. Encode with "
            "the tokenizer that the model was trained with."
        )


def _windows(number: int, query: Query, length: int, stride: int | None) -> Iterator[_Window]:
    """Cut a text into windows."""
    lead = np.array(query.lead, np.int32)
    room = length - len(lead)  # for tokens of the text among the inputs
    if room < 1:
        raise ValueError(
            f"a context must hold what begins a text and a token more; got {length} and "
            f"{len(lead)} ids that begin it. Give a longer `length`."
        )
    stride = max(1, room // 2) if stride is None else stride
    if not 1 <= stride <= room:
        raise ValueError(f"`stride` must be from 1 to {room}; got {stride}.")
    done, end = query.given, len(query.tokens)
    # The first window takes what it can; what begins it predicts a token too.
    reached = room + bool(len(lead))
    while done < end:
        until = min(end, max(done + stride, reached))
        since = max(0, until - 1 - room)
        ids = np.concatenate([lead, query.tokens[since:until]]).astype(np.int32)
        yield _Window(number, ids, until - done)
        done = until


def _score_rows(model: NextTokenModel, windows: Sequence[_Window], size: int) -> list[Scores]:
    """Score a batch of windows, padded to rows of `size` tokens."""
    tokens = np.zeros((_power_of_two(len(windows), least=1), size), np.int32)
    targets = tokens.copy()
    for row, window in enumerate(windows):
        count = len(window.ids) - 1
        tokens[row, :count], targets[row, :count] = window.ids[:-1], window.ids[1:]
    log_probs, ranks = jax.device_get(_score_batch(model, tokens, targets))
    return [
        Scores(
            log_probs[row, len(window.ids) - 1 - window.scored : len(window.ids) - 1].astype(float),
            ranks[row, len(window.ids) - 1 - window.scored : len(window.ids) - 1],
        )
        for row, window in enumerate(windows)
    ]


@jax.jit
def _score_batch(
    model: NextTokenModel, tokens: Int[Array, "b t"], targets: Int[Array, "b t"]
) -> tuple[Float[Array, "b t"], Int[Array, "b t"]]:
    scores = score_rows(model, tokens, targets)
    return scores.log_probs, scores.ranks


def _power_of_two(number: int, least: int = _LEAST_LENGTH) -> int:
    """Round up to a power of two."""
    return max(least, 1 << (number - 1).bit_length())


def _join(parts: Sequence[Scores]) -> Scores:
    empty = Scores(np.zeros(0), np.zeros(0, np.int32))
    return Scores(*map(np.concatenate, zip(empty, *parts, strict=True)))


@dataclass(frozen=True)
class TextScore:
    """How likely a text is.

    Attributes:
        tokens: Its ids that were scored.
        log_probs: Of each, in nats.
        ranks: Of each, 1 for the likeliest.
        num_bytes: Bytes of UTF-8 that they stand for.
    """

    tokens: Int32[np.ndarray, " n"]
    log_probs: Float64[np.ndarray, " n"]
    ranks: Int32[np.ndarray, " n"]
    num_bytes: int

    @property
    def log_prob(self) -> float:
        """Of the whole text, in nats."""
        return float(self.log_probs.sum())

    @property
    def bits_per_byte(self) -> float:
        r"""Bits of an ideal code for the text, $-\log_2 p$, over its bytes."""
        return -self.log_prob / math.log(2) / max(1, self.num_bytes)

    @property
    def perplexity(self) -> float:
        r"""$e^{-\frac{1}{n} \log p}$ over the n tokens: depends on the tokenizer."""
        with np.errstate(over="ignore"):
            return float(np.exp(-self.log_prob / len(self.tokens)))


def score_texts(
    model: NextTokenModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    prompt: str = "",
    length: int | None = None,
    stride: int | None = None,
) -> list[TextScore]:
    """Score texts, each as the beginning of a document, or as what follows a prompt.

    A document begins with the tokenizer's `begin_ids`, or where it has none with `eot_id`, the end
    of the one before; where there is neither, nothing predicts the first token of a text, and its
    bytes do not count. Prompt and text are encoded as one, as they would be read; a token that
    holds characters of both is counted as the text's.

    Args:
        model: A language model.
        tokenizer: The one that the model was trained with.
        texts: Each with a token to score.
        prompt: What all of them follow.
        length: L, as in `score_tokens`.
        stride: As in `score_tokens`.

    Raises:
        ValueError: If a text has no token to score, or as `score_tokens` does.
    """
    ends = () if tokenizer.eot_id is None else (tokenizer.eot_id,)
    lead = tuple(tokenizer.begin_ids) or ends
    given = len(tokenizer.decode_bytes(tokenizer.encode(prompt))) if prompt else 0
    queries, sizes = [], []
    for text, tokens in zip(
        texts, tokenizer.encode_batch([prompt + text for text in texts]), strict=True
    ):
        first = 0
        if prompt:
            read = np.cumsum([len(tokenizer.decode_bytes([token])) for token in tokens.tolist()])
            first = int(np.searchsorted(read, given, side="right"))
        query = Query(lead, tokens, first)
        if query.given >= len(tokens):
            raise ValueError(
                f"a text must have a token that something predicts; got {text[:40]!r}. Leave it "
                "out, or write more."
            )
        unscored = tokenizer.decode_bytes(tokens[first : query.given])
        queries.append(query)
        sizes.append(len(text.encode("utf-8")) - len(unscored))
    return [
        TextScore(query.tokens[query.given :], *scores, num_bytes)
        for query, scores, num_bytes in zip(
            queries, score_tokens(model, queries, length=length, stride=stride), sizes, strict=True
        )
    ]
