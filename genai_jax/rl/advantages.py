r"""Advantages: how much better than expected an answer, or each of its tokens, turned out.

Everything is masked, in float32, and pure: to be called in `jit`. B rows (answers), T tokens of a
row, P prompts, G answers to each.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Baseline = Literal["none", "mean", "std", "leave_one_out"]


def generalized_advantages(
    rewards: Float[Array, "b t"],
    values: Float[Array, "b t"],
    mask: Float[Array, "b t"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    r"""Estimate advantages from rewards and a critic's values.

    $\delta_t = r_t + \gamma V_{t+1} - V_t$, $A_t = \delta_t + \gamma \lambda A_{t+1}$ and
    $R_t = A_t + V_t$. The token after a counted one is the next counted one, whatever stands
    between them; after the last, V and A are 0.

    Args:
        rewards: r, for the token that is predicted at t.
        values: V, of the text up to t, before that token.
        mask: 1 = counted.
        gamma: γ, discount of a token, in [0, 1].
        gae_lambda: λ, in [0, 1]: 0 trusts the critic, 1 the rewards. 0.95 in OpenAI's, TRL's and
            Tunix's PPO, 1 in verl's and OpenRLHF's.

    Returns:
        Advantages A, not whitened, and returns R, which the critic learns; 0 where not counted.

    Reference: Schulman et al., arXiv:1506.02438, equation 16.
    """
    counted = mask > 0
    rewards, values = (jnp.where(counted, x, 0.0) for x in (rewards, values))

    def back(
        later: tuple[Array, Array], token: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        value_after, advantage_after = later
        reward, value, counts = token
        delta = reward + gamma * value_after - value
        advantage = delta + gamma * gae_lambda * advantage_after
        carried = jnp.where(counts, value, value_after), jnp.where(counts, advantage, later[1])
        return carried, jnp.where(counts, advantage, 0.0)

    nothing = jnp.zeros(rewards.shape[0], jnp.float32)
    tokens = rewards.T, values.T, counted.T
    _, advantages = jax.lax.scan(back, (nothing, nothing), tokens, reverse=True)
    return advantages.T, advantages.T + values


def whiten(
    x: Float[Array, "*s"],
    mask: Float[Array, "*s"],
    *,
    keep_mean: bool = False,
    bessel: bool = False,
    eps: float = 1e-8,
) -> Float[Array, "*s"]:
    r"""Give the counted numbers the variance 1, and the mean 0 or their own.

    $(x - \mu) / \sqrt{\sigma^2 + \epsilon}$, plus μ where the mean is kept.

    Args:
        x: Rewards, which keep their mean, or advantages, which lose it.
        mask: 1 = counted.
        keep_mean: Whether μ is added again.
        bessel: Whether the variance divides by n - 1 (TRL, Tunix) or by n (OpenAI).
        eps: ε.

    Returns:
        The same, 0 where not counted; one number alone has the variance 0.

    Reference: Huang et al., "The N Implementation Details of RLHF with PPO".
    """
    counted = mask > 0
    x = jnp.where(counted, x, 0.0)
    n = counted.sum()
    mean = x.sum() / jnp.maximum(n, 1)
    centred = jnp.where(counted, x - mean, 0.0)
    variance = jnp.square(centred).sum() / jnp.maximum(n - bessel, 1)
    return centred * jax.lax.rsqrt(variance + eps) + jnp.where(counted & keep_mean, mean, 0.0)


def group_advantages(
    scores: Float[Array, "p g"],
    weights: Float[Array, "p g"],
    *,
    baseline: Baseline = "mean",
    ddof: int = 1,
    eps: float = 1e-4,
) -> Float[Array, "p g"]:
    r"""Compare each answer with the others to its prompt.

    - `none`: $A_i = r_i$.
    - `mean` (Dr. GRPO): $A_i = r_i - \bar r$.
    - `std` (GRPO): $A_i = (r_i - \bar r) / (s + \epsilon)$,
      $s^2 = \sum_j (r_j - \bar r)^2 / (G - \mathrm{ddof})$.
    - `leave_one_out` (RLOO): $A_i = r_i - \frac{1}{G - 1} \sum_{j \ne i} r_j
      = \frac{G}{G - 1} (r_i - \bar r)$.

    Args:
        scores: r, of any value, NaN too, where the weight is 0.
        weights: 1 = counted, 0 = excluded: the group is then smaller. In between, probabilities,
            for an infinite group (ddof 0).
        baseline: What the score is compared with.
        ddof: Taken from G in the variance; 1 in TRL.
        eps: ε; 1e-4 in TRL, 1e-6 in Tunix.

    Returns:
        A, 0 where excluded, and of an answer that is alone, unless there is no baseline.

    Reference: Shao et al. (GRPO), arXiv:2402.03300, section 4.1.2; Liu et al. (Dr. GRPO),
        arXiv:2503.20783; Ahmadian et al. (RLOO), arXiv:2402.14740.
    """
    counted = weights > 0
    scores = jnp.where(counted, scores, 0.0)
    if baseline == "none":
        return scores
    n = weights.sum(-1, keepdims=True)
    mean = jnp.sum(weights * scores, -1, keepdims=True) / jnp.where(n > 0, n, 1.0)
    centred = jnp.where(counted, scores - mean, 0.0)
    if baseline == "mean":
        return centred
    if baseline == "leave_one_out":
        return jnp.where(n > 1, n / jnp.where(n > 1, n - 1, 1.0), 0.0) * centred
    squares = jnp.sum(weights * jnp.square(centred), -1, keepdims=True)
    return centred / (jnp.sqrt(squares / jnp.where(n > ddof, n - ddof, 1.0)) + eps)


def of_several_scores(
    scores: Float[Array, "p g"], weights: Float[Array, "p g"]
) -> Bool[Array, "p 1"]:
    """Whether the counted answers of a group differ in score, so that it can teach something.

    Args:
        scores: Of any value where the weight is 0.
        weights: 1 = counted, 0 = excluded.

    Reference: Yu et al. (DAPO), arXiv:2503.14476, section 3.2, which draws until a batch is full of
        such groups.
    """
    counted = weights > 0
    highest = jnp.where(counted, scores, -jnp.inf).max(-1, keepdims=True)
    lowest = jnp.where(counted, scores, jnp.inf).min(-1, keepdims=True)
    return highest > lowest
