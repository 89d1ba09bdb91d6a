"""The coefficient of the divergence and the scale of rewards, beside their published rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

from genai_jax.rl.algorithms import RLOO, Algorithm
from genai_jax.rl.best_of_n import divergence
from genai_jax.rl.kl_control import (
    Gain,
    KLControl,
    add_scores,
    first_context,
    gain_of,
    make_next_context,
    next_beta,
    no_moments,
    rollout_kl,
)
from tests.rl.enumerated import (
    REFERENCE,
    SCORES,
    Tabular,
    letters,
    make_population,
    make_training,
    tilted,
)

OPENAI = KLControl(beta=0.15, adaptive=True, target=6.0, horizon=10_000.0)


@pytest.mark.parametrize(
    ("kl", "wanted"),
    [
        (6.0, 0.15),
        (6.6, 0.15 * (1 + 0.1 * 0.0064)),
        (60.0, 0.15 * 1.00128),  # at most a fifth counts
        (0.0, 0.15 * 0.99872),
        (-3.0, 0.15 * 0.99872),
    ],
)
def test_one_batch_of_sixty_four(kl, wanted):
    found = next_beta(OPENAI, jnp.float32(0.15), jnp.float32(kl), jnp.float32(64))
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_the_rule_of_the_paper():
    """With n / horizon = 0.1: beta (1 + 0.1 clip(KL / target - 1, +-0.2)) each batch."""
    control = KLControl(beta=0.1, adaptive=True, target=2.0, horizon=100.0)
    beta, wanted = jnp.float32(control.beta), control.beta
    for kl in (5.0, 2.1, 1.9, 0.5):
        beta = next_beta(control, beta, jnp.float32(kl), jnp.float32(10))
        wanted *= 1 + 0.1 * np.clip(kl / 2 - 1, -0.2, 0.2)
    assert float(beta) == pytest.approx(wanted, rel=1e-6)


def test_a_fixed_coefficient_stays():
    assert float(next_beta(KLControl(), jnp.float32(0.3), jnp.float32(99), jnp.float32(64))) == (
        pytest.approx(0.3)
    )


BATCH = {
    "old_log_probs": jnp.asarray([[-1.0, -2, jnp.nan], [-1, -1, -1], [0, 0, 0]]),
    "ref_log_probs": jnp.asarray([[-1.5, -4, 0], [-1, -3, -2], [9, 9, 9]]),
    "loss_mask": jnp.asarray([[1.0, 1, 0], [0, 1, 1], [0, 0, 0]]),
    "scores": jnp.asarray([1.0, 3.0, jnp.nan]),
}


def test_divergence_is_in_nats_an_answer():
    kl, answers = rollout_kl(BATCH)
    assert (float(kl), float(answers)) == ((0.5 + 2 + 2 + 1) / 2, 2)


def test_the_context_follows_and_keeps_what_is_not_its():
    context = first_context(OPENAI, normalise_rewards=True) | {"reference": jnp.ones(2)}
    after = jax.jit(make_next_context(OPENAI))(context, BATCH)
    error = max(2.75 / 6 - 1, -0.2)
    assert float(after["beta"]) == pytest.approx(0.15 * (1 + error * 2 / 10_000), rel=1e-6)
    assert [float(x) for x in after["reward_moments"]] == [2, 2, 2]
    assert after["reference"].tolist() == [1, 1]
    assert jax.tree.structure(after) == jax.tree.structure(context)
    fixed = make_next_context(KLControl(beta=0.1))({"beta": jnp.float32(0.1)}, {})
    assert float(fixed["beta"]) == pytest.approx(0.1)


def test_moments_are_those_of_all_scores():
    """In float64, of batches of several sizes about a large mean, some of them not counted."""
    rng = np.random.default_rng(0)
    moments, all_scores = no_moments(), []
    add = jax.jit(add_scores)
    for spread in (0.5, 2.0, 1.0):
        scores = 100 + spread * rng.normal(size=16)
        counted = rng.random(16) < 0.6
        known = np.where(counted, scores, np.nan)
        moments = add(moments, jnp.asarray(known, jnp.float32), jnp.asarray(counted))
        all_scores += scores[counted].tolist()
    nothing = add(moments, jnp.full(16, jnp.nan), jnp.zeros(16, bool))
    assert [float(x) for x in nothing] == [float(x) for x in moments]
    assert float(moments.mean) == pytest.approx(np.mean(all_scores), rel=1e-6)
    squares = np.var(all_scores) * len(all_scores)
    assert float(moments.squares) == pytest.approx(squares, rel=1e-4)
    gain = gain_of(moments, target_mean=-1.0, target_std=3.0)
    normalised = np.asarray(gain(jnp.asarray(all_scores, jnp.float32)))
    assert normalised.mean() == pytest.approx(-1, abs=2e-4)
    assert normalised.std() == pytest.approx(3, rel=1e-4)


def test_the_gain_by_hand():
    """Scores 2 and 6 have mean 4 and width 2: gain 1/2, bias -2."""
    moments = add_scores(no_moments(), jnp.asarray([2.0, 6.0]), jnp.asarray([True, True]))
    assert [float(x) for x in gain_of(moments)] == [0.5, -2]


@pytest.mark.parametrize("scores", [[], [5.0], [5.0, 5.0, 5.0]])
def test_without_a_width_scores_stay(scores):
    scores = jnp.asarray([*scores, 0.0])
    counted = jnp.arange(len(scores)) < len(scores) - 1
    assert gain_of(add_scores(no_moments(), scores, counted)) == Gain(1.0, 0.0)


def test_an_adaptive_coefficient_brings_the_divergence_to_its_target():
    """Policy and coefficient together end where KL(pi*, pi_ref) is the target."""
    control = KLControl(beta=2.0, adaptive=True, target=0.4, horizon=20.0)
    outcomes, log_reference = letters(4), np.log(REFERENCE)[:, None]
    algorithm = Algorithm(RLOO.loss, dataclasses.replace(RLOO.advantages, group_size=2))
    training = make_training(
        algorithm,
        Tabular(jnp.asarray(log_reference.T, jnp.float32)),
        make_population(algorithm, outcomes, log_reference, SCORES),
        optimizer=optax.sgd(2.0),
        context=first_context(control),
        next_context=make_next_context(control),
    )
    found = outcomes.probabilities(training(800))
    assert divergence(found, REFERENCE) == pytest.approx(0.4, abs=5e-4)
    beta = brentq(lambda b: divergence(tilted(REFERENCE, SCORES, b)[0], REFERENCE) - 0.4, 0.1, 5)
    np.testing.assert_allclose(found, tilted(REFERENCE, SCORES, beta)[0], atol=5e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "`beta` must be at least 0"),
        ({"target": 0.0}, "`target` must be above 0"),
        ({"horizon": -1.0}, "`horizon` must be above 0"),
        ({"beta": 0.0, "adaptive": True}, "must begin above 0"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KLControl(**options)
