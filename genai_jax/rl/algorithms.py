r"""The named algorithms, each a loss and a way to advantages, and the optimum that each targets.

All presets keep their paper's (or, where that says nothing, TRL's) choices; `dataclasses.replace`
makes others.

| preset | divergence | baseline | loss |
| --- | --- | --- | --- |
| PPO | in the reward | critic, GAE | clipped ratio of tokens, token mean |
| REINFORCE | in the reward | none | log-probabilities, sequence sum |
| RLOO | in the reward | other answers | log-probabilities, sequence sum |
| GRPO | k3 in the loss | mean and width of the group | clipped ratio, sequence mean |
| DR_GRPO | none | mean of the group | clipped ratio, constant length |
| DAPO | none | mean and width, equal scores dropped | two bounds, token mean |
| GSPO | none | mean and width of the group | ratio of sequences, sequence mean |
"""

import dataclasses

from genai_jax.objectives.policy_gradient import PolicyLossConfig
from genai_jax.rl.targets import AdvantageConfig


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A way to improve a policy.

    Attributes:
        loss: Of rollouts.
        advantages: From scores.
    """

    loss: PolicyLossConfig
    advantages: AdvantageConfig

    @property
    def needs_critic(self) -> bool:
        """Whether values are learned."""
        return self.advantages.estimator == "gae"


PPO = Algorithm(PolicyLossConfig(), AdvantageConfig(whiten_advantages="bessel"))
REINFORCE = Algorithm(
    PolicyLossConfig(ratio="none", aggregation="sequence_sum"),
    AdvantageConfig("group", baseline="none"),
)
RLOO = Algorithm(
    PolicyLossConfig(ratio="none", aggregation="sequence_sum"),
    AdvantageConfig("group", baseline="leave_one_out", group_size=8),
)
GRPO = Algorithm(
    PolicyLossConfig(aggregation="sequence_mean", kl_in_loss="k3", kl_coefficient=0.04),
    AdvantageConfig("group", kl_in_reward=False, baseline="std", group_size=8),
)
DR_GRPO = Algorithm(
    PolicyLossConfig(aggregation="constant", constant_length=256),
    AdvantageConfig("group", kl_in_reward=False, baseline="mean", group_size=8),
)
DAPO = Algorithm(
    PolicyLossConfig(clip_high=0.28),
    AdvantageConfig(
        "group",
        kl_in_reward=False,
        baseline="std",
        group_size=8,
        drop_equal_scores=True,
        overlong_buffer=64,
        longest_answer=256,
    ),
)
# The paper's bounds: those of a mean over tokens are far smaller than those of one token.
GSPO = Algorithm(
    PolicyLossConfig(ratio="sequence", aggregation="sequence_mean", clip_low=3e-4, clip_high=4e-4),
    AdvantageConfig("group", kl_in_reward=False, baseline="std", group_size=8),
)


def optimum_of(algorithm: Algorithm, beta: float | None = None) -> str:
    r"""Say in a sentence which policy a choice of losses and advantages leads to.

    With the score r, the reference $\pi_{ref}$ and β, for one prompt and answers of one token (or,
    where the divergence is in the reward, of any length):

    - in the reward: $\pi^* \propto \pi_{ref} e^{r / \beta}$, whatever the baseline, which maximises
      $E r - \beta KL(\pi \| \pi_{ref})$. At π* all answers have the same r - β log(π / π_ref), so
      that every baseline, a group's width too, leaves nothing.
      A mean over each answer's tokens, like a ratio of sequences (GSPO), divides its advantage by
      its length, which is still nothing there, and so moves the way to π* only.
      Whitened rewards keep their mean μ a token: scaled back, an answer of n tokens has gained
      $(\sigma - 1) \mu n$, so that length counts, which it does not for answers of one token.
    - k2, or k3 weighted by the ratio, in the loss: the gradient of the score is that of
      $c \cdot E r$, and so π* at β / c: c is 1 for a critic and for leave_one_out,
      $(G - 1) / G$ for the mean of a group that the answer itself is in.
    - k3 in the loss: $\pi = \beta \pi_{ref} / (\lambda - r)$ at the same β / c, with λ from
      normalisation, since its gradient is that of the other direction,
      $KL(\pi_{ref} \| \pi)$.
    - k1 in the loss, or none: nothing holds the policy, which ends in the best answer.
    - scores divided by the width of their group: a fixed point of its own, where
      $E[A_i \nabla \log \pi(y_i)]$ over all groups of the actual size balances the divergence. For
      scores 0 and 1 in infinite groups: with k2, $1 / \sqrt{p (1 - p)} =
      \beta (\mathrm{logit}\, p - \mathrm{logit}\, p_{ref})$, which has no solution below a critical
      β; with k3, $\sqrt{p (1 - p)} = \beta (p - p_{ref})$, which has one always. Where groups of
      equal scores are dropped (DAPO) both expectations are over those that are kept.

    Args:
        algorithm: The choice.
        beta: Of the context, in score per nat, where it is known; 0 leaves the divergence out.

    Returns:
        A sentence or two, in words and plain symbols, for a log.
    """
    loss, advantages = algorithm.loss, algorithm.advantages
    coefficient = beta if loss.kl_coefficient is None else loss.kl_coefficient
    in_loss = loss.kl_in_loss not in ("none", "k1") and coefficient != 0
    in_reward = advantages.kl_in_reward and beta != 0
    moved = " The bonus for entropy moves it." if loss.entropy_coefficient else ""
    if advantages.estimator == "gae" and advantages.gamma < 1:
        moved += " The discount moves it too."
    if advantages.whiten_rewards != "none":
        moved += " Whitened rewards move it too, towards or away from long answers."
    if in_reward and in_loss:
        return (
            "Target: a fixed point between two pulls, since the divergence is in the reward and in "
            f"the loss: not pi_ref exp(r / beta) at either beta.{moved}"
        )
    if in_reward:
        return (
            "Target: pi* ~ pi_ref exp(r / beta), the maximum of E r - beta KL(pi, pi_ref); the "
            f"divergence is in the reward, later tokens included.{moved}"
        )
    if not in_loss:
        no_effect = "; k1 as a loss has no expected gradient" if loss.kl_in_loss == "k1" else ""
        return (
            "Target: the answer of the highest score; no divergence holds the policy, only the end "
            f"of training does{no_effect}.{moved}"
        )
    return _optimum_with_loss(algorithm, coefficient) + moved


def _optimum_with_loss(algorithm: Algorithm, coefficient: float | None) -> str:
    """Say the optimum where the divergence is in the loss."""
    loss, advantages = algorithm.loss, algorithm.advantages
    beta = "beta" if coefficient is None else f"{coefficient:g}"
    grouped = advantages.estimator == "group"
    if (grouped and advantages.baseline == "std") or advantages.whiten_advantages != "none":
        inside = (
            "holds it inside at every beta"
            if loss.kl_in_loss == "k3"
            else "holds it inside above a critical beta; below, the policy ends in one answer"
        )
        return (
            "Target: a fixed point of its own, not pi_ref exp(r / beta), since scores are divided "
            f"by their width; the divergence in the loss ({loss.kl_in_loss}, {beta}) {inside}."
        )
    if grouped and advantages.baseline == "mean":
        beta = f"{beta} {advantages.group_size} / {advantages.group_size - 1}"
    if loss.kl_in_loss == "k3":
        policy = f"pi = b pi_ref / (lambda - r) with b = {beta}"
    else:
        policy = f"pi* ~ pi_ref exp(r / b) with b = {beta}"
    return (
        f"Target: {policy}, for answers of one token; the divergence is in the loss token by "
        "token, and what a token does to later ones is not counted."
    )
