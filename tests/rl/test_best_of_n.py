"""Best-of-n beside its closed forms, by enumeration and by drawing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.rl.best_of_n import (
    accepted,
    best_of_n,
    best_of_n_distribution,
    divergence,
    kl_bound,
    take_answers,
)

P = np.array([0.5, 0.3, 0.15, 0.05])
R = np.array([0.0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize("scores", [R, np.array([1.0, 0, 1, 0]), np.ones(4)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_distribution_is_what_choosing_gives(n, scores):
    """All K^n draws, each weighted by its probability, through the function that chooses."""
    draws = np.array(list(itertools.product(range(4), repeat=n)))
    chosen = best_of_n(jnp.asarray(scores[draws], jnp.float32))
    kept = np.asarray(take_answers({"y": jnp.asarray(draws)}, chosen)["y"])
    wanted = np.bincount(kept, weights=P[draws].prod(-1), minlength=4)
    found = best_of_n_distribution(P, scores, n)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_one_fair_coin_of_two_draws():
    fair = np.array([0.5, 0.5])
    best = best_of_n_distribution(fair, np.array([0, 1]), 2)
    np.testing.assert_allclose(best, [0.25, 0.75])
    assert divergence(best, fair) == pytest.approx(0.75 * np.log(3) - np.log(2))


def test_the_bound_is_the_published_number():
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(0.6362943611198906)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_divergence_is_below_the_bound(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        p = rng.dirichlet(np.ones(6))
        r = rng.integers(0, 5, 6)
        assert divergence(best_of_n_distribution(p, r, n), p) < kl_bound(n)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_divergence_is_the_bound_where_answers_are_many_and_distinct(n):
    """Of K equally likely answers it is sum_i w_i log(K w_i), w_i = (i/K)^n - ((i-1)/K)^n, which
    falls short of the bound by the order of log(K) / K^2."""
    gaps = []
    for outcomes in (1_000, 100_000):
        uniform = np.full(outcomes, 1 / outcomes)
        edges = (np.arange(outcomes + 1) / outcomes) ** n
        found = divergence(best_of_n_distribution(uniform, np.arange(outcomes), n), uniform)
        assert found == pytest.approx(
            np.sum(np.diff(edges) * np.log(np.diff(edges) * outcomes)), abs=1e-9
        )
        gaps.append(kl_bound(n) - found)
    assert 0 < gaps[1] < gaps[0] < 1e-4
    assert gaps[1] < 1e-8


def test_equal_scores_choose_nothing():
    np.testing.assert_allclose(best_of_n_distribution(P, np.zeros(4), 8), P)


def test_what_does_not_count_is_not_chosen():
    scores = jnp.array([[1.0, jnp.nan, 3.0], [jnp.nan, 2.0, 2.0]])
    np.testing.assert_array_equal(best_of_n(scores), [2, 1])
    counted = jnp.array([[True, True, False], [False, False, True]])
    np.testing.assert_array_equal(best_of_n(jnp.array([[1.0, 2, 3], [3, 2, 1]]), counted), [1, 2])


def test_accepted_draws_are_those_of_the_optimum():
    beta, draws = 0.5, 400_000
    y = jax.random.choice(jax.random.key(0), 4, (draws,), p=jnp.asarray(P))
    scores = jnp.asarray(R, jnp.float32)[y][None]
    keep = np.asarray(accepted(scores, jax.random.key(1), beta=beta))[0]
    optimum = P * np.exp(R / beta)
    rate = optimum.sum() * np.exp(-R.max() / beta)
    assert keep.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate / draws))
    found = np.bincount(np.asarray(y)[keep], minlength=4) / keep.sum()
    optimum /= optimum.sum()
    np.testing.assert_allclose(found, optimum, atol=4 * np.sqrt(0.25 / keep.sum()))


def test_each_prompt_has_its_own_bound_and_no_number_is_never_accepted():
    scores = jnp.tile(jnp.array([[5.0], [jnp.nan]]), (1, 8)).at[1, 3].set(-70.0)
    keep = accepted(scores, jax.random.key(0), beta=0.1)
    np.testing.assert_array_equal(keep, [[True] * 8, [False] * 3 + [True] + [False] * 4])
    assert not accepted(scores[:1], jax.random.key(0), beta=0.1, highest=100.0).any()


def test_nothing_to_choose_from_is_refused():
    for function in (kl_bound, lambda n: best_of_n_distribution(P, R, n)):
        with pytest.raises(ValueError, match="n = 0"):
            function(0)
