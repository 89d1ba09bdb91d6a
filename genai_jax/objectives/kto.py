r"""KTO: answers that were each found good or bad, without a second answer to compare with.

B rows, each with its own answer and one to another prompt, T tokens of an answer with its prompt.

With $\ell = \log\pi(y|x) - \log\pi_\mathrm{ref}(y|x)$ and the baseline
$z = \max(0, \mathrm{mean}\ \ell(y', x))$ over answers $y'$ of other prompts, no gradient,

$$L = \begin{cases}\lambda_D (1 - \sigma(\beta(\ell - z))) & y\ \text{desirable}\\
  \lambda_U (1 - \sigma(\beta(z - \ell))) & y\ \text{undesirable.}\end{cases}$$

Optimum, for one prompt, a policy that is free, answers drawn from $\mu$ of which a share
$d_a$ is found good, and mismatched answers from $\nu$. With $s_a = \sigma(\beta(\ell_a - z))$
and $c_a = \mu_a (\lambda_D d_a - \lambda_U (1 - d_a))$ the expected loss is
$\mathrm{const} - \sum_a c_a s_a$. So an answer with $c_a < 0$, that is with a desirable share
under $\lambda_U / (\lambda_D + \lambda_U)$ (one half for equal weights), only gains from
having less: the infimum is on the boundary, $\pi_a \to 0$, however little the share is under
one half and whatever the reference says. Since $ds/d\pi = \beta s (1 - s) / \pi$, in which
$s \sim (\pi / \pi_\mathrm{ref})^\beta e^{-\beta z}$ near zero, the pull towards zero gets
weaker in the logit as $\pi^\beta$. For $\beta \le 1$, s is concave in $\pi$, so that on the
other answers there is one maximum, where
$$c_a\,\beta s_a (1 - s_a) / \pi_a = \kappa,\qquad \sum_{a: c_a > 0} \pi_a = 1,$$
with $\kappa$ the multiplier of the sum; and z is that of this policy:
$z = \max(0, \sum_a \nu_a \ell_a)$. An answer with $\nu_a > 0$ that is driven to zero takes
the sum to $-\infty$, so z = 0; and so does $\nu = \pi_\mathrm{ref}$, for which the sum is
$-\mathrm{KL}(\pi_\mathrm{ref}\|\pi)$. As z has no gradient this is where the updates rest,
not the minimum of any fixed function.

Reference: Ethayarajh et al., arXiv:2402.01306, eq. 8 and the estimate of its baseline
    below it. The optimum is derived here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genai_jax.objectives.next_token import NextTokenModel
from genai_jax.objectives.reference import (
    BaseOf,
    Reference,
    check_reference,
    reference_log_probs,
)
from genai_jax.objectives.token_log_probs import sum_log_probs
from genai_jax.types import Batch, Objective, Term, Terms


@dataclasses.dataclass(frozen=True)
class KTOConfig:
    """How much good and bad answers count, and beside what.

    Attributes:
        beta: β, how much a log-ratio to the reference counts, above 0.
        desirable_weight: λ_D of the answers that were found good, at least 0. The paper wants
            λ_D times their number within 1 to 4/3 of λ_U times the number of the others.
        undesirable_weight: λ_U of those that were found bad, at least 0.
        reference: Where the reference's log-probabilities come from: cached (`ref_log_probs` of
            the rows), live (a frozen model in the context), adapter_off (the model without its
            adapters).
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Reference = "cached"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not self.beta > 0:
            raise ValueError(f"`beta` must be above 0; got {self.beta}. Try 0.1.")
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
        if self.reference == "none":
            raise ValueError(
                "KTO needs a reference; got `reference` 'none'. Choose cached, live or adapter_off."
            )


def make_kto(
    config: KTOConfig = KTOConfig(), *, base_of: BaseOf | None = None
) -> tuple[Objective, Objective]:
    r"""Make the loss of KTO, and the mean over the global batch that it compares with.

    The module has the formulas.

    Args:
        config: Its numbers.
        base_of: Takes the adapters off a model, where the reference is adapter_off.

    Returns:
        The objective and the `batch_means` of `training.step.make_train_step`. Batches have
        `tokens`, `targets` and `loss_mask` [B, 2, T], a row's own answer first, then an answer of
        another prompt behind this one; `desirable` [B], 0 or 1; `ref_log_probs` [B, 2] if cached;
        and where there are such `answer_mask` [B, 2] (a row may lack the second) and `weight`
        [B]. The context is a dictionary, with the model `reference` if live. Terms: `loss`, a
        mean over rows; as metrics `desirable_reward` and `undesirable_reward`, means of
        $\beta\ell$ over the rows of either kind, `accuracy`, how often $\ell$ is on the right
        side of z (on it is half), `kl`, which is z, and `log_prob`.

    Raises:
        ValueError: If base_of is missing; or, when it is called, if what it reads is.
    """
    check_reference(config.reference, base_of)

    def log_ratios(
        model: NextTokenModel, batch: Batch, context: Any, answer: int
    ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
        """Compute log-ratios and log-probabilities of one answer a row; and whether it counts."""
        part: Batch = {
            name: batch[name][:, answer : answer + 1]
            for name in ("tokens", "targets", "loss_mask", "ref_log_probs", "answer_mask")
            if name in batch
        }
        log_probs = sum_log_probs(model, part)
        others = reference_log_probs(model, part, context, config.reference, base_of)
        counted = part.get("answer_mask", jnp.ones_like(log_probs))[:, 0]
        if "weight" in batch:
            counted = counted * batch["weight"]
        return (log_probs - others)[:, 0], log_probs[:, 0], counted

    def batch_means(model: NextTokenModel, batch: Batch, context: Any = None) -> Terms:
        if batch["tokens"].shape[1] != 2:
            raise ValueError(
                "KTO compares with answers of other prompts, `tokens` [B, 2, T]; got "
                f"{batch['tokens'].shape[1]} answers a row. Put another prompt's answer second."
            )
        ratios, _, counted = log_ratios(model, batch, context, 1)
        return {"kl": Term(jnp.sum(counted * ratios), counted.sum(), 0.0)}

    def kto(model: NextTokenModel, batch: Batch, context: Any = None) -> Terms:
        if not isinstance(context, dict) or "kl" not in context.get("batch_means", {}):
            raise ValueError(
                "KTO reads a mean over the global batch, context['batch_means']['kl']; got none. "
                "Give the train step both of what make_kto returns: "
                "make_train_step(kto, ..., batch_means=means)."
            )
        baseline = jnp.maximum(jax.lax.stop_gradient(context["batch_means"]["kl"]), 0)
        ratios, log_probs, counted = log_ratios(model, batch, context, 0)
        desirable = batch["desirable"].astype(jnp.float32)
        good, bad = counted * desirable, counted * (1 - desirable)
        ahead = config.beta * (ratios - baseline)
        # 1 - σ(x) = σ(-x)
        loss = config.desirable_weight * good * jax.nn.sigmoid(-ahead)
        loss += config.undesirable_weight * bad * jax.nn.sigmoid(ahead)
        right = 0.5 * (1 + jnp.sign(ahead) * (2 * desirable - 1))
        rewards, weight = config.beta * ratios, counted.sum()
        return {
            "loss": Term(loss.sum(), weight),
            "desirable_reward": Term(jnp.sum(good * rewards), good.sum(), 0.0),
            "undesirable_reward": Term(jnp.sum(bad * rewards), bad.sum(), 0.0),
            "accuracy": Term(jnp.sum(counted * right), weight, 0.0),
            "kl": Term(weight * baseline, weight, 0.0),
            "log_prob": Term(jnp.sum(counted * log_probs), weight, 0.0),
        }

    return kto, batch_means
