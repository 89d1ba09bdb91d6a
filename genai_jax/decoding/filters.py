"""Which tokens may be drawn: top-k, top-p, min-p and typical, by thresholds without a sort.

Every setting is an array with one value a row, so that rows of one batch may differ, and changing a
value compiles nothing. B rows, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

_Numbers = np.ndarray | Array


class Filters(NamedTuple):
    """What the filters keep, for every row; they apply in this order.

    Attributes:
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Of these, keep the fewest likeliest whose probabilities sum to p; 1 keeps all.
        min_p: Of these, keep those at least this many times as likely as the likeliest.
        typical_p: Of these, keep the fewest whose surprise is nearest to what is expected and whose
            probabilities sum to p; 1 keeps all.
    """

    top_k: Int[_Numbers, " b"]
    top_p: Float[_Numbers, " b"]
    min_p: Float[_Numbers, " b"]
    typical_p: Float[_Numbers, " b"]


def kept_tokens(logits: Float[Array, "b v"], filters: Filters) -> Bool[Array, "b v"]:
    r"""Say which tokens all filters keep; at least one.

    A token that is as good as the last one kept is kept too. Each filter sees the distribution that
    the ones before have left, made to sum to one. The order is that of Hugging Face's `generate`.

    Args:
        logits: After the temperature; -inf is never kept, unless all are.
        filters: Of the rows.

    Reference: top-k: Fan et al., arXiv:1805.04833, section 5; top-p: Holtzman et al.,
        arXiv:1904.09751, eqs. 2 and 3; min-p: Nguyen et al., arXiv:2407.01082, section 3; typical:
        Meister et al., arXiv:2202.00666, eq. 13.
    """
    steps: tuple[tuple[_Numbers, Callable[..., Array]], ...] = (
        (filters.top_k > 0, _likeliest_k),
        (filters.top_p < 1, _likeliest_p),
        (filters.min_p > 0, _likely_enough),
        (filters.typical_p < 1, _typical),
    )
    values = (filters.top_k, filters.top_p, filters.min_p, filters.typical_p)
    kept = jnp.ones(logits.shape, bool)
    likeliest = logits >= logits.max(-1, keepdims=True)
    for (wanted, keep), value in zip(steps, values, strict=True):
        # Most batches want few filters, and should not pay for the others.
        found = jax.lax.cond(
            jnp.any(wanted),
            lambda kept, keep=keep, value=value: kept & keep(logits, kept, value[:, None]),
            lambda kept: kept,
            kept,
        )
        # A share that rounds to nothing asks for no token; one must be left.
        found = jnp.where(found.any(-1, keepdims=True), found, likeliest & kept)
        kept = jnp.where(wanted[:, None], found, kept)
    return kept


def _likeliest_k(
    logits: Float[Array, "b v"], kept: Bool[Array, "b v"], k: Int[_Numbers, "b 1"]
) -> Bool[Array, "b v"]:
    return _fewest(logits, lambda some: jnp.sum(some, -1, keepdims=True) >= k)


def _likeliest_p(
    logits: Float[Array, "b v"], kept: Bool[Array, "b v"], p: Float[_Numbers, "b 1"]
) -> Bool[Array, "b v"]:
    probabilities = _normalised(logits, kept)
    return _fewest(logits, lambda some: _mass(probabilities, some) >= p)


def _likely_enough(
    logits: Float[Array, "b v"], kept: Bool[Array, "b v"], p: Float[_Numbers, "b 1"]
) -> Bool[Array, "b v"]:
    return logits >= logits.max(-1, keepdims=True) + jnp.log(p)


def _typical(
    logits: Float[Array, "b v"], kept: Bool[Array, "b v"], p: Float[_Numbers, "b 1"]
) -> Bool[Array, "b v"]:
    r"""Keep tokens in the order of $|-\log p(v) - H|$, H the entropy of what is left."""
    log_p = jax.nn.log_softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)
    probabilities = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(probabilities > 0, probabilities * log_p, 0), -1, keepdims=True)
    nearness = -jnp.abs(log_p + entropy)  # -inf where log_p is
    return _fewest(nearness, lambda some: _mass(probabilities, some) >= p)


def _normalised(logits: Float[Array, "b v"], kept: Bool[Array, "b v"]) -> Float[Array, "b v"]:
    return jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)


def _mass(probabilities: Float[Array, "b v"], some: Bool[Array, "b v"]) -> Float[Array, "b 1"]:
    return jnp.sum(jnp.where(some, probabilities, 0), -1, keepdims=True)


def _fewest(
    scores: Float[Array, "b v"], enough: Callable[[Bool[Array, "b v"]], Bool[Array, "b 1"]]
) -> Bool[Array, "b v"]:
    """Find the smallest set {v: score_v >= threshold} that is enough.

    The threshold is built bit by bit from the top: 32 sums over V instead of a sort, and exact.
    """
    ranks = _ranks(scores)

    def try_bit(i: Array, threshold: UInt32[Array, "b 1"]) -> UInt32[Array, "b 1"]:
        higher = threshold | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(enough(ranks >= higher), higher, threshold)

    lowest = jnp.zeros((scores.shape[0], 1), jnp.uint32)
    return ranks >= jax.lax.fori_loop(0, 32, try_bit, lowest)


def _ranks(x: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Map float32 to unsigned integers in the same order."""
    x = jnp.where(x == 0, 0.0, x)  # -0.0 is as large as 0.0
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)
