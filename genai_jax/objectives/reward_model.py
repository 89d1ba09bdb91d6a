r"""The loss of a reward model: people's rankings of answers to the same prompt.

B rows, K answers to one prompt, best first, T tokens of an answer with its prompt.

Optimum of a free reward on two answers of which the first is preferred at rate p, with
$\Delta = r_1 - r_2$: where the margin is signed for the pair, so that it changes sign with the
label, $\Delta^* = \mathrm{logit}(p) + m$; where it is m whoever wins,
$$\Delta^* = \log \frac{(p - q) + \sqrt{(p - q)^2 + 4 p q c^2}}{2 q c},\quad
  q = 1 - p,\ c = e^{-m},$$
the root of $q c x^2 - (p - q) x - p c$ at $x = e^\Delta$, as
$p\,\sigma(m - \Delta) = q\,\sigma(m + \Delta)$ has it. Without margin, rankings drawn from
Plackett-Luce utilities u give $r = u$ up to a constant of the prompt, under both losses.

The centring term is at zero where each row's rewards sum to zero. A constant of the prompt
reaches that when its rows hold the same answers, and no difference moves. Where rows are pairs
out of more than two answers it cannot be zero in all of them, and pulls the differences
together: by some percent even at a weight of 0.01.
"""

import dataclasses
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genai_jax.types import Batch, Objective, Term, Terms


@runtime_checkable
class RewardModel(Protocol):
    """What the objective needs of a model."""

    def at_end(self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"]) -> Float[Array, " b"]:
        """Compute the number of the last real token of each row."""
        ...


@dataclasses.dataclass(frozen=True)
class RewardLossConfig:
    """How rankings are read.

    Attributes:
        loss: bradley_terry (the mean over all pairs of a ranking) or plackett_luce (the whole
            ranking as one outcome); the same where there are two answers.
        centring: λ, weight of the square of the summed rewards, which keeps their mean near zero;
            at least 0. 0.01 is usual; 0 is right where rewards are normalised afterwards anyway.
    """

    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    centring: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.centring < 0:
            raise ValueError(f"`centring` must not be negative; got {self.centring}. Try 0.01.")


def answer_rewards(model: RewardModel, batch: Batch) -> Float[Array, "b k"]:
    """Compute the reward of every answer: what the model says at its last real token.

    Args:
        model: A reward model.
        batch: `tokens` [B, K, T], and `lengths` [B, K], the real tokens of each answer, its end
            token included; an answer of no tokens gets 0.
    """
    tokens, lengths = batch["tokens"], batch["lengths"]
    flat = model.at_end(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1))
    return flat.astype(jnp.float32).reshape(lengths.shape)


def make_reward_model_objective(config: RewardLossConfig = RewardLossConfig()) -> Objective:
    r"""Make the negative log-likelihood of rankings, $r_1$ the reward of the best answer.

    Bradley-Terry, over the n(n-1)/2 pairs of n answers:
    $$L = -\frac{2}{n(n-1)} \sum_{i<j} \log \sigma(r_i - r_j - m),$$
    Plackett-Luce, where the best is chosen out of all, then the next out of the rest:
    $$L = -\sum_{i<n} \log \frac{e^{r_i - m}}{e^{r_i - m} + \sum_{j>i} e^{r_j}},$$
    both plus $\lambda (\frac{2}{n} \sum_i r_i)^2$, which for a pair is $\lambda (r_1 + r_2)^2$.
    The margin m is by how much the winner of each choice has to win; of two answers both losses
    are the same. The module has their optima.

    Args:
        config: Which loss.

    Returns:
        An objective. Batches have `tokens` [B, K, T] and `lengths` [B, K], answers best first;
        where there are such, `answer_mask` [B, K] (0 = no such answer, wherever in the ranking),
        `margin` [B] (m; below zero if the label goes against the sign) and `weight` [B]
        (1 = counted). A row with fewer than two answers is not counted. Terms: `loss`, nats a
        ranking; `centring`, the square before λ, where λ is not 0; and as metrics, means over the
        pairs of a row, then over rows: `accuracy` (a tie is half right), `confidence`
        ($\sigma(|r_i - r_j|)$, which is the accuracy if rewards are calibrated), `brier`
        ($(1 - \sigma(r_i - r_j))^2$), `gap` ($r_i - r_j$), and over the answers `reward` and
        `reward_square`.

    Raises:
        ValueError: When it is called, if rows have fewer than two answers.

    Reference: pairs of a ranking: Ouyang et al., arXiv:2203.02155, eq. 1; margin: Touvron et al.
        (Llama 2), arXiv:2307.09288, eq. 2; rankings: Plackett, "The Analysis of Permutations",
        1975, and Rafailov et al., arXiv:2305.18290, appendix A.3; centring: Eisenstein et al.,
        arXiv:2312.09244, as TRL has it. The margin of Plackett-Luce, and the mean of a row in the
        centring term, are ours.
    """

    def reward_model(model: RewardModel, batch: Batch, context: Any = None) -> Terms:
        rewards = answer_rewards(model, batch)
        rows, k = rewards.shape
        if k < 2:
            raise ValueError(f"A ranking must have at least two answers a row; got {k}.")
        exists = batch.get("answer_mask", jnp.ones_like(rewards)).astype(jnp.float32)
        margin = batch.get("margin", jnp.zeros(rows)).astype(jnp.float32)
        counted = batch.get("weight", jnp.ones(rows)) * (exists.sum(1) > 1)
        weight = counted.sum()

        # [B, K, K]: i ranks before j, and both exist.
        pairs = exists[:, :, None] * exists[:, None] * jnp.triu(jnp.ones((k, k)), 1)
        gaps = rewards[:, :, None] - rewards[:, None]

        def of_pairs(values: Float[Array, "b k k"]) -> Float[Array, " b"]:
            return (pairs * values).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1)

        def of_answers(values: Float[Array, "b k"]) -> Float[Array, " b"]:
            return (exists * values).sum(1) / jnp.maximum(exists.sum(1), 1)

        if config.loss == "plackett_luce":
            loss = _plackett_luce(rewards, exists, margin)
        else:
            loss = of_pairs(-jax.nn.log_sigmoid(gaps - margin[:, None, None]))
        metrics = {
            "accuracy": of_pairs(0.5 * (1 + jnp.sign(gaps))),
            "confidence": of_pairs(jax.nn.sigmoid(jnp.abs(gaps))),
            "brier": of_pairs(jnp.square(jax.nn.sigmoid(-gaps))),
            "gap": of_pairs(gaps),
            "reward": of_answers(rewards),
            "reward_square": of_answers(jnp.square(rewards)),
        }
        terms = {"loss": Term(jnp.sum(counted * loss), weight)}
        if config.centring:
            square = jnp.square(2 * of_answers(rewards))
            terms["centring"] = Term(jnp.sum(counted * square), weight, config.centring)
        for name, values in metrics.items():
            terms[name] = Term(jnp.sum(counted * values), weight, 0.0)
        return terms

    return reward_model


def _plackett_luce(
    rewards: Float[Array, "b k"], exists: Float[Array, "b k"], margin: Float[Array, " b"]
) -> Float[Array, " b"]:
    """Compute the negative log-likelihood of rankings, with a handicap for each winner."""
    k = rewards.shape[1]
    # [B, K, K]: the rewards that compete in choice i, those of the answers from i on.
    handicap = margin[:, None, None] * jnp.eye(k)
    competing = rewards[:, None] - handicap
    present = (exists[:, None] * jnp.triu(jnp.ones((k, k)))) > 0
    # The winner itself is always present, so that no choice is between nothing.
    present = present | jnp.eye(k, dtype=bool)
    log_z = jax.nn.logsumexp(jnp.where(present, competing, -jnp.inf), axis=-1)
    winner = rewards - margin[:, None]
    return jnp.sum(exists * (log_z - winner), axis=1)
