r"""Rewards of tokens from the score of an answer: bounds, penalties, and the KL from the reference.

Everything is pure and in float32. B answers, T tokens of a row.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MissingEnd = Literal["none", "replace", "subtract"]


def counted_answers(scores: Float[Array, " b"], mask: Float[Array, "b t"]) -> Bool[Array, " b"]:
    """Whether an answer has a finite score and a token: others are excluded from everything."""
    return jnp.isfinite(scores) & (mask > 0).any(-1)


def clip_scores(scores: Float[Array, " b"], limit: float) -> Float[Array, " b"]:
    """Hold scores within ±limit (10 in OpenRLHF); 0 is off."""
    return jnp.clip(scores, -limit, limit) if limit else scores


def score_missing_end(
    scores: Float[Array, " b"],
    ended: Bool[Array, " b"],
    *,
    rule: MissingEnd = "none",
    penalty: float = 1.0,
) -> Float[Array, " b"]:
    """Punish answers that were cut before they ended.

    Args:
        scores: Of whole answers.
        ended: Whether the answer has its end token.
        rule: replace (OpenAI): the score becomes -penalty; subtract (TRL): it falls by it; none.
        penalty: At least 0.
    """
    if rule == "none":
        return scores
    punished = jnp.full_like(scores, -penalty) if rule == "replace" else scores - penalty
    return jnp.where(ended, scores, punished)


def overlong_penalty(
    lengths: Int[Array, " b"], *, longest: int, buffer: int, most: float = 1.0
) -> Float[Array, " b"]:
    r"""Compute what is taken off for length, linearly over the last tokens that are allowed.

    $\mathrm{most} \cdot \mathrm{clip}((|y| - (L - c)) / c, 0, 1)$.

    Args:
        lengths: $|y|$, counted tokens.
        longest: L, most tokens of an answer.
        buffer: c, tokens over which it grows, in [1, L]; 0 is off.
        most: At L, and beyond.

    Reference: Yu et al. (DAPO), arXiv:2503.14476, equation 13, with the sign turned.
    """
    if not buffer:
        return jnp.zeros(lengths.shape, jnp.float32)
    return most * jnp.clip((lengths - (longest - buffer)) / buffer, 0.0, 1.0)


def token_rewards(
    scores: Float[Array, " b"],
    log_ratio: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    beta: float | Float[Array, ""],
) -> Float[Array, "b t"]:
    r"""Spread the score of an answer over its tokens, with the KL from the reference.

    $r_t = -\beta (\log \pi_{old} - \log \pi_{ref})_t + \mathrm{score} \cdot [t = \mathrm{last}]$:
    its expectation is $E r - \beta KL(\pi \| \pi_{ref})$, and so is its gradient, later tokens
    included.

    Args:
        scores: Of whole answers.
        log_ratio: $\log \pi_{old} - \log \pi_{ref}$ of each token.
        mask: 1 = counted; the score comes with the last that is.
        beta: β, in score per nat; 0 leaves the divergence out.

    Reference: Ziegler et al., arXiv:1909.08593, equation 2; Ouyang et al., arXiv:2203.02155,
        equation 2.
    """
    counted = mask > 0
    places = jnp.arange(mask.shape[-1])
    last = jnp.where(counted, places, -1).max(-1, keepdims=True)
    divergence = jnp.where(counted, log_ratio, 0.0).astype(jnp.float32)
    return jnp.where(counted & (places == last), scores[:, None], 0.0) - beta * divergence
