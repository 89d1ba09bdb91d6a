"""Next-token cross-entropy that never holds the logits of a whole batch.

B rows, T tokens of a row, D width, V vocabulary.
"""

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genai_jax.types import Batch, Term, Terms

# Logits of one chunk: 2^22 float32 are 16 MiB, which stays in a last-level cache.
_CHUNK_LOGITS = 2**22


@runtime_checkable
class NextTokenModel(Protocol):
    """What the objective needs of a model."""

    config: Any

    def hidden(
        self,
        tokens: Array,
        *,
        positions: Array | None,
        segment_ids: Array | None,
        key: Key[Array, " b"] | None,
    ) -> Array:
        """Compute what the head reads, [B, T, D]."""

    def head(self) -> Array:
        """Return the head's table, [V, D]."""


class CrossEntropy(NamedTuple):
    """Sums over the counted tokens.

    Attributes:
        total: nll + z_weight · z, what is differentiated.
        nll: Negative log-likelihood in nats.
        z: Squares of the log-partition.
        correct: Tokens that were the likeliest.
    """

    total: Float[Array, ""]
    nll: Float[Array, ""]
    z: Float[Array, ""]
    correct: Float[Array, ""]


class _Rule(NamedTuple):
    z_weight: float
    softcap: float | None
    chunk: int


def cross_entropy(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    z_weight: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> CrossEntropy:
    r"""Sum the cross-entropy of a linear head over tokens, chunk by chunk along T.

    $\sum_i m_i (\log Z_i - l_{i,y_i} + \lambda \log^2 Z_i)$ with $l = c(h W^\top)$ and
    $Z = \sum_v e^{l_v}$ in float32. Gradients are computed in the forward pass, while a chunk's
    logits are at hand, so that they are computed once and never stored. Only `total` has one.

    Args:
        hidden: h.
        head: W.
        targets: y, ids below V.
        mask: m, 1 = counted.
        z_weight: λ; 1e-4 in PaLM.
        softcap: Bound κ of the logits, $c(x) = \kappa \tanh(x / \kappa)$; None is none.
        chunk: Tokens of a row in one chunk; None keeps a chunk's logits to 16 MiB a device.

    Reference: z-loss: Chowdhery et al. (PaLM), arXiv:2204.02311, section 5; gradients in the
        forward pass: Wijmans et al., "Cut Your Losses", arXiv:2411.09009, in its plainest form.
    """
    if chunk is None:
        rows, length, _ = hidden.shape
        chunk = max(1, min(length, _CHUNK_LOGITS // max(1, rows * head.shape[0])))
        # Whole chunks, so that no token is padded.
        chunk = max(c for c in range(1, chunk + 1) if length % c == 0)
    elif hidden.shape[1] % chunk:
        raise ValueError(f"`chunk` must divide the row; got {chunk} and {hidden.shape[1]} tokens.")
    return CrossEntropy(*_sums(_Rule(z_weight, softcap, chunk), hidden, head, targets, mask))


def _chunk_sums(
    rule: _Rule,
    hidden: Float[Array, "b c d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b c"],
    mask: Float[Array, "b c"],
) -> tuple[CrossEntropy, Float[Array, "b c v"]]:
    """Compute the sums of a chunk, and the gradient of `total` by its raw logits."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    raw = jax.lax.dot_general(
        flat, head, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    ).reshape(*targets.shape, -1)
    logits = raw if rule.softcap is None else rule.softcap * jnp.tanh(raw / rule.softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    nll = jnp.sum(mask * (log_z - target_logit))
    z = jnp.sum(mask * jnp.square(log_z))
    correct = jnp.sum(mask * (target_logit >= logits.max(-1)))
    # d total / d logit_v = m [(1 + 2 λ log Z) p_v - 1(v = y)]
    probabilities = jnp.exp(logits - log_z[..., None])
    factor = mask * (1 + 2 * rule.z_weight * log_z)
    gradient = factor[..., None] * probabilities - jnp.where(is_target, mask[..., None], 0.0)
    if rule.softcap is not None:
        gradient *= 1 - jnp.square(logits / rule.softcap)
    return CrossEntropy(nll + rule.z_weight * z, nll, z, correct), gradient


def _split(x: Array, chunk: int) -> Array:
    """Turn [B, T, ...] into chunks along T: [T / chunk, B, chunk, ...]."""
    pieces = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(pieces, 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(rule: _Rule, hidden: Array, head: Array, targets: Array, mask: Array) -> CrossEntropy:
    table = head.astype(hidden.dtype)
    if rule.chunk == hidden.shape[1]:
        return _chunk_sums(rule, hidden, table, targets, mask)[0]

    def step(sums: CrossEntropy, chunk: tuple[Array, ...]) -> tuple[CrossEntropy, None]:
        new, _ = _chunk_sums(rule, chunk[0], table, *chunk[1:])
        return jax.tree.map(jnp.add, sums, new), None

    chunks = tuple(_split(x, rule.chunk) for x in (hidden, targets, mask))
    return jax.lax.scan(step, CrossEntropy(*[jnp.zeros((), jnp.float32)] * 4), chunks)[0]


def _sums_forward(  # type: ignore[no-untyped-def]
    rule: _Rule, hidden: Array, head: Array, targets: Array, mask: Array
):
    table = head.astype(hidden.dtype)

    def gradients(hidden: Array, targets: Array, mask: Array) -> tuple[CrossEntropy, Array, Array]:
        sums, logit_grad = _chunk_sums(rule, hidden, table, targets, mask)
        rows = logit_grad.astype(hidden.dtype).reshape(-1, table.shape[0])
        flat = hidden.reshape(-1, hidden.shape[-1])
        head_grad = jax.lax.dot_general(
            rows, flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return sums, (rows @ table).reshape(hidden.shape), head_grad

    if rule.chunk == hidden.shape[1]:
        sums, hidden_grad, head_grad = gradients(hidden, targets, mask)
        return sums, (hidden_grad, head_grad.astype(head.dtype))

    def step(carry: Any, chunk: tuple[Array, ...]) -> tuple[Any, Array]:
        sums, total_head_grad = carry
        new, hidden_grad, head_grad = gradients(*chunk)
        return (jax.tree.map(jnp.add, sums, new), total_head_grad + head_grad), hidden_grad

    chunks = tuple(_split(x, rule.chunk) for x in (hidden, targets, mask))
    start = (
        CrossEntropy(*[jnp.zeros((), jnp.float32)] * 4),
        jnp.zeros(head.shape, jnp.float32),
    )
    (sums, head_grad), hidden_grads = jax.lax.scan(step, start, chunks)
    hidden_grad = jnp.moveaxis(hidden_grads, 0, 1).reshape(hidden.shape)
    return sums, (hidden_grad, head_grad.astype(head.dtype))


def _sums_backward(rule: _Rule, saved: tuple[Array, Array], by: CrossEntropy) -> tuple[Any, ...]:
    hidden_grad, head_grad = saved
    scale = by.total
    return (
        (scale * hidden_grad).astype(hidden_grad.dtype),
        (scale * head_grad).astype(head_grad.dtype),
        None,
        None,
    )


_sums.defvjp(_sums_forward, _sums_backward)


def next_token(
    model: NextTokenModel, batch: Batch, context: Any = None, *, z_loss: float = 0.0
) -> Terms:
    r"""Compute the loss of predicting each next token.

    $L = \frac{1}{\sum m} \sum_i m_i (-\log p(y_i \mid x_{\le i}) + \lambda \log^2 Z_i)$.

    Args:
        model: A language model.
        batch: `tokens`, `targets` and `loss_mask` [B, T]; `segment_ids` and `positions` where rows
            are packed; `key`, one a row, where there is dropout.
        context: Not read.
        z_loss: λ, keeps the log-partition near zero.

    Returns:
        `loss`, which is trained on, and as metrics `nll` (nats per token), `accuracy`, and `z`,
        the mean square of the log-partition. Without z-loss `loss` is `nll`, and `z` is left out.
    """
    hidden = model.hidden(
        batch["tokens"],
        positions=batch.get("positions"),
        segment_ids=batch.get("segment_ids"),
        key=batch.get("key"),
    )
    mask = batch["loss_mask"].astype(jnp.float32)
    sums = cross_entropy(
        hidden,
        model.head(),
        batch["targets"],
        mask,
        z_weight=z_loss,
        softcap=model.config.final_softcap,
    )
    weight = mask.sum()
    terms = {"loss": Term(sums.total, weight), "accuracy": Term(sums.correct, weight, 0.0)}
    if z_loss:
        terms |= {"nll": Term(sums.nll, weight, 0.0), "z": Term(sums.z, weight, 0.0)}
    return terms
