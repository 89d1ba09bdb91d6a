"""What changes logits before the temperature: biases, penalties, what must come or must not.

The order is that of Hugging Face's `generate`: bias, penalties, least length, forced tokens. B
rows, V vocabulary, F forced tokens at most, S ids that end a row at most.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_Numbers = np.ndarray | Array


class Adjustments(NamedTuple):
    """What is asked for, for every row.

    Attributes:
        bias: Is added to the logits; -inf forbids a token.
        repetition: Divides positive logits, and multiplies others, of tokens that stand in the
            prompt or were drawn; 1 changes nothing.
        presence: Is subtracted from the logits of tokens that were drawn.
        frequency: Is subtracted as often as they were drawn.
        min_tokens: Until so many are drawn, no id that ends the row is.
        forced: The first tokens to be drawn, whatever their probabilities; padded by -1.
    """

    bias: Float[_Numbers, "b v"]
    repetition: Float[_Numbers, " b"]
    presence: Float[_Numbers, " b"]
    frequency: Float[_Numbers, " b"]
    min_tokens: Int[_Numbers, " b"]
    forced: Int[_Numbers, "b f"]


class Seen(NamedTuple):
    """What stands in the rows so far.

    Attributes:
        prompt: Whether a token stands in the prompt.
        drawn: How often it was drawn.
        length: How many were drawn in all.
    """

    prompt: Bool[_Numbers, "b v"]
    drawn: Int[_Numbers, "b v"]
    length: Int[_Numbers, " b"]


def adjust_logits(
    logits: Float[Array, "b v"],
    adjustments: Adjustments,
    seen: Seen,
    stop_ids: Int[_Numbers, "b s"],
) -> Float[Array, "b v"]:
    r"""Compute what the temperature then divides.

    With bias b, penalties r (repetition), p (presence) and f (frequency), and $c_v$ the number of
    times that token v was drawn: $l'_v = (l_v + b_v)\,r^{\mp 1} - p\,[c_v > 0] - f\,c_v$, with the
    exponent of r negative for positive logits, and r = 1 for tokens that do not stand in the row.

    Args:
        logits: Of the model; -inf for what it must not draw.
        adjustments: Of the rows.
        seen: What stands in them.
        stop_ids: Ids that end a row, padded by -1.

    Reference: repetition: Keskar et al. (CTRL), arXiv:1909.05858, section 4.1, with the sign of the
        logit taken into account; presence and frequency: OpenAI's API reference.
    """
    logits = logits + adjustments.bias
    penalised = jnp.any(
        (adjustments.repetition != 1) | (adjustments.presence != 0) | (adjustments.frequency != 0)
    )
    logits = jax.lax.cond(penalised, lambda x: _penalise(x, adjustments, seen), lambda x: x, logits)
    early = jnp.asarray(seen.length < adjustments.min_tokens)
    logits = jax.lax.cond(
        jnp.any(early), lambda x: _without(x, jnp.asarray(stop_ids), early), lambda x: x, logits
    )
    most = adjustments.forced.shape[1]
    place = jnp.minimum(seen.length, most - 1)[:, None]
    forced = jnp.take_along_axis(jnp.asarray(adjustments.forced), place, axis=1)
    applies = (seen.length[:, None] < most) & (forced >= 0)
    only = jnp.where(jnp.arange(logits.shape[1]) == forced, 0.0, -jnp.inf)
    return jnp.where(applies, only, logits)


def _penalise(
    logits: Float[Array, "b v"], adjustments: Adjustments, seen: Seen
) -> Float[Array, "b v"]:
    was_drawn = seen.drawn > 0
    factor = adjustments.repetition[:, None]
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = jnp.where(seen.prompt | was_drawn, repeated, logits)
    logits = logits - adjustments.presence[:, None] * was_drawn
    return logits - adjustments.frequency[:, None] * seen.drawn


def _without(
    logits: Float[Array, "b v"], ids: Int[Array, "b s"], rows: Bool[Array, " b"]
) -> Float[Array, "b v"]:
    """Forbid some ids in some rows."""
    places = jnp.where(rows[:, None] & (ids >= 0), ids, logits.shape[1])  # beyond the end: dropped
    return jax.vmap(lambda row, at: row.at[at].set(-jnp.inf, mode="drop"))(logits, places)


def count_drawn(seen: Seen, tokens: Int[Array, " b"], counts: Bool[Array, " b"]) -> Seen:
    """Count a token of each row, where it counts."""
    places = jnp.where(counts, tokens, seen.drawn.shape[1])
    drawn = jax.vmap(lambda row, at: row.at[at].add(1, mode="drop"))(
        jnp.asarray(seen.drawn), places
    )
    return Seen(seen.prompt, drawn, seen.length + counts)


def can_be_drawn_from(logits: Float[Array, "b v"]) -> Bool[Array, " b"]:
    """Whether a row's logits are numbers, and not all of them -inf."""
    highest = logits.max(-1)  # NaN where any is
    return jnp.isfinite(highest)
