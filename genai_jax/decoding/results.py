"""What becomes of requests: tokens as they come, and all of them with why they ended."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from genai_jax.decoding.loop import Written

Reason = Literal["stop", "length", "context", "truncated", "rolled", "cancelled", "broken"]


class Piece(NamedTuple):
    """Tokens of a request, in the order in which they were drawn.

    Attributes:
        tokens: The tokens, the stop id included where there was one.
        log_probs: log p(token | all before) of the model itself: before everything else.
        drawn_log_probs: Logarithm of the probability with which it was drawn: after penalties,
            constraint, temperature and filters. The difference of the two is what a policy gradient
            needs to know of the filters.
        likeliest: The likeliest ids in the place of each, as many as were asked for; -1 where there
            are no more.
        their_log_probs: Of the model.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    likeliest: np.ndarray
    their_log_probs: np.ndarray


class Generated(NamedTuple):
    """What became of a request.

    Attributes:
        tokens: As in `Piece`, as are the next four.
        log_probs: Of the model.
        drawn_log_probs: With which they were drawn.
        likeliest: The likeliest ids.
        their_log_probs: Of the model.
        reason: Why it ended. `stop`: a stop id, or what nothing can follow in a constrained text.
            `length`: `max_tokens`. `context`: the model's context is full. `truncated`, `rolled`:
            one of these two, after tokens were dropped since they exceed the context. `cancelled`:
            the caller ended it. `broken`: the model's logits are no numbers, or leave nothing to
            draw.
        cut: How many tokens were dropped.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    likeliest: np.ndarray
    their_log_probs: np.ndarray
    reason: Reason
    cut: int


def take_piece(written: Written, row: int, alternatives: int) -> Piece:
    """Copy the tokens of one row out of what a call has drawn."""
    length = int(written.length[row])
    tokens, log_probs, drawn, likeliest, theirs = (x[row, :length] for x in written[:5])
    parts = (tokens, log_probs, drawn, likeliest[:, :alternatives], theirs[:, :alternatives])
    return Piece(*(np.array(part) for part in parts))


def join(pieces: Sequence[Piece], alternatives: int, reason: Reason, cut: int) -> Generated:
    """Put all pieces of a request together."""
    ids, numbers = np.zeros(0, np.int32), np.zeros(0, np.float32)
    none = np.zeros((0, alternatives), np.int32)
    nothing = Piece(ids, numbers, numbers, none, none.astype(np.float32))
    whole = Piece(*(np.concatenate(part) for part in zip(nothing, *pieces, strict=True)))
    return Generated(*whole, reason, cut)
