"""The terms of the variational bound against closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from genai_jax.diffusion.likelihood import (
    decoder_deviation,
    hybrid_kl,
    log_bin_mass,
    mean_with_error,
    prior_kl,
    row_mean,
    step_kl,
)
from genai_jax.diffusion.process import Process, discrete_betas

DDPM = Process("linear", num_steps=1000)
kl_of_step = jax.jit(step_kl, static_argnums=0)
hybrid_of = jax.jit(hybrid_kl, static_argnums=(0, 5))
bin_masses = jax.jit(log_bin_mass, static_argnums=3)


def levels(count, dtype=np.float64):
    return (-1 + 2 * np.arange(count) / (count - 1)).astype(dtype)


@pytest.mark.parametrize("count", [2, 3, 17, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_bins_of_all_levels_hold_everything(count, dtype):
    """Whatever the Gaussian: narrow, wide, or far outside of the levels."""
    means = np.array([-3.0, -1.0, -0.43, 0.0, 0.77, 1.0, 1.5])[:, None, None]
    deviations = np.array([0.003, 0.1, 1.0, 20.0])[:, None]
    with jax.enable_x64(True):
        x, mean, deviation = np.broadcast_arrays(levels(count), means, deviations)
        nats = bin_masses(*(jnp.asarray(a, dtype) for a in (x, mean, deviation)), count)
        assert nats.dtype == dtype
        total = np.exp(np.asarray(nats, np.float64)).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-4 if dtype == jnp.float32 else 1e-12)


def test_bins_far_from_their_mean_keep_their_logarithm():
    """In float32, at up to 300 deviations, against differences of logarithms in float64."""
    x = levels(17)
    mean, deviation = np.full(17, 0.31), np.array([0.004, 0.03, 0.2, 2.0])[:, None]
    edges = np.concatenate([[-np.inf], x[:-1] + 1 / 16, [np.inf]])
    low, high = (edges[:-1] - mean) / deviation, (edges[1:] - mean) / deviation
    mirrored = low > 0
    low, high = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    below = special.log_ndtr(high)
    expected = below + np.log1p(-np.exp(special.log_ndtr(low) - below))
    x, mean, deviation = np.broadcast_arrays(x, mean, deviation)
    actual = bin_masses(*(jnp.asarray(a, jnp.float32) for a in (x, mean, deviation)), 17)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert expected.min() < -10_000


def test_bins_have_finite_gradients_everywhere():
    x, mean = jnp.meshgrid(levels(5, np.float32), np.array([-1.0, -0.5, 0.2, 1.0], np.float32))
    for deviation in (1e-3, 0.1, 30.0):
        total = jax.jit(jax.grad(lambda s, m: log_bin_mass(x, m, s, 5).sum(), argnums=(0, 1)))
        for gradient in total(jnp.full(x.shape, deviation), mean):
            assert jnp.isfinite(gradient).all()


def reverse_gaussians(process, t, s, x_0, x_0_hat, v):
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) from means and variances, as DDPM defines them."""
    with jax.enable_x64(True):
        alpha_t, sigma_t, alpha_s, sigma_s = (
            float(level)
            for time in (t, s)
            for level in process.alpha_sigma(jnp.asarray(time, jnp.float64))
        )
    between = alpha_t / alpha_s
    forward = sigma_t**2 - between**2 * sigma_s**2  # variance of q(x_t | x_s)
    small = forward * sigma_s**2 / sigma_t**2
    x_t = 0.3  # of no consequence
    means = [
        (between * sigma_s**2 * x_t + alpha_s * forward * x) / sigma_t**2 for x in (x_0, x_0_hat)
    ]
    variance = np.exp(v * np.log(forward) + (1 - v) * np.log(small))
    ratio = small / variance
    return (ratio - 1 - np.log(ratio) + (means[0] - means[1]) ** 2 / variance) / 2


@pytest.mark.parametrize(
    ("process", "t", "s"),
    [
        (DDPM, 0.5, 0.499),
        (DDPM, 0.002, 0.001),
        (Process("cosine"), 0.8, 0.3),
        (Process("edm"), 0.05, 0.01),
        (Process("flow"), 0.6, 0.4),
    ],
)
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_kl_of_a_step_is_that_of_two_gaussians(process, t, s, v):
    rng = np.random.default_rng(0)
    x_0, x_0_hat = rng.uniform(-1, 1, (2, 3, 2, 2, 1))
    expected = reverse_gaussians(process, t, s, x_0, x_0_hat, v)
    with jax.enable_x64(True):
        arguments = jnp.full(3, t), jnp.full(3, s), np.square(x_0 - x_0_hat), np.full(x_0.shape, v)
        actual = kl_of_step(process, *map(jnp.asarray, arguments))
    np.testing.assert_allclose(actual, expected, rtol=1e-8)
    single = (jnp.asarray(np.asarray(a), jnp.float32) for a in arguments)
    np.testing.assert_allclose(kl_of_step(process, *single), expected, rtol=1e-4)


@pytest.mark.parametrize("process", [Process("linear"), Process("edm"), Process("flow")])
def test_kl_of_the_prior(process):
    x = np.linspace(-1, 1, 5)
    with jax.enable_x64(True):
        t = jnp.asarray(0.7, jnp.float64)
        alpha, sigma = map(float, process.alpha_sigma(t))
        actual = prior_kl(process, t, jnp.asarray(x))
    scale = math.hypot(alpha, sigma)
    expected = np.log(scale / sigma) + (sigma**2 + alpha**2 * x**2) / (2 * scale**2) - 0.5
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-15)


def test_decoder_of_ddpm_has_the_variances_of_its_first_two_steps():
    """beta-tilde_2 at v = 0 and beta_1 at v = 1, as x_0 sees them."""
    with jax.enable_x64(True):
        first, second = jnp.asarray(1e-3, jnp.float64), jnp.asarray(2e-3, jnp.float64)
        fraction = jnp.asarray([0.0, 1.0])
        deviation = np.asarray(decoder_deviation(DDPM, first, second, fraction, 256))
    beta = discrete_betas(DDPM)[0]
    np.testing.assert_allclose(deviation**2 * (1 - beta), [5.45318766e-5, beta], rtol=1e-7)


def test_a_decoder_is_never_much_narrower_than_its_bin():
    first, second = jnp.full(2, 1e-6), jnp.full(2, 2e-6)
    deviation = decoder_deviation(Process("edm"), first, second, jnp.zeros((2, 3)), 17)
    np.testing.assert_allclose(deviation, 1 / 64)
    x = jnp.asarray(levels(17, np.float32))
    lost = bin_masses(x, x, jnp.full(17, 1 / 64), 17)
    assert -lost.min() / math.log(2) < 1e-4


def hybrid(t, fraction, x_0, x_0_hat, num_levels=17):
    shape = x_0.shape
    return hybrid_of(
        DDPM,
        jnp.asarray(x_0, jnp.float32),
        jnp.full(len(x_0), t, jnp.float32),
        jnp.asarray(x_0_hat, jnp.float32),
        jnp.full(shape, fraction, jnp.float32),
        num_levels,
    )


def test_hybrid_term_is_small_and_large_at_the_ends_of_the_fraction():
    rng = np.random.default_rng(1)
    x_0 = rng.choice(levels(17), (4, 2, 2, 1))
    x_0_hat = x_0 + 0.05 * rng.standard_normal(x_0.shape)
    for v in (0.0, 1.0):
        actual = hybrid(0.3, v, x_0, x_0_hat)
        expected = 1000 * reverse_gaussians(DDPM, 0.3, 0.299, x_0, x_0_hat, v)
        np.testing.assert_allclose(actual, expected.mean((1, 2, 3)), rtol=2e-4)
        # The first step is the decoder's.
        actual = hybrid(0.001, v, x_0, x_0_hat)
        variance = (5.45318766e-5, 1e-4)[int(v)] / (1 - 1e-4)
        deviation = max(math.sqrt(variance), 1 / 64)
        masses = np.diff(
            stats.norm.cdf(
                np.concatenate([[-np.inf], levels(17)[:-1] + 1 / 16, [np.inf]]),
                x_0_hat[..., None],
                deviation,
            )
        )
        chosen = np.take_along_axis(masses, np.rint((x_0[..., None] + 1) * 8).astype(int), -1)
        expected = -1000 * np.log(chosen[..., 0]).mean((1, 2, 3))
        np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_hybrid_term_trains_the_variance_alone():
    rng = np.random.default_rng(2)
    times = jnp.asarray([0.001, 0.002, 0.5, 1.0])
    x_0 = jnp.asarray(rng.choice(levels(256), (4, 3)), jnp.float32)
    x_0_hat = x_0 + 0.02 * jnp.asarray(rng.standard_normal(x_0.shape), jnp.float32)
    fraction = jnp.full(x_0.shape, 0.4)

    def loss(x_0_hat, fraction):
        return hybrid_kl(DDPM, x_0, times, x_0_hat, fraction).sum()

    to_mean, to_variance = jax.jit(jax.grad(loss, argnums=(0, 1)))(x_0_hat, fraction)
    assert not to_mean.any()
    assert jnp.isfinite(to_variance).all()
    assert (to_variance != 0).all()


def test_hybrid_term_is_least_at_the_variance_of_the_errors():
    """The best variance is the posterior's, plus that of the error of its mean."""
    t, best = 0.4, 0.3
    with jax.enable_x64(True):
        times = jnp.asarray([t, t - 1e-3], jnp.float64)
        _, sigma = np.asarray(DDPM.alpha_sigma(times))
        snr = np.exp(np.asarray(DDPM.log_snr(times)))
    # variance / small = (sigma_t / sigma_s)^(2 v) = 1 + (SNR_s - SNR_t) error^2.
    error = math.sqrt(((sigma[0] / sigma[1]) ** (2 * best) - 1) / (snr[1] - snr[0]))
    v = np.linspace(0, 1, 41, dtype=np.float32)[:, None]
    curve = hybrid_of(DDPM, jnp.zeros_like(v), jnp.full(41, t), jnp.full_like(v, error), v)
    assert v[np.argmin(curve), 0] == pytest.approx(best, abs=0.03)


def test_row_mean_keeps_rows():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(row_mean(x), [2.5, 8.5])


def test_errors_of_a_mean_are_over_images_and_noise():
    rng = np.random.default_rng(3)
    images, noise = rng.normal(2, 0.5, (4000, 1)), rng.normal(0, 0.8, (4000, 2))
    found = mean_with_error((images + noise).astype(np.float32))
    assert found.images == 4000
    assert found.standard_error == pytest.approx(math.sqrt((0.25 + 0.32) / 4000), rel=0.05)
    assert abs(found.mean - 2) < 4 * found.standard_error
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        mean_with_error(np.zeros((1, 5)))
