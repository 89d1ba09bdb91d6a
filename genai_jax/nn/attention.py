"""Scaled dot-product attention behind one dispatcher that refuses what it cannot honour.

B batch, T queries, S keys, N query heads, K key and value heads, G = N / K, H head size.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from genai_jax.nn.dropout import dropout

Implementation = Literal["auto", "dense", "blocked"]

# Finite, so that a row without a single visible key gives a mean instead of NaN.
_MASKED = -1e30
# Number of the place of the noise of `dropout`; the residual branches take 0 and 1.
_DROPOUT_PLACE = 2


class _Rule(NamedTuple):
    """What `blocked` must know before it is traced."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    block: int


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    segment_ids: Int[Array, "b s"] | None = None,
    attention_mask: Bool[Array, "b t s"] | None = None,
    dropout_keys: Key[Array, " b"] | None = None,
    dropout_rate: float = 0.0,
    implementation: Implementation = "auto",
) -> Float[Array, "b t n h"]:
    r"""Mix the values that each query may see: $\mathrm{softmax}(c(s\,QK^\top) + M)\,V$.

    $c(x) = \kappa \tanh(x / \kappa)$ if there is a soft-cap $\kappa$, else the identity. Logits and
    softmax are float32. Without `attention_mask` token t sees token s if all of these hold: s ≤ t
    (`causal`), t − s < `window`, and both lie in the same segment.

    Args:
        query: Queries; N is a multiple of K, and head n reads key head n // G.
        key: Keys.
        value: Values.
        scale: Factor on the logits, often $H^{-1/2}$.
        causal: Whether to hide the future.
        window: How many newest tokens are seen, itself among them; None is all.
        softcap: Bound of the logits.
        segment_ids: Number of the document of each token in a packed row.
        attention_mask: True = may attend; replaces the rules above (decoding with a cache).
        dropout_keys: One key a row for dropout of the probabilities.
        dropout_rate: Probability of zero.
        implementation: `dense` holds all logits at once; `blocked` walks over blocks of queries,
            skips the keys that no query of the block may see, and recomputes the logits in the
            backward pass; `auto` takes `blocked` where it can.

    Returns:
        The mixed values, in the dtype of `query`.

    Raises:
        ValueError: If the arguments contradict each other, or the implementation cannot do it.

    Reference: Vaswani et al., arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al.,
        arXiv:2305.13245; soft-cap: Gemma 2, arXiv:2408.00118, section 2; `blocked`: Dao,
        arXiv:2307.08691, algorithms 1 and 2 (blocks of queries only).
    """
    dropping = dropout_keys is not None and dropout_rate > 0
    _refuse_contradictions(query, key, causal, window, segment_ids, attention_mask)
    needs_dense = {
        "attention_mask": attention_mask is not None,
        "attention dropout": dropping,
    }
    if implementation == "blocked" and any(needs_dense.values()):
        raise ValueError(
            f"`blocked` attention does not do {' or '.join(k for k, v in needs_dense.items() if v)}"
            ". Choose implementation 'dense' or 'auto'."
        )
    if implementation == "dense" or any(needs_dense.values()):
        visible = attention_mask
        if visible is None:
            visible = _visible(
                0, query.shape[1], 0, key.shape[1], causal, window, segment_ids, segment_ids
            )
        probabilities = _probabilities(query, key, scale, softcap, visible)
        if dropping:
            assert dropout_keys is not None
            probabilities = dropout(probabilities, dropout_keys, dropout_rate, _DROPOUT_PLACE)
        out = jnp.einsum("bkgts,bskh->btkgh", probabilities.astype(value.dtype), value)
        return out.reshape(query.shape)
    rule = _Rule(scale, causal, window, softcap, _block_length(query.shape[1]))
    # Heads before tokens, and the queries that share a key head side by side: plain products.
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (query, key, value)]
    return jnp.swapaxes(_blocked(rule, *heads_first, segment_ids), 1, 2)


def _refuse_contradictions(
    query: Array,
    key: Array,
    causal: bool,
    window: int | None,
    segment_ids: Array | None,
    attention_mask: Array | None,
) -> None:
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            f"The number of query heads must be a multiple of the number of key heads; "
            f"got {query.shape[2]} and {key.shape[2]}."
        )
    if attention_mask is not None and (segment_ids is not None or window is not None):
        raise ValueError(
            "`attention_mask` says all about what is seen; got `segment_ids` or `window` too. "
            "Fold them into the mask."
        )
    if attention_mask is None and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"Without `attention_mask` queries and keys are the same tokens; got "
            f"{query.shape[1]} and {key.shape[1]}. Give the mask."
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"`window` is at least 1 and needs `causal`; got {window}, {causal}.")


def _visible(
    t_0: int,
    t_1: int,
    s_0: int,
    s_1: int,
    causal: bool,
    window: int | None,
    query_segments: Int[Array, "b all_t"] | None,
    key_segments: Int[Array, "b all_s"] | None,
) -> Bool[Array, "#b t s"]:
    """Say which of the keys s_0..s_1 the queries t_0..t_1 may see."""
    ahead = jnp.arange(t_0, t_1)[:, None] - jnp.arange(s_0, s_1)
    visible = jnp.ones_like(ahead, bool) if not causal else ahead >= 0
    if window is not None:
        visible &= ahead < window
    if query_segments is None or key_segments is None:
        return visible[None]
    return visible & (query_segments[:, t_0:t_1, None] == key_segments[:, None, s_0:s_1])


def _probabilities(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    scale: float,
    softcap: float | None,
    visible: Bool[Array, "#b t s"],
) -> Float[Array, "b k g t s"]:
    b, t, n, h = query.shape
    k = key.shape[2]
    grouped = (query * scale).reshape(b, t, k, n // k, h)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    return jax.nn.softmax(jnp.where(visible[:, None, None], logits, _MASKED), axis=-1)


def _block_length(length: int) -> int:
    """Choose the queries of a block: one block where the logits are small, else about 64 to 512."""
    return length if length <= 64 else min(512, max(64, -(-length // 4)))


def _blocks(rule: _Rule, length: int) -> list[tuple[int, int, int, int]]:
    """List `(t_0, t_1, s_0, s_1)`: blocks of queries with the range of keys that they may see."""
    blocks = []
    for t_0 in range(0, length, rule.block):
        t_1 = min(t_0 + rule.block, length)
        s_1 = t_1 if rule.causal else length
        s_0 = 0 if rule.window is None else max(0, t_0 - rule.window + 1)
        blocks.append((t_0, t_1, s_0, s_1))
    return blocks


def _block_logits(
    rule: _Rule,
    query: Float[Array, "b n t h"],
    key: Float[Array, "b k s h"],
    segment_ids: Int[Array, "b t"] | None,
    block: tuple[int, int, int, int],
) -> tuple[Float[Array, "b k g block seen"], Bool[Array, "#b 1 1 block seen"]]:
    """Compute the (capped) logits of one block, and which of them count."""
    t_0, t_1, s_0, s_1 = block
    b, n, _, h = query.shape
    k = key.shape[1]
    rows = (query[:, :, t_0:t_1] * rule.scale).reshape(b, k, (n // k) * (t_1 - t_0), h)
    logits = jnp.einsum(
        "bkrh,bksh->bkrs", rows, key[:, :, s_0:s_1], preferred_element_type=jnp.float32
    )
    if rule.softcap is not None:
        logits = rule.softcap * jnp.tanh(logits / rule.softcap)
    visible = _visible(*block, rule.causal, rule.window, segment_ids, segment_ids)
    return logits.reshape(b, k, n // k, t_1 - t_0, s_1 - s_0), visible[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(
    rule: _Rule,
    query: Float[Array, "b n t h"],
    key: Float[Array, "b k t h"],
    value: Float[Array, "b k t h"],
    segment_ids: Int[Array, "b t"] | None,
) -> Float[Array, "b n t h"]:
    return _blocked_forward(rule, query, key, value, segment_ids)[0]


def _blocked_forward(rule, query, key, value, segment_ids):  # type: ignore[no-untyped-def]
    b, n, length, h = query.shape
    k = key.shape[1]
    outs, log_sums = [], []
    for block in _blocks(rule, length):
        t_0, t_1, s_0, s_1 = block
        logits, visible = _block_logits(rule, query, key, segment_ids, block)
        logits = jnp.where(visible, logits, _MASKED)
        peak = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - peak)
        total = weights.sum(-1, keepdims=True)
        rows = weights.astype(value.dtype).reshape(b, k, -1, s_1 - s_0)
        out = jnp.einsum(
            "bkrs,bksh->bkrh", rows, value[:, :, s_0:s_1], preferred_element_type=jnp.float32
        )
        # Dividing the H sums is cheaper than dividing the S weights.
        out = out.reshape(b, k, n // k, t_1 - t_0, h) / total
        outs.append(out.astype(query.dtype).reshape(b, n, t_1 - t_0, h))
        log_sums.append(peak + jnp.log(total))
    out = jnp.concatenate(outs, axis=2)
    log_sum = jnp.concatenate(log_sums, axis=3)
    return out, (query, key, value, segment_ids, out, log_sum)


def _blocked_backward(rule, saved, out_grad):  # type: ignore[no-untyped-def]
    r"""Recompute the probabilities from the saved log-sums, block by block.

    $dV = P^\top dO$, $dS = P \odot (dO\,V^\top - \delta)$ with $\delta = \sum_h dO \odot O$, then
    $dQ = s\,dS\,K$ and $dK = s\,dS^\top Q$ (arXiv:2307.08691, algorithm 2).
    """
    query, key, value, segment_ids, out, log_sum = saved
    b, n, length, h = query.shape
    k = key.shape[1]
    delta = jnp.sum(out_grad.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    delta = delta.reshape(b, k, n // k, length, 1)
    query_grads = []
    key_grad = jnp.zeros(key.shape, jnp.float32)
    value_grad = jnp.zeros(value.shape, jnp.float32)
    for block in _blocks(rule, length):
        t_0, t_1, s_0, s_1 = block
        rows = (b, k, (n // k) * (t_1 - t_0))
        logits, visible = _block_logits(rule, query, key, segment_ids, block)
        p = jnp.where(visible, jnp.exp(logits - log_sum[:, :, :, t_0:t_1]), 0.0)
        o = out_grad[:, :, t_0:t_1].reshape(*rows, h)
        p_grad = jnp.einsum(
            "bkrh,bksh->bkrs", o, value[:, :, s_0:s_1], preferred_element_type=jnp.float32
        )
        logits_grad = p * (p_grad.reshape(p.shape) - delta[:, :, :, t_0:t_1])
        if rule.softcap is not None:
            logits_grad *= 1 - jnp.square(logits / rule.softcap)
        logits_grad = (rule.scale * logits_grad).astype(query.dtype).reshape(*rows, s_1 - s_0)
        query_grad = jnp.einsum("bkrs,bksh->bkrh", logits_grad, key[:, :, s_0:s_1])
        query_grads.append(query_grad.reshape(b, n, t_1 - t_0, h))
        q = query[:, :, t_0:t_1].reshape(*rows, h)
        key_grad = key_grad.at[:, :, s_0:s_1].add(jnp.einsum("bkrs,bkrh->bksh", logits_grad, q))
        p = p.astype(value.dtype).reshape(*rows, s_1 - s_0)
        value_grad = value_grad.at[:, :, s_0:s_1].add(jnp.einsum("bkrs,bkrh->bksh", p, o))
    return (
        jnp.concatenate(query_grads, axis=2).astype(query.dtype),
        key_grad.astype(key.dtype),
        value_grad.astype(value.dtype),
        None,
    )


_blocked.defvjp(_blocked_forward, _blocked_backward)
