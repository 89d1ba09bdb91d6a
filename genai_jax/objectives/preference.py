r"""Losses on pairs of answers, one preferred: DPO, IPO, cDPO, robust DPO, ORPO and SimPO.

B rows of two answers, the preferred one first, T tokens of an answer with its prompt.

With $\ell(y) = \log\pi(y|x) - \log\pi_\mathrm{ref}(y|x)$, sums over an answer's tokens,
$h = \ell(y_w) - \ell(y_l)$, $\bar\ell(y) = \frac{1}{|y|} \log \pi(y|x)$, and
$\mathrm{lo}(y) = \bar\ell(y) - \log(1 - e^{\bar\ell(y)})$ the log-odds, the losses of a pair
are

- dpo: $-\log\sigma(\beta h)$;
- ipo: $(h - \frac{1}{2\beta})^2$;
- cdpo: $-(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)$;
- robust: $\frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}
  {1 - 2\epsilon}$;
- orpo: $-\bar\ell(y_w) - \lambda\log\sigma(\mathrm{lo}(y_w) - \mathrm{lo}(y_l))$;
- simpo: $-\log\sigma(\beta\bar\ell(y_w) - \beta\bar\ell(y_l) - \gamma)$.

Optima. Let the labels of a pair (a, b) prefer a at rate p, let the policy be free to be any
distribution, and let h be of a against b. Each expected loss of a pair has one minimum:

- dpo: $h^* = \mathrm{logit}(p) / \beta$;
- ipo: $h^* = (p - \frac12) / \beta$, finite for labels that never differ;
- cdpo: $h^* = \mathrm{logit}(p(1-\epsilon) + (1-p)\epsilon) / \beta$;
- robust: where p is the rate before labels are flipped at $\epsilon$,
  $h^* = \mathrm{logit}(p) / \beta$; on labels as they are,
  $\mathrm{logit}(\frac{p - \epsilon}{1 - 2\epsilon}) / \beta$, none for p outside
  $(\epsilon, 1-\epsilon)$, where the loss has no lower bound;
- simpo: for $u = \beta(\bar\ell(a) - \bar\ell(b))$ and $q = 1 - p$, $c = e^{-\gamma}$,
  $u^* = \log\frac{(p-q) + \sqrt{(p-q)^2 + 4pqc^2}}{2qc}$, the root of a reward model whose
  margin is $\gamma$ whoever wins;
- orpo: for two answers of one token, $z = \mathrm{logit}\,\pi(a)$ solves
  $\sigma(z) - p + 2\lambda(\sigma(2z) - p) = 0$: between $\frac12\mathrm{logit}(p)$, which
  the odds want, and $\mathrm{logit}(p)$, which the likelihood wants.

With more than two answers these hold for all pairs at once if they agree. Labels of
Bradley-Terry, $\mathrm{logit}(p_{ab}) = r(a) - r(b)$, make dpo (and robust) agree, at
$\pi^* \propto \pi_\mathrm{ref}\,e^{r/\beta}$, and simpo with $\gamma = 0$, at
$\log\pi^*(y) = |y| (r(y)/\beta + \kappa)$ with $\kappa$ such that the sum is one. ipo finds
the least squares: if all pairs are asked equally often,
$\pi^* \propto \pi_\mathrm{ref}\,e^{s/\beta}$ with $s(a) = \frac1n \sum_b (p_{ab} - \frac12)$,
where $p_{aa} = \frac12$ is counted among the n answers. cdpo, simpo with a margin and orpo find
a compromise that has no closed form.

Only differences of $\ell$ are held to something. Mass that both answers lose to texts which
are in no pair changes no loss but orpo's and simpo's.

Reference: DPO: Rafailov et al., arXiv:2305.18290, eq. 7, optimum eq. 4; IPO: Azar et al.,
    arXiv:2310.12036, eq. 17; cDPO: Mitchell, "A Note on DPO with Noisy Preferences and
    Relationship to IPO", 2023; robust DPO: Chowdhury et al., arXiv:2403.00409, section 3;
    ORPO: Hong et al., arXiv:2403.07691, eqs. 6 and 7; SimPO: Meng et al., arXiv:2405.14734,
    eq. 6. The odds of orpo are bounded at a mean log-probability of -1e-6.
"""

import dataclasses
from typing import Any, Literal

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

Loss = Literal["dpo", "ipo", "cdpo", "robust", "orpo", "simpo"]

# The largest length-mean log-probability whose odds are finite in float32.
_SURE = -1e-6


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Which loss, and what it is measured against.

    Attributes:
        loss: dpo, ipo, cdpo (labels that are flipped are expected, and hedged against), robust
            (they are expected, and corrected for), orpo or simpo.
        beta: β, how much a log-ratio to the reference counts: large keeps near the reference; for
            simpo how much a mean log-probability counts, 2 to 10 there. Above 0. orpo has none.
        label_smoothing: ε, share of labels that are flipped, in [0, 0.5), for cdpo and robust.
        gamma: γ of simpo: by how much β times the preferred answer's mean log-probability has to be
            the larger; at least 0, about β / 2 in its paper.
        odds_weight: λ of orpo, weight of the odds ratio beside the likelihood; at least 0.
        length_normalised: Whether ipo divides each answer's log-ratio by its counted tokens, as TRL
            does; the paper does not.
        reference: Where the reference's log-probabilities come from: cached (`ref_log_probs` of
            the rows), live (a frozen model in the context), adapter_off (the model without its
            adapters). orpo and simpo have no reference, and read none.
    """

    loss: Loss = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.0
    odds_weight: float = 0.1
    length_normalised: bool = False
    reference: Reference = "cached"

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and options that would be ignored."""
        if not self.beta > 0:
            raise ValueError(f"`beta` must be above 0; got {self.beta}. Try 0.1.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`label_smoothing` must be in [0, 0.5); got {self.label_smoothing}. It is the "
                "share of labels that are wrong; at one half labels say nothing."
            )
        if self.label_smoothing and self.loss not in ("cdpo", "robust"):
            raise ValueError(
                f"`label_smoothing` belongs to cdpo and robust; got {self.label_smoothing} with "
                f"loss {self.loss!r}. Choose one of them, or label_smoothing 0."
            )
        for name, owner in (("gamma", "simpo"), ("odds_weight", "orpo")):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative; got {getattr(self, name)}.")
            if self.loss != owner and getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"`{name}` belongs to {owner}; got {getattr(self, name)} with loss "
                    f"{self.loss!r}. Leave it out."
                )
        if self.length_normalised and self.loss != "ipo":
            raise ValueError(
                f"`length_normalised` belongs to ipo; got it with loss {self.loss!r}. Leave it "
                "out: orpo and simpo always take means, the others sums."
            )
        if self.reference == "none" and self.needs_reference:
            raise ValueError(
                f"Loss {self.loss!r} needs a reference; got `reference` 'none'. Choose cached, "
                "live or adapter_off, or the loss orpo or simpo."
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.loss not in ("orpo", "simpo")


_DEFAULTS = {"gamma": 0.0, "odds_weight": 0.1}


def make_preference(
    config: PreferenceConfig = PreferenceConfig(), *, base_of: BaseOf | None = None
) -> Objective:
    r"""Make a loss on pairs of answers $y_w \succ y_l$ to the same prompt x.

    The module has the formulas.

    Args:
        config: Which loss.
        base_of: Takes the adapters off a model, where the reference is adapter_off.

    Returns:
        An objective. Batches have `tokens`, `targets` and `loss_mask` [B, 2, T], the preferred
        answer first; `ref_log_probs` [B, 2] if cached; and where there are such `answer_mask`
        [B, 2] and `weight` [B] (1 = counted). The context has the model `reference` if live.
        Terms, as means over pairs: `loss`; and as metrics `margin`, the difference of implicit
        rewards (the argument of $\sigma$ without γ; $\beta h$ for ipo); `accuracy`, how often it
        is above 0 (0 is half); `chosen_log_prob` and `rejected_log_prob`, sums over an answer;
        with a reference `chosen_reward` and `rejected_reward`, $\beta\ell$, and
        `kl_from_reference`, the mean of $-\ell$ over both answers, which estimates
        $\mathrm{KL}(\pi_\mathrm{ref}\|\pi)$ where the reference wrote them.

    Raises:
        ValueError: If base_of is missing; or, when it is called, if what it reads is.
    """
    if config.needs_reference:
        check_reference(config.reference, base_of)

    def preference(model: NextTokenModel, batch: Batch, context: Any = None) -> Terms:
        if batch["tokens"].shape[1] != 2:
            raise ValueError(
                "A preference must be a pair, `tokens` [B, 2, T]; got "
                f"{batch['tokens'].shape[1]} answers a row. Cut rankings into pairs."
            )
        log_probs = sum_log_probs(model, batch)
        lengths = jnp.maximum(batch["loss_mask"].sum(-1), 1)
        rows = len(log_probs)
        exist = batch.get("answer_mask", jnp.ones((rows, 2)))
        counted = batch.get("weight", jnp.ones(rows)) * exist.prod(1)
        metrics = {"chosen_log_prob": log_probs[:, 0], "rejected_log_prob": log_probs[:, 1]}
        if config.needs_reference:
            others = reference_log_probs(model, batch, context, config.reference, base_of)
            ratios = log_probs - others
            metrics |= {
                "kl_from_reference": -ratios.mean(1),
                "chosen_reward": config.beta * ratios[:, 0],
                "rejected_reward": config.beta * ratios[:, 1],
            }
            if config.length_normalised:
                ratios = ratios / lengths
            margin = config.beta * (ratios[:, 0] - ratios[:, 1])
        else:
            means = log_probs / lengths
            scores = config.beta * means if config.loss == "simpo" else _log_odds(means)
            margin = scores[:, 0] - scores[:, 1]
        loss = pair_loss(config, margin)
        if config.loss == "orpo":
            loss = config.odds_weight * loss - means[:, 0]
        metrics |= {"margin": margin, "accuracy": 0.5 * (1 + jnp.sign(margin))}
        weight = counted.sum()
        terms = {"loss": Term(jnp.sum(counted * loss), weight)}
        for name, values in metrics.items():
            terms[name] = Term(jnp.sum(counted * values), weight, 0.0)
        return terms

    return preference


def pair_loss(config: PreferenceConfig, margin: Float[Array, " b"]) -> Float[Array, " b"]:
    r"""Compute the loss of the difference of implicit rewards, $\beta h$; of orpo the odds' part.

    Args:
        config: Which loss.
        margin: Of the preferred answer over the other.
    """
    wins, loses = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    epsilon = config.label_smoothing
    if config.loss == "ipo":
        # (h - 1/2β)^2, of βh.
        return jnp.square((margin - 0.5) / config.beta)
    if config.loss == "cdpo":
        return -(1 - epsilon) * wins - epsilon * loses
    if config.loss == "robust":
        return (-(1 - epsilon) * wins + epsilon * loses) / (1 - 2 * epsilon)
    if config.loss == "simpo":
        return -jax.nn.log_sigmoid(margin - config.gamma)
    return -wins


def _log_odds(log_p: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Compute log p - log(1 - p) of log p."""
    log_p = jnp.minimum(log_p, _SURE)
    return log_p - jnp.log(-jnp.expm1(log_p))
