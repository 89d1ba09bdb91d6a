"""KTO on free policies: what it drives to zero, where the rest settles, and its baseline."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.objectives.kto import KTOConfig, make_kto
from tests.objectives.tabular import answer_rows, bisect, optimise, policy_of

REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])
BETA = 0.5


def rows(shares, drawn, mismatched):
    """All (answer, found good or bad, mismatched answer) of one prompt, with probabilities."""
    outcomes = list(itertools.product(range(4), (0, 1), range(4)))
    answers = [(a, other) for a, _, other in outcomes]
    weight = [
        drawn[a] * (shares[a] if good else 1 - shares[a]) * mismatched[other]
        for a, good, other in outcomes
    ]
    good = [good for _, good, _ in outcomes]
    return answer_rows([0] * len(outcomes), answers, weight, desirable=good)


def trained(shares, drawn, mismatched, *, start=REFERENCE, **options):
    config = KTOConfig(beta=BETA, reference="live", **options.pop("config", {}))
    objective, means = make_kto(config)
    models, metrics = optimise(
        objective,
        policy_of(start[None]),
        rows(shares, drawn, mismatched),
        context={"reference": policy_of(REFERENCE[None])},
        batch_means=means,
        **options,
    )
    return np.array([model.probabilities()[0] for model in models]), metrics


def settled(gains, baseline):
    """The maximum of sum_a c_a s_a over policies: c_a beta s_a (1 - s_a) / pi_a is one number."""
    good = gains > 0

    def policy(log_multiplier):
        def slack(p):
            ratio = (p / REFERENCE) ** BETA * np.exp(-BETA * baseline)
            return np.exp(log_multiplier) - gains * BETA * ratio / (1 + ratio) ** 2 / p

        return np.where(good, bisect(slack, np.full(4, 1e-300), np.ones(4)), 0.0)

    return policy(bisect(lambda x: 1 - policy(x).sum(), -20.0, 20.0))


def test_a_desirable_share_under_one_half_is_driven_to_zero_and_the_rest_settles():
    shares = np.array([0.8, 0.6, 0.45, 0.1])
    policies, metrics = trained(shares, REFERENCE, REFERENCE, updates=2000, stages=20)
    wanted = settled(REFERENCE * (2 * shares - 1), 0.0)
    np.testing.assert_allclose(policies[-1], wanted, atol=1e-3)
    assert np.all(wanted[2:] == 0) and np.all(policies[-1][2:] < 1e-3)
    # Monotone: every stage has less of both than the one before.
    assert np.all(np.diff(policies[:, 2:], axis=0) < 0)
    assert metrics["kl"] == 0


def test_weights_move_the_share_at_which_an_answer_is_kept():
    """With lambda_D = 2, lambda_U = 1 the border is one third."""
    shares = np.array([0.8, 0.4, 0.36, 0.3])
    weights = {"desirable_weight": 2.0, "undesirable_weight": 1.0}
    policies, _ = trained(shares, REFERENCE, REFERENCE, updates=2000, config=weights)
    wanted = settled(REFERENCE * (2 * shares - (1 - shares)), 0.0)
    np.testing.assert_allclose(policies[-1], wanted, atol=1e-3)
    assert np.all(policies[-1][:3] > 0.01) and policies[-1][3] < 1e-3


def test_a_baseline_above_zero_is_that_of_the_policy_that_it_leads_to():
    """Where all answers are kept, and those of other prompts are what the policy moves to."""
    shares = np.array([0.55, 0.6, 0.7, 0.9])
    drawn = np.array([0.1, 0.2, 0.3, 0.4])
    gains = drawn * (2 * shares - 1)

    def excess(z):
        return z - max(0.0, float(drawn @ np.log(settled(gains, z) / REFERENCE)))

    baseline = bisect(excess, 0.0, 3.0)
    assert baseline > 0.1
    wanted = settled(gains, baseline)
    policies, metrics = trained(shares, drawn, drawn, updates=2000, stages=10)
    np.testing.assert_allclose(policies[-1], wanted, atol=1e-3)
    assert metrics["kl"] == pytest.approx(baseline, abs=1e-3)
    # And the baseline matters: without it the policy would settle elsewhere.
    assert np.abs(settled(gains, 0.0) - wanted).max() > 5e-3


def test_terms_are_the_definition():
    rng = np.random.default_rng(0)
    policy, reference = policy_of(rng.dirichlet(np.ones(4), 2)), policy_of(REFERENCE[None])
    answers, good = [[0, 1], [2, 3], [1, -1], [3, 0]], np.array([1.0, 0.0, 1.0, 0.0])
    weight = np.array([1.0, 2.0, 0.5, 3.0])
    batch = answer_rows([0] * 4, answers, weight, desirable=good)
    batch = jax.tree.map(jnp.asarray, batch)
    objective, means = make_kto(KTOConfig(BETA, 1.5, 0.8, "live"))
    context = {"reference": reference}
    mean = jax.jit(means)(policy, batch, context)["kl"]

    log_ratio = np.log(policy.probabilities()[0] / REFERENCE)
    wanted = sum(w * log_ratio[a[1]] for w, a in zip(weight, answers, strict=True) if a[1] >= 0)
    assert float(mean.sum) == pytest.approx(wanted, rel=1e-5)
    assert float(mean.weight) == 6  # the third row has no mismatched answer

    for baseline in (-0.4, 0.4):
        full = context | {"batch_means": {"kl": jnp.float32(baseline)}}
        terms = jax.jit(objective)(policy, batch, full)
        z = max(baseline, 0.0)
        ahead = BETA * (log_ratio[[a[0] for a in answers]] - z)
        losses = np.where(good, 1.5 / (1 + np.exp(ahead)), 0.8 / (1 + np.exp(-ahead)))
        assert float(terms["loss"].sum) == pytest.approx(weight @ losses, rel=1e-5)
        assert float(terms["loss"].weight) == 6.5
        rewards = BETA * log_ratio[[a[0] for a in answers]]
        assert float(terms["desirable_reward"].sum) == pytest.approx(
            (weight * good) @ rewards, rel=1e-4
        )
        right = weight @ ((ahead > 0) == good)
        assert float(terms["accuracy"].sum) == pytest.approx(right)
        assert float(terms["kl"].sum / terms["kl"].weight) == pytest.approx(z)


def test_what_is_missing_is_said():
    objective, means = make_kto(KTOConfig(reference="live"))
    policy = policy_of(REFERENCE[None])
    batch = jax.tree.map(jnp.asarray, answer_rows([0], [[0]], [1.0], desirable=[1.0]))
    with pytest.raises(ValueError, match=r"context\['batch_means'\]\['kl'\]"):
        objective(policy, batch, {"reference": policy})
    with pytest.raises(ValueError, match=r"tokens` \[B, 2, T\]; got 1 answers"):
        means(policy, batch, {"reference": policy})
    with pytest.raises(ValueError, match="KTO needs a reference"):
        KTOConfig(reference="none")
    with pytest.raises(ValueError, match="`beta` must be above 0"):
        KTOConfig(beta=0.0)
    with pytest.raises(ValueError, match="`undesirable_weight` must not be negative"):
        KTOConfig(undesirable_weight=-1.0)
