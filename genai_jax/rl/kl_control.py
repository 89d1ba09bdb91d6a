r"""Control of the KL from the reference, and of the scale of rewards, kept in the context of a run.

The context is a dictionary in the train state, so that a checkpoint has it: `beta`, and where
rewards are normalised as they come, `reward_moments`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genai_jax.types import Batch, PyTree


@dataclasses.dataclass(frozen=True)
class KLControl:
    """How much a nat of divergence from the reference costs.

    Attributes:
        beta: Coefficient β, or its first value, in score per nat.
        adaptive: Whether β follows the divergence (OpenAI) or stays (TRL, Tunix).
        target: Divergence that is aimed at, in nats an answer.
        horizon: Answers over which β follows; more is slower.
        limit: Most that the relative error counts as.
    """

    beta: float = 0.15
    adaptive: bool = False
    target: float = 6.0
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.beta < 0:
            raise ValueError(f"`beta` must be at least 0; got {self.beta}.")
        for name in ("target", "horizon", "limit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(self, name)}.")
        if self.adaptive and not self.beta:
            raise ValueError(
                "an adaptive `beta` is multiplied, and must begin above 0; got 0. Choose 0.15."
            )


def next_beta(
    control: KLControl,
    beta: Float[Array, ""],
    kl: Float[Array, ""],
    answers: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Move the coefficient towards what keeps the divergence at its target.

    $\beta \leftarrow \beta (1 + \mathrm{clip}(KL / \mathrm{target} - 1, \pm \mathrm{limit})
    \cdot n / \mathrm{horizon})$.

    Args:
        control: Target, horizon and limit; β stays where it is not adaptive.
        beta: β.
        kl: Of these answers, in nats each.
        answers: n, how many these were.

    Reference: Ziegler et al., arXiv:1909.08593, section 2.2, where $n / \mathrm{horizon}$ is 0.1.
    """
    if not control.adaptive:
        return beta
    error = jnp.clip(kl / control.target - 1, -control.limit, control.limit)
    return beta * (1 + error * answers / control.horizon)


def rollout_kl(batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Estimate the divergence of the policy that wrote from the reference, by k1.

    Args:
        batch: `old_log_probs`, `ref_log_probs` and `loss_mask` [B, T], and `weight` [B] where
            answers do not all count the same.

    Returns:
        Nats an answer, 0 of none, and the number of answers with a counted token.
    """
    counted = batch["loss_mask"] > 0
    ratio = jnp.where(counted, batch["old_log_probs"] - batch["ref_log_probs"], 0.0)
    weight = counted.any(-1) * batch.get("weight", 1.0)
    answers = weight.sum()
    return jnp.sum(weight * ratio.sum(-1)) / jnp.where(answers > 0, answers, 1.0), answers


class Gain(NamedTuple):
    r"""A line that scores are put on: $\mathrm{gain} \cdot r + \mathrm{bias}$.

    Attributes:
        gain: Above 0.
        bias: In units of the new score.
    """

    gain: Float[Array, ""]
    bias: Float[Array, ""]

    def __call__(self, scores: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """Put scores on the line."""
        return self.gain * scores + self.bias


class Moments(NamedTuple):
    """Number, mean and sum of squares about it, of all scores so far.

    Attributes:
        answers: How many.
        mean: Of them.
        squares: Sum of squared distances from the mean.
    """

    answers: Float[Array, ""]
    mean: Float[Array, ""]
    squares: Float[Array, ""]


def no_moments() -> Moments:
    """Begin with no scores."""
    return Moments(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def add_scores(moments: Moments, scores: Float[Array, " b"], counted: Bool[Array, " b"]) -> Moments:
    r"""Add scores to the moments, without the cancellation of a sum of squares.

    Args:
        moments: So far.
        scores: New ones, of any value where not counted.
        counted: Which of them count.

    Reference: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances" (1979).
    """
    n = counted.sum().astype(jnp.float32)
    mean = jnp.where(counted, scores, 0.0).sum() / jnp.maximum(n, 1.0)
    squares = jnp.where(counted, jnp.square(scores - mean), 0.0).sum()
    count = moments.answers + n
    share = n / jnp.maximum(count, 1.0)
    apart = mean - moments.mean
    return Moments(
        count,
        moments.mean + apart * share,
        moments.squares + squares + jnp.square(apart) * moments.answers * share,
    )


def gain_of(
    moments: Moments, *, target_mean: float = 0.0, target_std: float = 1.0, eps: float = 1e-8
) -> Gain:
    r"""Find the line that gives scores of these moments another mean and width.

    $\mathrm{gain} = \sigma_T / \sigma_D$, $\mathrm{bias} = \mu_T - \mathrm{gain} \cdot \mu_D$, with
    the biased variance. Of fewer than two scores, or of equal ones, there is no width: they stay as
    they are.

    Args:
        moments: $\mu_D, \sigma_D$, of scores of the reference's answers for a reward model, of all
            so far where rewards are normalised as they come.
        target_mean: $\mu_T$.
        target_std: $\sigma_T$.
        eps: Variance from which on there is one.

    Reference: Ziegler et al., arXiv:1909.08593, section 2.1; Huang et al., "The N Implementation
        Details of RLHF with PPO".
    """
    variance = moments.squares / jnp.maximum(moments.answers, 1.0)
    known = (moments.answers > 1) & (variance > eps)
    gain = jnp.where(known, target_std / jnp.sqrt(jnp.maximum(variance, eps)), 1.0)
    return Gain(gain, jnp.where(known, target_mean - gain * moments.mean, 0.0))


def first_context(control: KLControl, *, normalise_rewards: bool = False) -> dict[str, PyTree]:
    """Make the context that a run begins with: `beta`, and `reward_moments` where asked for."""
    context: dict[str, PyTree] = {"beta": jnp.asarray(control.beta, jnp.float32)}
    return context | ({"reward_moments": no_moments()} if normalise_rewards else {})


def make_next_context(control: KLControl) -> Callable[[PyTree, Batch], PyTree]:
    """Make what a step does to its context: β follows the divergence, the moments the scores.

    Args:
        control: Of β.

    Returns:
        `(context, batch) -> context`, for `training.step.make_train_step`. The batch is one of
        rollouts; where the context has `reward_moments` it also has `scores` [B], raw, not finite
        where an answer was excluded. Whatever else is in the context stays.
    """

    def next_context(context: PyTree, batch: Batch) -> PyTree:
        after = dict(context)
        if control.adaptive:
            after["beta"] = next_beta(control, context["beta"], *rollout_kl(batch))
        if "reward_moments" in context:
            scores = batch["scores"]
            after["reward_moments"] = add_scores(
                context["reward_moments"], scores, jnp.isfinite(scores)
            )
        return after

    return next_context
