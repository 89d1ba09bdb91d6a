"""Advantages beside numbers worked out by hand, and beside the recursions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.rl.advantages import (
    generalized_advantages,
    group_advantages,
    of_several_scores,
    whiten,
)

gae = jax.jit(generalized_advantages, static_argnames=("gamma", "gae_lambda"))


def row(*numbers):
    return jnp.asarray([numbers], jnp.float32)


def test_three_tokens_by_hand():
    """gamma = lambda = 1/2; delta = (1 + 1 - 1, 0 + 3/2 - 2, 2 - 3) = (1, -1/2, -1), and so
    A = (1 - 3/16, -1/2 - 1/4, -1)."""
    advantages, returns = gae(row(1, 0, 2), row(1, 2, 3), row(1, 1, 1), gamma=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(advantages, row(0.8125, -0.75, -1))
    np.testing.assert_array_equal(returns, row(1.8125, 1.25, 2))


def test_the_score_is_whole_at_the_end_token():
    """Without a critic's help A decays by lambda a token from 1; a score in the slot behind the
    end token would give 0.95 there."""
    advantages, _ = gae(row(0, 0, 1), row(0, 0, 0), row(1, 1, 1))
    np.testing.assert_allclose(advantages, row(0.95**2, 0.95, 1), rtol=1e-6)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.0), (0.8, 1.0)])
def test_advantages_are_the_recursion(gamma, gae_lambda):
    """In float64 over the counted tokens of each row alone; some rows have holes, one has none."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 5, 9))
    mask = rng.random((5, 9)) < 0.6
    mask[0], mask[1] = False, True
    wanted = np.zeros((5, 9))
    for b in range(5):
        value = advantage = 0.0
        for t in reversed(np.flatnonzero(mask[b])):
            delta = rewards[b, t] + gamma * value - values[b, t]
            advantage = delta + gamma * gae_lambda * advantage
            value, wanted[b, t] = values[b, t], advantage
    unknown = [jnp.asarray(np.where(mask, x, np.nan), jnp.float32) for x in (rewards, values)]
    found, returns = gae(
        *unknown, jnp.asarray(mask, jnp.float32), gamma=gamma, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_allclose(returns, np.where(mask, wanted + values, 0), atol=2e-6)


def test_with_lambda_one_returns_are_the_rewards_to_come_and_with_zero_one_step_ahead():
    rewards, values, mask = row(1, 2, 3, 9), row(5, -1, 4, 9), row(1, 1, 1, 0)
    np.testing.assert_allclose(gae(rewards, values, mask, gae_lambda=1.0)[1], row(6, 5, 3, 0))
    np.testing.assert_allclose(gae(rewards, values, mask, gae_lambda=0.0)[1], row(0, 6, 3, 0))


@pytest.mark.parametrize(("bessel", "variance"), [(False, 1.25), (True, 5 / 3)])
def test_whitening_of_one_to_four(bessel, variance):
    x, mask = row(1, 2, np.nan, 3, 4, 100), row(1, 1, 0, 1, 1, 0)
    centred = np.array([[-1.5, -0.5, 0, 0.5, 1.5, 0]]) / np.sqrt(variance)
    np.testing.assert_allclose(whiten(x, mask, bessel=bessel), centred, rtol=1e-6)
    kept = whiten(x, mask, bessel=bessel, keep_mean=True)
    np.testing.assert_allclose(kept, centred + 2.5 * (mask > 0), rtol=1e-6)


def test_whitening_of_one_number_and_of_none():
    np.testing.assert_array_equal(whiten(row(3, 5), row(1, 0), bessel=True), row(0, 0))
    np.testing.assert_array_equal(whiten(row(3, 5), row(1, 0), keep_mean=True), row(3, 0))
    np.testing.assert_array_equal(whiten(row(3, 5), row(0, 0), keep_mean=True), row(0, 0))


SCORES = np.array([[1.0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25], [3, -1, 2, 0]])


def advantages_of(scores, weights=None, **options):
    scores = jnp.asarray(scores, jnp.float32)
    weights = jnp.ones_like(scores) if weights is None else jnp.asarray(weights, jnp.float32)
    return np.asarray(group_advantages(scores, weights, **options))


def test_groups_by_hand():
    """Of (3, -1, 2, 0): mean 1, s^2 = 10/3; the others' means are 1/3, 5/3, 2/3 and 4/3."""
    assert advantages_of(SCORES, baseline="none").tolist() == SCORES.tolist()
    assert advantages_of(SCORES, baseline="mean")[2].tolist() == [2, -2, 1, -1]
    wanted = np.array([2, -2, 1, -1]) / (np.sqrt(10 / 3) + 1e-4)
    np.testing.assert_allclose(advantages_of(SCORES, baseline="std")[2], wanted, rtol=1e-6)
    wanted = np.array([2, -2, 1, -1]) / (np.sqrt(10 / 4) + 0.5)
    found = advantages_of(SCORES, baseline="std", ddof=0, eps=0.5)
    np.testing.assert_allclose(found[2], wanted, rtol=1e-6)
    found = advantages_of(SCORES, baseline="leave_one_out")
    np.testing.assert_allclose(found[2], [8 / 3, -8 / 3, 4 / 3, -4 / 3], rtol=1e-6)
    np.testing.assert_allclose(found[0], [2 / 3, -2 / 3, -2 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "std", "leave_one_out"])
def test_equal_scores_teach_nothing(baseline):
    assert advantages_of(SCORES, baseline=baseline)[1].tolist() == [0] * 4


@pytest.mark.parametrize("unknown", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("baseline", ["none", "mean", "std", "leave_one_out"])
def test_an_excluded_answer_leaves_a_smaller_group(baseline, unknown):
    scores = np.insert(SCORES, 2, unknown, axis=1)
    weights = np.isfinite(scores)
    found = advantages_of(scores, weights, baseline=baseline)
    wanted = np.insert(advantages_of(SCORES, baseline=baseline), 2, 0, axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "std", "leave_one_out"])
def test_an_answer_that_is_alone_teaches_nothing(baseline):
    weights = [[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    found = advantages_of(SCORES, weights, baseline=baseline)
    assert found[:2].tolist() == [[0] * 4] * 2
    assert np.all(found[2] != 0)


def test_groups_whose_counted_scores_differ():
    scores = np.append(SCORES, [[1, 5, np.nan, 1]], axis=0)
    weights = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 1]])
    found = of_several_scores(*(jnp.asarray(x, jnp.float32) for x in (scores, weights)))
    assert found[:, 0].tolist() == [True, False, False, False]
    assert not of_several_scores(jnp.ones((1, 4)), jnp.zeros((1, 4))).any()
