r"""Policy gradients over rollouts: one surrogate that says PPO, REINFORCE, GRPO, DAPO and GSPO.

A row is one answer to one prompt; its advantages, and the log-probabilities of whoever wrote it,
were computed before. B rows, T tokens of a row.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from genai_jax.objectives.kl_estimators import bounded_exp, kl_k1, kl_k2, kl_k3
from genai_jax.objectives.next_token import NextTokenModel
from genai_jax.objectives.token_log_probs import score_rows
from genai_jax.types import Batch, Objective, Term, Terms

Ratio = Literal["token", "sequence", "none"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]
LossKL = Literal["none", "k1", "k2", "k3", "k3_weighted"]


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
    """The loss of a policy on answers that it, or a slightly older one, wrote.

    Attributes:
        ratio: Of probabilities under the policy and under the one that wrote: of each token, of the
            sequence (GSPO: geometric mean over its tokens), or none (REINFORCE: log-probabilities).
        clip_low: The ratio counts as no less than 1 - clip_low where that would help; in [0, 1].
        clip_high: And as no more than 1 + clip_high; 0.28 in DAPO; at least 0.
        dual_clip: Most that a ratio weighs where the advantage is negative, above 1 (3 in verl); 0
            is off.
        aggregation: How tokens become a loss: token_mean over all tokens of the batch (PPO, DAPO);
            sequence_mean, the mean over answers of their mean over tokens (GRPO); sequence_sum, the
            mean over answers of their sum (REINFORCE, RLOO); constant, the mean over answers of
            their sum divided by `constant_length` (Dr. GRPO).
        constant_length: Tokens that an answer counts as under `constant`.
        kl_in_loss: Estimator of the divergence from the reference that is added to the loss, token
            by token: none, k1 (no effect), k2, k3 (pulls the other way round), or k3_weighted by
            the ratio. `rl.algorithms.optimum_of` says what each leads to.
        kl_coefficient: Of it, in score per nat; None reads `beta` of the context.
        entropy_coefficient: Of the bonus for entropy, in score per nat.
        value_coefficient: Of the critic's loss, where there is a critic.
        value_clip: Values count as no farther than this from the old ones where that would help
            (0.2 in TRL, 0.5 in verl); 0 is off.
        temperature: That the answers were drawn at; divides all logits.
    """

    ratio: Ratio = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    aggregation: Aggregation = "token_mean"
    constant_length: int = 0
    kl_in_loss: LossKL = "none"
    kl_coefficient: float | None = None
    entropy_coefficient: float = 0.0
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"`clip_low` must be in [0, 1]; got {self.clip_low}.")
        for name in ("clip_high", "value_coefficient", "value_clip", "constant_length"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0; got {getattr(self, name)}.")
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"`dual_clip` must be above 1; got {self.dual_clip}. Choose 3, or 0 for none."
            )
        if (self.aggregation == "constant") != (self.constant_length > 0):
            raise ValueError(
                "`constant_length` is for the aggregation `constant`, and is needed there; got "
                f"{self.aggregation} and {self.constant_length}. Choose the longest answer's "
                "length, or 0."
            )
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0; got {self.temperature}.")


@runtime_checkable
class PolicyWithCritic(Protocol):
    """A policy and its critic, side by side; `models.heads.ActorCritic` is one."""

    policy: Any
    critic: Any


class _Rows(NamedTuple):
    """What a batch says of its tokens, zero where they do not count.

    Attributes:
        mask: 1 = counted, times the row's weight.
        lengths: Counted tokens of each row; 1 where there are none.
        weights: Of the rows that have any.
    """

    mask: Float[Array, "b t"]
    lengths: Float[Array, "b 1"]
    weights: Float[Array, " b"]


def _rows(batch: Batch) -> _Rows:
    mask = (batch["loss_mask"] > 0).astype(jnp.float32)
    lengths = mask.sum(-1, keepdims=True)
    weights = jnp.where(lengths[:, 0] > 0, batch.get("weight", jnp.ones(mask.shape[0])), 0.0)
    return _Rows(mask * weights[:, None], jnp.maximum(lengths, 1.0), weights)


def _shares(config: PolicyLossConfig, rows: _Rows) -> tuple[Float[Array, "b t"], Float[Array, ""]]:
    """Compute the share of each token in the loss, and what the sum is divided by."""
    if config.aggregation == "token_mean":
        return rows.mask, rows.mask.sum()
    if config.aggregation == "sequence_mean":
        return rows.mask / rows.lengths, rows.weights.sum()
    if config.aggregation == "constant":
        return rows.mask / config.constant_length, rows.weights.sum()
    return rows.mask, rows.weights.sum()


def _policy_loss(
    config: PolicyLossConfig,
    log_probs: Float[Array, "b t"],
    log_ratio: Float[Array, "b t"],
    advantages: Float[Array, "b t"],
    lengths: Float[Array, "b 1"],
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    """Compute the loss of each token, and whether a bound took its gradient away."""
    if config.ratio == "none":
        return -advantages * log_probs, jnp.zeros(advantages.shape, bool)
    if config.ratio == "sequence":
        log_ratio = jnp.broadcast_to(log_ratio.sum(-1, keepdims=True) / lengths, log_ratio.shape)
    ratio = bounded_exp(log_ratio)
    free = ratio * advantages
    bounded = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * advantages
    gain = jnp.minimum(free, bounded)
    clipped = bounded < free
    if config.dual_clip:
        least = config.dual_clip * advantages
        clipped |= (advantages < 0) & (gain < least)
        gain = jnp.where(advantages < 0, jnp.maximum(gain, least), gain)
    return -gain, clipped


def _kl_loss(
    config: PolicyLossConfig, to_reference: Float[Array, "b t"], log_ratio: Float[Array, "b t"]
) -> Float[Array, "b t"]:
    """Compute what of the divergence from the reference is in the loss, for each token."""
    if config.kl_in_loss == "k1":
        return kl_k1(to_reference)
    if config.kl_in_loss == "k2":
        return kl_k2(to_reference)
    if config.kl_in_loss == "k3":
        return kl_k3(to_reference)
    return bounded_exp(log_ratio) * kl_k3(to_reference)


def _value_terms(config: PolicyLossConfig, values: Float[Array, "b t"], batch: Batch) -> Terms:
    """Compute the critic's loss: the worse of the free and of the bounded squared error."""
    rows = _rows(batch)
    counted = rows.mask > 0
    old, returns = (jnp.where(counted, batch[name], 0.0) for name in ("old_values", "returns"))
    error = jnp.square(values - returns)
    clipped = jnp.zeros(error.shape, bool)
    if config.value_clip:
        near = jnp.clip(values, old - config.value_clip, old + config.value_clip)
        bounded = jnp.square(near - returns)
        clipped = bounded > error
        error = jnp.maximum(error, bounded)
    tokens = rows.mask.sum()
    return {
        "value": Term(0.5 * jnp.sum(rows.mask * error), tokens, config.value_coefficient),
        "value_clip_fraction": Term(jnp.sum(rows.mask * clipped), tokens, 0.0),
    }


def make_policy_gradient(config: PolicyLossConfig) -> Objective:
    r"""Make the loss of a policy on rollouts.

    $-\sum_i a_i \min(\rho_i A_i, \mathrm{clip}(\rho_i, 1 - \epsilon_l, 1 + \epsilon_h) A_i)
    + \beta \sum_i a_i k(d_i) - c_H \sum_i a_i H_i$ over tokens i, with
    $\rho_i = \pi(y_i) / \pi_{old}(y_i)$, $d_i = \log \pi(y_i) - \log \pi_{ref}(y_i)$ and shares
    $a_i$ by the aggregation; for a critic also
    $\frac{c_V}{2 N} \sum_i \max((V_i - R_i)^2, (\mathrm{clip}(V_i) - R_i)^2)$ over N tokens.
    There is no dropout: the ratio would see it.

    Args:
        config: Which of these.

    Returns:
        `(model, batch, context) -> Terms` for a language model, or a policy with a critic. The
        batch has `tokens`, `targets`, `loss_mask`, `old_log_probs` and `advantages` [B, T];
        `ref_log_probs` where the divergence is to be known; `returns` and `old_values` for a
        critic; and where there are any, `weight` of a row [B] (1 = counted; in between,
        probabilities) and `update` [B], the number of the update within the step. Terms, each over
        counted tokens:

        - `loss`: of the policy, with entropy and divergence; `policy` without them.
        - `value`: of the critic, trained on beside `loss`; `value_clip_fraction`.
        - `entropy`: in nats a token, at the temperature.
        - `kl`, `kl_k3`: from the reference, in nats an answer, by k1 and by k3.
        - `old_kl`: of the policy that wrote from this one, in nats a token, by k3.
        - `clip_fraction`: of tokens that a bound took the gradient from.
        - `first_log_ratio`: mean $|\log \rho|$ in the first update of a step: 0 if what wrote is
          what trains.
        - `stale`: share of rows whose `weights_step` is not the step's `step`.

    Raises:
        ValueError: By the objective, if the batch or the context lacks something.

    Reference: Schulman et al. (PPO), arXiv:1707.06347, equations 7 and 9; sequence mean: Shao et
        al. (GRPO), arXiv:2402.03300, equation 3; token mean, two bounds: Yu et al. (DAPO),
        arXiv:2503.14476, equation 8; constant: Liu et al. (Dr. GRPO), arXiv:2503.20783; sequence
        ratio: Zheng et al. (GSPO), arXiv:2507.18071, equations 5 to 7; dual clip: Ye et al.,
        arXiv:1912.09729; value clip: Huang et al., "The N Implementation Details of
        RLHF with PPO". Ratios are held within e^±20.
    """

    def policy_gradient(
        model: NextTokenModel | PolicyWithCritic, batch: Batch, context: Any = None
    ) -> Terms:
        _check(config, batch, context, with_critic=isinstance(model, PolicyWithCritic))
        if not isinstance(model, PolicyWithCritic):
            return _policy_terms(config, model, batch, context)
        terms = _policy_terms(config, model.policy, batch, context)
        return terms | _value_terms(config, model.critic(batch["tokens"]), batch)

    return policy_gradient


def _policy_terms(
    config: PolicyLossConfig, policy: NextTokenModel, batch: Batch, context: Any
) -> Terms:
    rows = _rows(batch)
    counted = rows.mask > 0
    scores = score_rows(policy, batch["tokens"], batch["targets"], temperature=config.temperature)

    def of_counted(x: Array) -> Float[Array, "b t"]:
        return jnp.where(counted, x, 0.0).astype(jnp.float32)

    log_probs, entropy = of_counted(scores.log_probs), of_counted(scores.entropy)
    log_ratio = log_probs - of_counted(batch["old_log_probs"])
    losses, clipped = _policy_loss(
        config, log_probs, log_ratio, of_counted(batch["advantages"]), rows.lengths
    )
    shares, whole = _shares(config, rows)
    tokens, answers = rows.mask.sum(), rows.weights.sum()
    total = losses - config.entropy_coefficient * entropy
    terms: Terms = {}
    if "ref_log_probs" in batch:
        to_reference = log_probs - of_counted(batch["ref_log_probs"])
        if config.kl_in_loss != "none":
            coefficient = config.kl_coefficient
            beta = context["beta"] if coefficient is None else coefficient
            total += beta * _kl_loss(config, to_reference, log_ratio)
        for name, estimate in (("kl", kl_k1), ("kl_k3", kl_k3)):
            terms[name] = Term(jnp.sum(rows.mask * estimate(to_reference)), answers, 0.0)
    if "weights_step" in batch and "step" in batch:
        other = (batch["weights_step"] != batch["step"]).astype(jnp.float32)
        terms["stale"] = Term(other.sum(), jnp.ones_like(other).sum(), 0.0)
    update = batch.get("update", jnp.zeros(rows.weights.shape, jnp.int32))
    first = rows.mask * (update == 0)[:, None]
    return terms | {
        "loss": Term(jnp.sum(shares * total), whole),
        "policy": Term(jnp.sum(shares * losses), whole, 0.0),
        "entropy": Term(jnp.sum(rows.mask * entropy), tokens, 0.0),
        "old_kl": Term(jnp.sum(rows.mask * kl_k3(-log_ratio)), tokens, 0.0),
        "clip_fraction": Term(jnp.sum(rows.mask * clipped), tokens, 0.0),
        "first_log_ratio": Term(jnp.sum(first * jnp.abs(log_ratio)), first.sum(), 0.0),
    }


def _check(config: PolicyLossConfig, batch: Batch, context: Any, *, with_critic: bool) -> None:
    """Refuse a batch that lacks something, by name."""
    needed = ["tokens", "targets", "loss_mask", "old_log_probs", "advantages"]
    needed += ["ref_log_probs"] * (config.kl_in_loss != "none")
    needed += ["returns", "old_values"] * with_critic
    if missing := [name for name in needed if name not in batch]:
        raise ValueError(
            f"a rollout must have {', '.join(needed)}; missing: {', '.join(missing)}. "
            "Score the answers for `ref_log_probs`, and take `returns` from `rl.targets`."
        )
    coefficient_known = config.kl_coefficient is not None or "beta" in (context or {})
    if config.kl_in_loss != "none" and not coefficient_known:
        raise ValueError(
            f"`kl_in_loss` {config.kl_in_loss} needs its coefficient; got neither `kl_coefficient` "
            "nor `beta` in the context. Give one of them."
        )
