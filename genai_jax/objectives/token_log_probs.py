"""Log-probabilities of tokens: one function for training, for scoring and for what was drawn.

Whatever compares probabilities (a policy with the one that wrote, with a reference, with another
answer) takes both sides from here, so that equal parameters give a ratio of one.

B rows, T tokens of a row, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genai_jax.objectives.next_token import NextTokenModel

# Logits of one chunk: 2^22 float32 are 16 MiB, which stays in a last-level cache.
_CHUNK_LOGITS = 2**22


class TokenScores(NamedTuple):
    """What a head says of each token.

    Attributes:
        log_probs: Log-probability of the token, in nats.
        entropy: Of the distribution that it is from, in nats.
        ranks: 1 if no id was likelier than the token, 2 if one was, ...
    """

    log_probs: Float[Array, "b t"]
    entropy: Float[Array, "b t"]
    ranks: Int[Array, "b t"]


def token_scores(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    *,
    softcap: float | None = None,
    temperature: float | Array = 1.0,
    chunk: int | None = None,
) -> TokenScores:
    r"""Score the tokens of a linear head, chunk by chunk along T.

    $\log p(y) = l_y / \tau - \log \sum_v e^{l_v / \tau}$ with $l = c(h W^\top)$ in float32.
    Logits are computed again for the gradient, and those of a whole batch are never in memory.

    Args:
        hidden: h.
        head: W.
        targets: y, ids below V.
        softcap: Bound κ of the logits, $c(x) = \kappa \tanh(x / \kappa)$; None is none.
        temperature: τ, above 0; ratios are those of what was drawn only if it is that of the draw.
        chunk: Tokens of a row in one chunk, which divide T; None keeps its logits to 16 MiB.
    """
    rows, length, width = hidden.shape
    if chunk is None:
        most = max(1, min(length, _CHUNK_LOGITS // max(1, rows * head.shape[0])))
        chunk = max(size for size in range(1, most + 1) if length % size == 0)
    elif length % chunk:
        raise ValueError(f"`chunk` must divide the row; got {chunk} and {length} tokens.")
    table = head.astype(hidden.dtype)

    def score(part: tuple[Array, Array]) -> TokenScores:
        logits = jnp.einsum("bcd,vd->bcv", part[0], table, preferred_element_type=jnp.float32)
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        logits = logits / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        # By comparison: the gradient of a gather is a scatter, which is slow on a CPU.
        is_target = part[1][..., None] == jnp.arange(logits.shape[-1])
        own = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        # An id that cannot be drawn has the logit -inf, and adds nothing.
        likely = jnp.where(jnp.isneginf(logits), 0.0, logits)
        entropy = log_z - jnp.sum(jnp.exp(logits - log_z[..., None]) * likely, axis=-1)
        ranks = 1 + jnp.sum(logits > own[..., None], axis=-1, dtype=jnp.int32)
        return TokenScores(own - log_z, entropy, ranks)

    if chunk == length:
        return jax.checkpoint(score)((hidden, targets))
    parts = (
        jnp.moveaxis(hidden.reshape(rows, -1, chunk, width), 1, 0),
        jnp.moveaxis(targets.reshape(rows, -1, chunk), 1, 0),
    )
    scored = jax.lax.map(jax.checkpoint(score), parts)
    return TokenScores(*(jnp.moveaxis(x, 0, 1).reshape(rows, length) for x in scored))


def score_rows(
    model: NextTokenModel,
    tokens: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    *,
    positions: Int[Array, "#b t"] | None = None,
    segment_ids: Int[Array, "b t"] | None = None,
    key: Key[Array, " b"] | None = None,
    temperature: float | Array = 1.0,
) -> TokenScores:
    """Score `targets[t]` given the tokens up to t.

    Args:
        model: A language model.
        tokens: Rows, padded at the right with any ids: nothing before the padding sees it.
        targets: The same, one further.
        positions: Tokens since the start of the document; None counts from the row's start.
        segment_ids: Number of the document of each token; None is one document a row.
        key: One key a row for dropout; None switches it off.
        temperature: τ, which divides the logits.
    """
    hidden = model.hidden(tokens, positions=positions, segment_ids=segment_ids, key=key)
    return token_scores(
        hidden,
        model.head(),
        targets,
        softcap=model.config.final_softcap,
        temperature=temperature,
    )


def sum_log_probs(
    model: NextTokenModel, batch: Any, *, temperature: float | Array = 1.0
) -> Float[Array, "b k"]:
    r"""Compute $\log \pi(y_k \mid x)$ of K answers a row: the sum over their counted tokens.

    Args:
        model: A language model.
        batch: `tokens`, `targets` and `loss_mask` [B, K, T].
        temperature: τ, which divides the logits.
    """
    shape = batch["tokens"].shape
    flat = {n: batch[n].reshape(-1, shape[-1]) for n in ("tokens", "targets", "loss_mask")}
    scores = score_rows(model, flat["tokens"], flat["targets"], temperature=temperature)
    return jnp.sum(scores.log_probs * flat["loss_mask"], axis=-1).reshape(shape[:-1])
