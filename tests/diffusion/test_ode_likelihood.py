"""Densities by the probability-flow ODE against distributions whose density is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.ode_likelihood import (
    angle,
    dequantise,
    log_density,
    make_angle_grid,
    make_log_density,
    make_ode_likelihood,
    time_at_angle,
)
from genai_jax.diffusion.predictions import Prediction
from genai_jax.diffusion.process import Process
from tests.diffusion.known_scores import IdealNetwork, make_denoiser, make_mixture

SIGMA_MIN = 0.01
COSINE = Diffusion(Process("cosine"))


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@functools.cache
def density_of(mixture_arguments, process, shape, probes=0):
    """log p by the ODE and in closed form, of rows of a mixture, in float64."""
    with jax.enable_x64(True):
        mixture = make_mixture(*mixture_arguments, dtype=np.float64)
        x = mixture.sample(jax.random.key(1), 6)
        known = mixture.log_density(x, 1.0, SIGMA_MIN)

        @jax.jit
        def by_ode(num_steps, key):
            return log_density(
                make_denoiser(mixture, process),
                x.reshape(6, *shape),
                key,
                process=process,
                grid=make_angle_grid(process, SIGMA_MIN),
                num_steps=num_steps,
                probes=probes,
            )

    def run(num_steps, key=None):
        with jax.enable_x64(True):
            return np.asarray(by_ode(num_steps, keys(6) if key is None else key))

    return run, np.asarray(known)


@pytest.mark.parametrize(
    ("arguments", "process", "shape", "steps", "error"),
    [
        ((1, 1), Process("cosine"), (1,), 160, 1e-7),
        ((4, 2), Process("sigmoid"), (2, 2, 1), 160, 1e-5),
    ],
)
def test_density_is_that_of_the_mixture(arguments, process, shape, steps, error):
    run, known = density_of(arguments, process, shape)
    np.testing.assert_allclose(run(steps), known, atol=error)


def test_the_method_is_of_order_four():
    run, known = density_of((1, 1), Process("cosine"), (1,))
    errors = [np.abs(run(n) - known).max() for n in (10, 20, 40)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 4, atol=0.5)


def test_random_signs_agree_with_the_exact_divergence():
    exact, _ = density_of((4, 2), Process("sigmoid"), (2, 2, 1))
    probed, _ = density_of((4, 2), Process("sigmoid"), (2, 2, 1), probes=2)
    draws = np.stack([probed(20, keys(6, seed)) for seed in range(40)])
    errors = draws.std(0, ddof=1) / math.sqrt(len(draws))
    assert (errors > 1e-3).all()  # they do differ
    assert (np.abs(draws.mean(0) - exact(20)) < 4 * errors).all()
    # The noise of a row is its key's.
    np.testing.assert_array_equal(probed(20, keys(6, 3)), draws[3])


@pytest.mark.parametrize("process", [Process("edm"), Process("flow"), Process("linear")])
def test_angles_and_times(process):
    with jax.enable_x64(True):
        t = jnp.asarray([1e-4, 0.1, 0.9, 1.0], jnp.float64)
        phi = angle(process, t)
        alpha, sigma = process.alpha_sigma(t)
        np.testing.assert_allclose(jnp.tan(phi[:3]) * alpha[:3], sigma[:3], rtol=1e-9)
        np.testing.assert_allclose(time_at_angle(process, phi), t, rtol=1e-9)
    single = time_at_angle(process, jnp.float32(math.pi / 2))
    assert single == 1


def test_grid_goes_from_noise_to_its_least_noise():
    for process in (Process("cosine"), Process("edm"), Process("linear", num_steps=1000)):
        t = make_angle_grid(process, 0.02)(jnp.arange(12), 11)
        assert t[0] == 1
        assert (jnp.diff(t) < 0).all()
        assert t[-1] == 0
        assert float(jnp.exp(-process.log_snr(t[-2]) / 2)) == pytest.approx(0.02, rel=1e-3)
    # A discrete process says nothing below its first step.
    assert make_angle_grid(process, 1e-5)(10, 11) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("diffusion", "error"),
    [
        (Diffusion(Process("flow"), "x_0"), 3e-5),
        # At their ends some of the data is left.
        (Diffusion(Process("edm"), "edm"), 0.02),
        (Diffusion(Process("linear", num_steps=200), "eps", learned_variance=True), 0.01),
    ],
    ids=["flow", "edm", "linear"],
)
def test_densities_of_networks_in_float32(diffusion, error):
    mixture = make_mixture(4, 2)
    x = mixture.sample(jax.random.key(1), 3)
    run = make_log_density(diffusion)
    network = IdealNetwork(mixture, diffusion)
    nats = run(network, x.reshape(3, 2, 2, 1), None, None, 60, 0.05)
    np.testing.assert_allclose(nats, mixture.log_density(x, 1.0, 0.05), atol=error)


def test_bits_are_of_levels_with_uniform_noise():
    """-log2 of the density at the moved image, per dimension, on a grid of width one."""
    mixture, levels = make_mixture(4, 2), 17
    x = jnp.round((mixture.sample(jax.random.key(2), 8) + 1) * 8) / 8 - 1
    images, key = x.reshape(8, 2, 2, 1), keys(8)
    run = make_ode_likelihood(COSINE, levels, probes=0)
    bits = run(IdealNetwork(mixture, COSINE), images, None, key, 60, SIGMA_MIN)
    noise = jax.vmap(lambda row: jax.random.fold_in(row, 0))(key)
    moved = dequantise(images, noise, levels).reshape(8, 4)
    nats = mixture.log_density(moved, 1.0, SIGMA_MIN) + 4 * math.log(2 / 16)
    np.testing.assert_allclose(bits, -nats / 4 / math.log(2), atol=5e-3)


def test_dequantised_levels_fill_their_bins():
    images = jnp.broadcast_to(jnp.asarray([-1.0, 0.0, 1.0])[:, None], (3, 4000))
    offsets = (dequantise(images, keys(3), 3) - images) / 2  # in bins
    assert offsets.min() >= -0.25
    assert offsets.max() < 0.25
    counts = [np.histogram(row, 10, (-0.25, 0.25))[0] for row in np.asarray(offsets)]
    assert (np.abs(np.array(counts) - 400) < 5 * 20).all()
    assert not np.array_equal(offsets[0], offsets[1])


def test_networks_with_gradients_of_their_own_have_a_divergence():
    """Reverse mode is all that a custom gradient has."""
    mixture = make_mixture(2, 2)
    x = mixture.sample(jax.random.key(0), 3)
    exact = make_denoiser(mixture, COSINE.process)

    @jax.custom_vjp
    def x_0_of(x_t, t):
        return exact(x_t, t).x_0

    def backward(saved, gradient):
        return (jax.vjp(lambda x_t: exact(x_t, saved[1]).x_0, saved[0])[1](gradient)[0], None)

    x_0_of.defvjp(lambda x_t, t: (x_0_of(x_t, t), (x_t, t)), backward)

    def nats(denoise):
        grid = make_angle_grid(COSINE.process, SIGMA_MIN)
        return log_density(denoise, x, None, process=COSINE.process, grid=grid, num_steps=20)

    found = jax.jit(lambda: nats(lambda x_t, t: Prediction(x_0_of(x_t, t))))()
    np.testing.assert_allclose(found, jax.jit(lambda: nats(exact))(), rtol=1e-4)


def test_one_executable_serves_every_number_of_steps():
    traces = []

    @jax.jit
    def run(x, steps, sigma_min):
        def denoise(x_t, t):
            traces.append(1)
            return make_denoiser(mixture, COSINE.process)(x_t, t)

        grid = make_angle_grid(COSINE.process, sigma_min)
        return log_density(denoise, x, None, process=COSINE.process, grid=grid, num_steps=steps)

    mixture = make_mixture(2, 1)
    x = mixture.sample(jax.random.key(0), 3)
    found = [run(x, *rest) for rest in ((3, 0.1), (30, 0.01))]
    assert not np.allclose(*found)
    assert run._cache_size() == 1
    assert len(traces) == 1


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="`num_levels` must be at least 2; got 1"):
        make_ode_likelihood(COSINE, 1)
    with pytest.raises(ValueError, match=r"`probes` must be at least 0 \(exact\); got -1"):
        make_log_density(COSINE, probes=-1)
    network = IdealNetwork(make_mixture(4), COSINE)
    with pytest.raises(ValueError, match="drawn by `key`, one a row; got None for 2 probes"):
        make_log_density(COSINE, probes=2)(network, jnp.zeros((2, 2, 2, 1)), None, None, 5)
