"""Distillation: learn the next-token distributions of a larger model, not only its tokens.

B rows, T tokens of a row, D width (the teacher's may differ), V vocabulary of both.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genai_jax.objectives.next_token import NextTokenModel
from genai_jax.objectives.reference import check_same_vocabulary
from genai_jax.types import Batch, Objective, Term, Terms

# Logits of one chunk: 2^22 float32 are 16 MiB, which stays in a last-level cache.
_CHUNK_LOGITS = 2**22

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What is compared with the teacher, and how much beside the tokens themselves.

    Attributes:
        divergence: forward_kl (KL from teacher to student, which covers all that the teacher
            says), reverse_kl (from student to teacher, which keeps to what it says most) or
            jensen_shannon (between the two, by `mixture`).
        temperature: τ, above 0, which divides the logits of both; above 1 what is unlikely counts
            for more.
        mixture: Share of the teacher in the mixture of jensen_shannon, in (0, 1).
        weight: λ of the divergence, in [0, 1]; 1 - λ is that of the next-token loss.
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    mixture: float = 0.5
    weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and an option that would be ignored."""
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}. Try 1.")
        if not 0 < self.mixture < 1:
            raise ValueError(
                f"`mixture` must be in (0, 1); got {self.mixture}. Its ends, divided by it and by "
                "1 - it, are forward_kl and reverse_kl."
            )
        if self.mixture != 0.5 and self.divergence != "jensen_shannon":
            raise ValueError(
                f"`mixture` belongs to jensen_shannon; got {self.mixture} with divergence "
                f"{self.divergence!r}. Leave it out."
            )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"`weight` must be in [0, 1]; got {self.weight}. Try 0.5.")


class Comparison(NamedTuple):
    """Of each token.

    Attributes:
        divergence: Of the two distributions at the temperature, in nats.
        nll: Of the token under the student at temperature 1, in nats.
        correct: Whether the student finds the token the likeliest.
        agrees: Whether student and teacher find the same token the likeliest.
    """

    divergence: Float[Array, "..."]
    nll: Float[Array, "..."]
    correct: Float[Array, "..."]
    agrees: Float[Array, "..."]


def divergence_of(
    config: DistillationConfig,
    student: Float[Array, "*n v"],
    teacher: Float[Array, "*n v"],
) -> Float[Array, "*n"]:
    r"""Compute the divergence of two distributions, given by their logits.

    With teacher P and student Q at the temperature, $\mathrm{KL}(P\|Q)$, $\mathrm{KL}(Q\|P)$, or
    $\beta\,\mathrm{KL}(P\|M) + (1-\beta)\,\mathrm{KL}(Q\|M)$ with $M = \beta P + (1-\beta) Q$.

    Args:
        config: Which one, τ, and β as `mixture`.
        student: Logits of Q.
        teacher: Logits of P.
    """
    q = jax.nn.log_softmax(student.astype(jnp.float32) / config.temperature)
    p = jax.nn.log_softmax(teacher.astype(jnp.float32) / config.temperature)
    if config.divergence == "forward_kl":
        return _kl(p, q)
    if config.divergence == "reverse_kl":
        return _kl(q, p)
    beta = config.mixture
    m = jnp.logaddexp(math.log(beta) + p, math.log(1 - beta) + q)
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def _kl(p: Float[Array, "*n v"], q: Float[Array, "*n v"]) -> Float[Array, "*n"]:
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def make_distillation(
    config: DistillationConfig = DistillationConfig(), *, chunk: int | None = None
) -> Objective:
    r"""Make the mean over counted tokens of $\lambda \tau^2 D(P, Q) + (1 - \lambda)(-\log Q_1(y))$.

    P is the teacher's distribution of the next token at temperature τ, Q the student's, $Q_1$ the
    student's at temperature 1. The gradient of D by the logits shrinks as $1/\tau^2$; the factor
    undoes that. Logits of both are computed a chunk of tokens at a time, and again for the
    gradient: those of a whole batch are never in memory.

    A student that can be any distribution reaches the teacher's under each D where λ = 1; under
    forward_kl at τ = 1 it reaches $\lambda P + (1 - \lambda) P_\mathrm{data}$ for any λ.

    Args:
        config: Which divergence, τ and λ.
        chunk: Tokens of a row in one chunk, which divide T; None keeps the logits of either model
            to 16 MiB.

    Returns:
        An objective. Batches are those of `next_token`, packed or not; the context is a
        dictionary with the frozen model `teacher`, which has no dropout and the same vocabulary.
        Terms: `loss`; and as metrics `divergence` (nats a token, without τ²), `nll`, `accuracy`,
        and `agreement`, how often both find the same token the likeliest.

    Raises:
        ValueError: When it is called, if there is no teacher, or it has another vocabulary.

    Reference: Hinton et al., arXiv:1503.02531, section 2; reverse KL: Gu et al.,
        arXiv:2306.08543; Jensen-Shannon: Agarwal et al., arXiv:2306.13649, eq. 1, with β the
        share of the teacher.
    """

    def distillation(model: NextTokenModel, batch: Batch, context: Any = None) -> Terms:
        if not isinstance(context, dict) or context.get("teacher") is None:
            raise ValueError(
                "Distillation reads the frozen model context['teacher']; got none. Put it into the "
                "train state's context."
            )
        teacher = jax.tree.map(jax.lax.stop_gradient, context["teacher"])
        check_same_vocabulary(model, teacher, "teacher")
        places = {name: batch.get(name) for name in ("positions", "segment_ids")}
        ours = model.hidden(batch["tokens"], **places, key=batch.get("key"))
        theirs = teacher.hidden(batch["tokens"], **places, key=None)
        compared = _compare(config, model, ours, teacher, theirs, batch["targets"], chunk)
        mask = batch["loss_mask"].astype(jnp.float32)
        weight = mask.sum()
        sums = Comparison(*(jnp.sum(mask * x) for x in compared))
        share = config.weight * config.temperature**2
        loss = share * sums.divergence + (1 - config.weight) * sums.nll
        return {
            "loss": Term(loss, weight),
            "divergence": Term(sums.divergence, weight, 0.0),
            "nll": Term(sums.nll, weight, 0.0),
            "accuracy": Term(sums.correct, weight, 0.0),
            "agreement": Term(sums.agrees, weight, 0.0),
        }

    return distillation


def _compare(
    config: DistillationConfig,
    student: NextTokenModel,
    ours: Float[Array, "b t d"],
    teacher: NextTokenModel,
    theirs: Float[Array, "b t e"],
    targets: Int[Array, "b t"],
    chunk: int | None,
) -> Comparison:
    """Compare all tokens, chunk by chunk along T."""
    rows, length = targets.shape
    heads = [m.head().astype(x.dtype) for m, x in ((student, ours), (teacher, theirs))]
    if chunk is None:
        most = max(1, min(length, _CHUNK_LOGITS // max(1, rows * heads[0].shape[0])))
        chunk = max(size for size in range(1, most + 1) if length % size == 0)
    elif length % chunk:
        raise ValueError(f"`chunk` must divide the row; got {chunk} and {length} tokens.")
    caps = student.config.final_softcap, teacher.config.final_softcap

    def compare(part: tuple[Array, Array, Array]) -> Comparison:
        own, other = map(_logits, part[:2], heads, caps)
        is_target = part[2][..., None] == jnp.arange(own.shape[-1])
        target = jnp.sum(jnp.where(is_target, own, 0.0), axis=-1)
        return Comparison(
            divergence_of(config, own, other),
            jax.nn.logsumexp(own, axis=-1) - target,
            (target >= own.max(-1)).astype(jnp.float32),
            (own.argmax(-1) == other.argmax(-1)).astype(jnp.float32),
        )

    if chunk == length:
        return jax.checkpoint(compare)((ours, theirs, targets))
    parts = tuple(
        jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)
        for x in (ours, theirs, targets)
    )
    compared = jax.lax.map(jax.checkpoint(compare), parts)
    return Comparison(*(jnp.moveaxis(x, 0, 1).reshape(rows, length) for x in compared))


def _logits(hidden: Array, head: Array, softcap: float | None) -> Float[Array, "b c v"]:
    logits = jnp.einsum("bcd,vd->bcv", hidden, head, preferred_element_type=jnp.float32)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
