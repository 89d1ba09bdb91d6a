"""From the scores of answers to what a policy and a critic learn: every detail a named option.

To be called in `jit`, on the rows of a whole batch, before they are cut into minibatches.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genai_jax.rl.advantages import (
    Baseline,
    generalized_advantages,
    group_advantages,
    of_several_scores,
    whiten,
)
from genai_jax.rl.token_rewards import (
    MissingEnd,
    clip_scores,
    counted_answers,
    overlong_penalty,
    score_missing_end,
    token_rewards,
)

Whitening = Literal["none", "biased", "bessel"]


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How scores become advantages.

    Attributes:
        estimator: gae (with a critic, token by token) or group (with the other answers to the same
            prompt, one number an answer).
        kl_in_reward: Whether the divergence from the reference is taken off the rewards, with the
            coefficient `beta` of the context.
        gamma: Discount of a token, for gae.
        gae_lambda: For gae: 0 trusts the critic, 1 the rewards (0.95 OpenAI, TRL; 1 verl).
        group_size: Answers to a prompt, whose rows follow each other.
        baseline: For group: none (REINFORCE), mean (Dr. GRPO), std (GRPO) or leave_one_out (RLOO).
        ddof: Taken from the group's size in the variance, for std.
        epsilon: Added to the group's standard deviation (1e-4 TRL, 1e-6 Tunix).
        drop_equal_scores: Whether groups whose scores are all the same are left out (DAPO).
        reward_clip: Scores count as no farther from 0 than this (10 in OpenRLHF); 0 is off.
        missing_end: What happens to the score of an answer that was cut: replace by minus the
            penalty (OpenAI), subtract it (TRL), or none.
        missing_end_penalty: That penalty.
        overlong_buffer: Tokens before the longest answer's end over which a penalty for length
            grows (DAPO); 0 is off.
        overlong_penalty: The most of it.
        longest_answer: In tokens; needed where there is an overlong_buffer.
        whiten_rewards: Whether token rewards are given the variance 1; they keep their mean.
        whiten_advantages: Whether advantages are given the variance 1 and the mean 0: biased
            (OpenAI) or with Bessel's correction (TRL, Tunix).
    """

    estimator: Literal["gae", "group"] = "gae"
    kl_in_reward: bool = True
    gamma: float = 1.0
    gae_lambda: float = 0.95
    group_size: int = 1
    baseline: Baseline = "mean"
    ddof: int = 1
    epsilon: float = 1e-4
    drop_equal_scores: bool = False
    reward_clip: float = 0.0
    missing_end: MissingEnd = "none"
    missing_end_penalty: float = 1.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0
    longest_answer: int = 0
    whiten_rewards: Whitening = "none"
    whiten_advantages: Whitening = "none"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1]; got {getattr(self, name)}.")
        for name in ("reward_clip", "missing_end_penalty", "overlong_buffer", "overlong_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0; got {getattr(self, name)}.")
        if self.group_size < 1 or self.epsilon < 0 or self.ddof not in (0, 1):
            raise ValueError(
                "`group_size` must be at least 1, `epsilon` at least 0 and `ddof` 0 or 1; got "
                f"{self.group_size}, {self.epsilon} and {self.ddof}."
            )
        if self.overlong_buffer > self.longest_answer:
            raise ValueError(
                f"`overlong_buffer` must be at most `longest_answer`; got {self.overlong_buffer} "
                f"and {self.longest_answer}. Set longest_answer to the most tokens of an answer."
            )
        grouped = self.estimator == "group" and self.baseline != "none"
        if self.group_size < 2 and (grouped or self.drop_equal_scores):
            raise ValueError(
                f"a group needs two answers to compare; got `group_size` {self.group_size}. "
                "Choose 8, or the baseline none."
            )
        if self.estimator == "group" and self.whiten_rewards != "none":
            raise ValueError(
                "`whiten_rewards` is for rewards of tokens, which the estimator group has none of; "
                f"got {self.whiten_rewards}. Choose none, or the baseline std."
            )


class Targets(NamedTuple):
    """What is learned from a batch of rollouts.

    Attributes:
        loss_mask: The rollouts', 0 for what is excluded.
        advantages: For the policy, 0 where not counted.
        returns: For the critic: advantages before whitening + values; of a group, the rewards to
            come, undiscounted.
        counted: Answers that are not excluded.
        scores: After bounds and penalties, without the divergence; 0 where excluded.
    """

    loss_mask: Float[Array, "b t"]
    advantages: Float[Array, "b t"]
    returns: Float[Array, "b t"]
    counted: Bool[Array, " b"]
    scores: Float[Array, " b"]


def final_scores(
    config: AdvantageConfig,
    scores: Float[Array, " b"],
    ended: Bool[Array, " b"],
    mask: Float[Array, "b t"],
) -> Float[Array, " b"]:
    """Bound scores, then punish what was cut and what is too long.

    Args:
        config: The rules.
        scores: Of answers, normalised if they are to be.
        ended: Whether an answer has its end token.
        mask: 1 = a counted token.
    """
    scores = clip_scores(scores, config.reward_clip)
    scores = score_missing_end(
        scores, ended, rule=config.missing_end, penalty=config.missing_end_penalty
    )
    return scores - overlong_penalty(
        (mask > 0).sum(-1),
        longest=config.longest_answer,
        buffer=config.overlong_buffer,
        most=config.overlong_penalty,
    )


def rollout_targets(
    config: AdvantageConfig,
    scores: Float[Array, " b"],
    loss_mask: Float[Array, "b t"],
    log_ratio: Float[Array, "b t"],
    beta: float | Float[Array, ""],
    *,
    ended: Bool[Array, " b"] | None = None,
    values: Float[Array, "b t"] | None = None,
) -> Targets:
    r"""Compute advantages and returns of a batch of rollouts.

    An answer whose score is not finite, or that has no counted token, is excluded: it has no token
    in the loss, and no part in the mean or the width of its group or of the batch.

    Args:
        config: How.
        scores: Of answers; the answers to a prompt follow each other.
        loss_mask: 1 = a token that counts.
        log_ratio: $\log \pi_{old} - \log \pi_{ref}$ of each token; zeros where there is no
            reference.
        beta: β, in score per nat; read where the divergence is in the rewards.
        ended: Whether an answer has its end token; None: all have.
        values: The critic's, for gae.

    Raises:
        ValueError: If a critic's values are missing, or groups do not divide the rows.
    """
    rows = scores.shape[0]
    if rows % config.group_size:
        raise ValueError(
            f"rows must be divisible by `group_size`; got {rows} and {config.group_size}."
        )
    counted = counted_answers(scores, loss_mask)
    if ended is None:
        ended = jnp.ones(rows, bool)
    scores = final_scores(config, jnp.where(counted, scores, 0.0), ended, loss_mask)
    scores = jnp.where(counted, scores, 0.0)
    groups = (-1, config.group_size)
    kept = counted
    if config.drop_equal_scores:
        differ = of_several_scores(scores.reshape(groups), counted.reshape(groups) * 1.0)
        kept &= jnp.broadcast_to(differ, (differ.shape[0], config.group_size)).reshape(-1)
    mask = loss_mask * kept[:, None]
    rewards = token_rewards(scores, log_ratio, mask, beta if config.kl_in_reward else 0.0)
    if config.estimator == "gae":
        if values is None:
            raise ValueError("the estimator gae needs a critic's `values`; got None.")
        if config.whiten_rewards != "none":
            bessel = config.whiten_rewards == "bessel"
            rewards = whiten(rewards, mask, keep_mean=True, bessel=bessel)
        advantages, returns = generalized_advantages(
            rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
    else:
        of_answers = group_advantages(
            rewards.sum(-1).reshape(groups),
            kept.reshape(groups).astype(jnp.float32),
            baseline=config.baseline,
            ddof=config.ddof,
            eps=config.epsilon,
        )
        advantages = jnp.where(mask > 0, of_answers.reshape(-1, 1), 0.0)
        returns = jnp.where(mask > 0, jnp.cumsum(rewards[:, ::-1], axis=-1)[:, ::-1], 0.0)
    if config.whiten_advantages != "none":
        advantages = whiten(advantages, mask, bessel=config.whiten_advantages == "bessel")
    return Targets(mask, advantages, returns, counted, scores)
