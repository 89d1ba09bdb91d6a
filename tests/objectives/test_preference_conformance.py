"""Preference losses on free policies: each reaches the optimum that its own formula has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.objectives.preference import PreferenceConfig, make_preference
from tests.objectives.tabular import (
    bisect,
    bradley_terry,
    logit,
    optimise,
    pair_rows,
    policy_of,
    tilted,
    two_answers,
)

BETA, EPSILON, GAMMA, ODDS = 0.5, 0.1, 0.7, 0.4
RATES = np.array([0.15, 0.35, 0.5, 0.6, 0.8])
# No two prompts have the same reference.
REFERENCE_OF_TWO = np.stack([np.linspace(0.2, 0.7, 5), 1 - np.linspace(0.2, 0.7, 5)], 1)
REFERENCE = np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
REWARDS = np.array([[0.0, 0.5, 1.0, 2.0], [0.7, 0.0, -0.6, 0.3]])


def flipped(rates):
    return rates * (1 - EPSILON) + (1 - rates) * EPSILON


def converged(loss, rates, reference, **options):
    config = PreferenceConfig(loss, beta=BETA, reference="live", **options)
    reference = policy_of(reference)
    # Away from the reference and from any optimum.
    start = policy_of(np.random.default_rng(0).dirichlet(np.ones(rates.shape[1]), len(rates)))
    models, metrics = optimise(
        make_preference(config),
        start,
        pair_rows(rates),
        context={"reference": reference},
        stages=10,
    )
    return models[-1].probabilities(), metrics


def unsigned_root(p, margin):
    q, c = 1 - p, np.exp(-margin)
    return np.log(((p - q) + np.sqrt((p - q) ** 2 + 4 * p * q * c**2)) / (2 * q * c))


def orpo_root(p):
    def slope(z):
        return 1 / (1 + np.exp(-z)) - p + 2 * ODDS * (1 / (1 + np.exp(-2 * z)) - p)

    return bisect(slope, np.full_like(p, -20), np.full_like(p, 20))


@pytest.mark.parametrize(
    ("loss", "options", "rates", "wanted"),
    [
        ("dpo", {}, RATES, logit(RATES) / BETA),
        ("ipo", {}, RATES, (RATES - 0.5) / BETA),
        ("cdpo", {"label_smoothing": EPSILON}, RATES, logit(flipped(RATES)) / BETA),
        ("robust", {"label_smoothing": EPSILON}, flipped(RATES), logit(RATES) / BETA),
        ("simpo", {"gamma": GAMMA}, RATES, unsigned_root(RATES, GAMMA) / BETA),
        ("orpo", {"odds_weight": ODDS}, RATES, orpo_root(RATES)),
    ],
)
def test_a_pair_reaches_the_optimum_of_its_loss(loss, options, rates, wanted):
    """h* of the module's docstring; simpo and orpo, without a reference, that of log pi itself."""
    policy, metrics = converged(loss, two_answers(rates), REFERENCE_OF_TWO, **options)
    h = np.log(policy[:, 0] / policy[:, 1])
    if loss not in ("simpo", "orpo"):
        h -= np.log(REFERENCE_OF_TWO[:, 0] / REFERENCE_OF_TWO[:, 1])
    np.testing.assert_allclose(h, wanted, atol=1e-3)
    assert metrics["grad_norm"] < 1e-4
    # Each outcome's margin is +h or -h, at its rate.
    if loss != "orpo":
        mean = BETA * np.mean((2 * rates - 1) * wanted)
        assert metrics["margin"] == pytest.approx(mean, abs=1e-3)


def ipo_utilities(rates):
    """Least squares over all pairs: the mean over all answers, itself among them, of p - 1/2."""
    return (rates - 0.5).mean(-1)


UNRANKED = np.array(bradley_terry(REWARDS))
# Rock, paper, scissors among three: no rewards explain these labels.
UNRANKED[0, 0, 1] = UNRANKED[0, 1, 2] = UNRANKED[0, 2, 0] = 0.8
UNRANKED[0, 1, 0] = UNRANKED[0, 2, 1] = UNRANKED[0, 0, 2] = 0.2


@pytest.mark.parametrize(
    ("loss", "options", "rates", "wanted"),
    [
        ("dpo", {}, bradley_terry(REWARDS), tilted(REFERENCE, REWARDS, BETA)),
        (
            "robust",
            {"label_smoothing": EPSILON},
            flipped(bradley_terry(REWARDS)),
            tilted(REFERENCE, REWARDS, BETA),
        ),
        ("ipo", {}, UNRANKED, tilted(REFERENCE, ipo_utilities(UNRANKED), BETA)),
        ("simpo", {}, bradley_terry(REWARDS), tilted(np.ones((2, 4)), REWARDS, BETA)),
    ],
)
def test_several_answers_reach_the_policy_of_theory(loss, options, rates, wanted):
    policy, _ = converged(loss, rates, REFERENCE, **options)
    np.testing.assert_allclose(policy, wanted, atol=1e-3)


def test_likelihood_of_dpo_is_that_of_bradley_terry():
    """At the optimum the loss is the entropy of the labels."""
    rates = bradley_terry(REWARDS)
    _, metrics = converged("dpo", rates, REFERENCE)
    off = ~np.eye(4, dtype=bool)
    entropy = -(rates * np.log(rates))[:, off].sum() / rates[:, off].sum()
    assert metrics["loss"] == pytest.approx(entropy, abs=1e-4)


def test_robust_loss_is_dpo_on_average_over_flips():
    """Its mean over flipped labels is the loss of the labels as they were, at any policy."""
    policy = policy_of(np.random.default_rng(1).dirichlet(np.ones(2), 5))
    context = {"reference": policy_of(REFERENCE_OF_TWO)}

    def mean(loss, rates, **options):
        config = PreferenceConfig(loss, beta=BETA, reference="live", **options)
        objective = make_preference(config)
        batch = jax.tree.map(jnp.asarray, pair_rows(two_answers(rates)))

        def value(model):
            term = objective(model, batch, context)["loss"]
            return term.sum / term.weight

        return jax.jit(jax.value_and_grad(value))(policy)

    clean, gradient = mean("dpo", RATES)
    noisy, noisy_gradient = mean("robust", flipped(RATES), label_smoothing=EPSILON)
    np.testing.assert_allclose(noisy, clean, rtol=1e-5)
    np.testing.assert_allclose(noisy_gradient.table, gradient.table, atol=1e-6)
