"""The bound of an ideal network of data on a few levels, whose entropy is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.grids import make_grid
from genai_jax.diffusion.likelihood import hybrid_kl, mean_with_error
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.variational_bound import (
    make_variational_bound,
    stratified_index,
    variational_bound,
)
from tests.diffusion.known_scores import IdealNetwork, Mixture, make_denoiser

LEVELS = 5
PROBABILITIES = np.array([0.4, 0.05, 0.25, 0.1, 0.2])
ENTROPY = -float(PROBABILITIES @ np.log2(PROBABILITIES))


def points(values, weights):
    """A distribution on points, as a mixture of Gaussians of no width."""
    count, d = values.shape
    arrays = weights, values, np.zeros((count, d)), np.broadcast_to(np.eye(d), (count, d, d))
    return Mixture(*(jnp.asarray(a, jnp.float32) for a in arrays))


# Images of two independent numbers: all 25, and how likely each is.
IMAGES = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, LEVELS)], indexing="ij"), -1).reshape(-1, 2)
CHANCES = np.outer(PROBABILITIES, PROBABILITIES).ravel()
DATA = points(IMAGES, CHANCES)
COSINE = Diffusion(Process("cosine"))


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


# One shape for most tests: of every image as many rows, each with its own noise.
DRAWS = 160
X = jnp.asarray(np.repeat(IMAGES, DRAWS, 0).reshape(-1, 1, 2, 1), jnp.float32)


@functools.cache
def bound_of(diffusion, variance="small"):
    return make_variational_bound(diffusion, LEVELS, grid="log_snr", variance=variance)


@pytest.mark.parametrize(
    "diffusion",
    [
        COSINE,
        Diffusion(Process("linear", num_steps=1000), "eps"),
        Diffusion(Process("edm"), "edm"),
    ],
    ids=lambda d: d.process.schedule,
)
def test_bound_is_above_the_entropy_and_approaches_it(diffusion):
    """It is a code: 2^-bits, summed over all images, is at most 1. What it lacks falls as 1 / n."""
    found, bound = [], bound_of(diffusion)
    for steps in (25, 100, 400):
        result = bound(IdealNetwork(DATA, diffusion), X, None, keys(len(X)), steps, sigma_min=0.07)
        bits = np.asarray(result.bits, np.float64).reshape(len(IMAGES), DRAWS)
        error = math.sqrt(np.sum(CHANCES**2 * bits.var(1) / DRAWS))
        mean = float(CHANCES @ bits.mean(1))
        assert mean > ENTROPY - 3 * error
        assert np.sum(4 ** -bits.mean(1)) < 1 + 6 * error
        found.append(mean)
    gaps = np.array(found) - ENTROPY
    assert gaps[2] == pytest.approx(0.055, abs=0.02 + 3 * error)
    assert error < 0.02
    assert 3.5 < gaps[0] / gaps[1] < 5.5


def test_hybrid_term_is_the_bound_without_its_prior():
    """T L_t, averaged over the steps, on the same noise."""
    process = Process("linear", num_steps=20)
    learned = Diffusion(process, learned_variance=True)
    x, key = X[::400], keys(10)
    network = IdealNetwork(DATA, learned, fraction=0.4)
    whole = make_variational_bound(learned, LEVELS, variance="learned")(network, x, None, key, 20)

    @jax.jit
    def term(k):
        eps = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(row, k), x.shape[1:]))(key)
        t = jnp.full(len(x), 1 / 20) * k
        alpha, sigma = process.alpha_sigma(t[0])
        x_0, fraction = learned.make_denoiser(network)(alpha * x + sigma * eps, t)
        return hybrid_kl(process, x, t, x_0, fraction, LEVELS)

    nats = np.mean([term(k) for k in range(1, 21)], axis=0)
    np.testing.assert_allclose(nats / math.log(2), whole.steps + whole.decoder, rtol=1e-4)


def test_estimate_from_some_steps_is_that_of_all():
    """Unbiased, with an error that is no smaller than it says, and exact from as many as all."""
    bound, network, key = bound_of(COSINE), IdealNetwork(DATA, COSINE), keys(len(X))
    whole = bound(network, X, None, key, 60)
    np.testing.assert_array_equal(whole.bits, bound(network, X, None, key, 60, 59).bits)
    exact = mean_with_error(np.asarray(whole.bits))
    for evaluations in (1, 7, 200):
        some = bound(network, X, None, keys(len(X), seed=1), 60, evaluations)
        found = mean_with_error(np.asarray(some.bits))
        both = math.hypot(exact.standard_error, found.standard_error)
        assert abs(found.mean - exact.mean) < 3.5 * both
        np.testing.assert_allclose(some.prior, whole.prior)
    assert found.standard_error < exact.standard_error * 1.2  # of 200 looks


@pytest.mark.parametrize(("count", "strata"), [(999, 999), (10, 4), (4, 10), (1, 3), (7, 7)])
def test_strata_take_every_index_equally_often(count, strata):
    u = jnp.linspace(0, 1, 4000, endpoint=False)
    indices = np.stack(
        [
            stratified_index(j, u, jnp.int32(count), jnp.int32(strata))
            for j in map(jnp.int32, range(strata))
        ]
    )
    if count == strata:
        np.testing.assert_array_equal(indices, np.arange(count)[:, None] + np.zeros_like(indices))
    assert (np.diff(indices, axis=0) >= 0).all()
    assert indices.min() == 0
    assert indices.max() == count - 1
    shares = np.bincount(indices.ravel(), minlength=count) / indices.size
    np.testing.assert_allclose(shares, 1 / count, rtol=0.01)


def test_one_executable_serves_every_number_of_steps():
    traces = []

    def counting(x_t, t):
        traces.append(1)
        return make_denoiser(DATA, COSINE.process)(x_t, t)

    @jax.jit
    def bound(x, key, steps, evaluations, sigma_min, scale):
        return variational_bound(
            counting,
            x,
            key,
            process=COSINE.process,
            grid=make_grid(COSINE.process, "karras", sigma_min=sigma_min),
            num_steps=steps,
            num_levels=LEVELS,
            evaluations=evaluations,
            decoder_scale=scale,
        )

    x, key = X[::400], keys(10)
    many = [bound(x, key, *rest).bits for rest in ((2, 1, 0.1, 1.0), (30, 9, 0.2, 0.5))]
    assert len(traces) == 2  # the decoder's and the loop's
    assert not np.allclose(*many)
    assert bound._cache_size() == 1


def test_rows_do_not_know_of_each_other():
    bound, network, key = bound_of(COSINE), IdealNetwork(DATA, COSINE), keys(len(X))
    whole = bound(network, X, None, key, 12, 5)
    order = np.random.default_rng(0).permutation(len(X))
    for part, moved in zip(whole, bound(network, X[order], None, key[order], 12, 5), strict=True):
        np.testing.assert_allclose(moved, part[order], rtol=1e-5, atol=1e-6)


def test_conditions_reach_the_network():
    """Told which image it is, a network needs no bits for it."""
    bound, network, key = bound_of(COSINE), IdealNetwork(DATA, COSINE), keys(len(X))
    labels = jnp.repeat(jnp.arange(len(IMAGES)), DRAWS)
    told = bound(network, X, labels, key, 50, sigma_min=0.05)
    assert 0 <= float(told.bits.mean()) < 1e-3
    null = bound(network, X, network.null_condition(labels), key, 50, sigma_min=0.05)
    untold = bound(network, X, None, key, 50, sigma_min=0.05)
    np.testing.assert_allclose(null.bits, untold.bits, rtol=1e-5)


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="`num_levels` must be at least 2; got 1"):
        make_variational_bound(COSINE, 1)
    with pytest.raises(ValueError, match="needs a network that learns it"):
        make_variational_bound(COSINE, 5, variance="learned")
    x, key = X[:2], keys(2)
    network = IdealNetwork(DATA, COSINE)
    for steps in (0, 1):
        with pytest.raises(ValueError, match=f"at least 2 steps, .* got {steps}"):
            bound_of(COSINE)(network, x, None, key, steps)
    discrete = Diffusion(Process("linear", num_steps=20))
    with pytest.raises(ValueError, match=r"got 21 with process\.num_steps 20"):
        bound_of(discrete)(IdealNetwork(DATA, discrete), x, None, key, 21)
    with pytest.raises(ValueError, match="`evaluations` must be at least 1; got 0"):
        bound_of(COSINE)(network, x, None, key, 5, 0)
