"""Inpainting, encoding and interpolation, against closed forms for Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.editing import encode, inpaint, make_encoder, make_inpainter, slerp
from genai_jax.diffusion.grids import make_grid
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.sampling import SamplerConfig, make_sampler, settings_of
from genai_jax.diffusion.steps import level_at, start_from, starting_noise
from genai_jax.parallel.mesh import make_mesh
from tests.diffusion.any_process import levels
from tests.diffusion.known_scores import IdealNetwork, Mixture, make_denoiser, make_mixture

ROWS = 20_000
COSINE = Process("cosine")
# Two pixels of deviation 0.5 and correlation 0.8, of means 0.2 and -0.1.
TURNED = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
PAIR = Mixture(
    jnp.ones(1), jnp.array([[0.2, -0.1]]), jnp.array([[0.45, 0.05]]), jnp.float32(TURNED)[None]
)
KNOWN = 0.9  # the first pixel


@jax.jit
def inpainted(resamples, n):
    """The second pixel, given the first one."""
    grid = make_grid(COSINE, "log_snr", sigma_min=0.02)
    keys = jax.random.split(jax.random.key(0), ROWS)
    image = jnp.broadcast_to(jnp.array([KNOWN, 0.0]).reshape(1, 1, 2, 1), (ROWS, 1, 2, 1))
    known = jnp.broadcast_to(jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1), (ROWS, 1, 2, 1))
    x = start_from(jnp.zeros_like(image), starting_noise(keys, image), level_at(COSINE, grid(0, n)))
    return inpaint(
        make_denoiser(PAIR, COSINE),
        x,
        grid,
        keys,
        process=COSINE,
        num_steps=n,
        image=image,
        known=known,
        resamples=resamples,
    ).x[:, 0, :, 0]


def expected_moments(resamples, n):
    """Mean and variance of the second pixel by the recursion of both pixels' moments, float64.

    Every part of the algorithm is linear with Gaussian noise, so (x_1, x_2) stays Gaussian.
    """
    times = make_grid(COSINE, "log_snr", sigma_min=0.02)(jnp.arange(n + 1), n)
    alphas, sigmas = levels(COSINE, times)
    m = np.array([0.2, -0.1])
    covariance = TURNED.T @ np.diag([0.45, 0.05]) @ TURNED
    mean, spread = np.zeros(2), sigmas[0] ** 2 * np.eye(2)
    drop = np.diag([0.0, 1.0])
    for (a, s), (b, r) in zip(
        zip(alphas, sigmas, strict=True), zip(alphas[1:], sigmas[1:], strict=True), strict=False
    ):
        gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(2))
        beta = s**2 - (a / b * r) ** 2
        times_done = resamples if r else 1
        for u in range(times_done):
            # DDPM's eq. 7 with E[x_0 | x] = m + gain (x - a m).
            of_x_0, of_x = b * beta / s**2, a / b * r**2 / s**2
            matrix = of_x_0 * gain + of_x * np.eye(2)
            mean = of_x_0 * (m - a * gain @ m) + matrix @ mean
            spread = matrix @ spread @ matrix.T + beta * r**2 / s**2 * np.eye(2)
            mean = drop @ mean + np.array([b * KNOWN, 0.0])
            spread = drop @ spread @ drop + np.diag([r**2, 0.0])
            if u < times_done - 1:
                mean, spread = a / b * mean, (a / b) ** 2 * spread + beta * np.eye(2)
    return mean[1], spread[1, 1]


@pytest.mark.parametrize(("resamples", "n"), [(1, 20), (2, 20), (8, 20), (1, 1), (3, 1)])
def test_inpainting_follows_the_recursion_of_moments(resamples, n):
    samples = np.asarray(inpainted(resamples, n), np.float64)
    mean, variance = expected_moments(resamples, n)
    np.testing.assert_array_equal(samples[:, 0], np.float32(KNOWN))
    assert abs(samples[:, 1].mean() - mean) < 4.5 * np.sqrt(variance / ROWS) + 1e-5
    assert abs(samples[:, 1].var() - variance) < 4.5 * variance * np.sqrt(2 / ROWS) + 1e-5
    assert inpainted._cache_size() == 1


def test_resampling_brings_the_parts_to_agree():
    """Towards the conditional distribution, which plain replacement misses."""
    covariance = TURNED.T @ np.diag([0.45, 0.05]) @ TURNED
    slope = covariance[0, 1] / covariance[0, 0]
    mean = -0.1 + slope * (KNOWN - 0.2)
    errors = [abs(expected_moments(resamples, 50)[0] - mean) for resamples in (1, 2, 5, 20)]
    assert all(np.diff(errors) < 0) and errors[0] > 0.05 and errors[-1] < 0.02


@pytest.mark.parametrize("process", [COSINE, Process("edm")])
def test_encoding_is_the_map_of_the_ode(process):
    """Of a Gaussian known in closed form: along each axis a point keeps its quantile."""
    with jax.enable_x64(True):
        gaussian = make_mixture(4, 1, seed=2, dtype=np.float64)
        image = gaussian.sample(jax.random.key(0), 32).reshape(32, 2, 2, 1)
        n = 128
        grid = make_grid(process, "log_snr", sigma_min=0.002)
        denoise = make_denoiser(gaussian, process)
        noise = jax.jit(lambda x: encode(denoise, x, grid, process=process, num_steps=n))(image)
        alpha, sigma = process.alpha_sigma(grid(0, n))
        variances = gaussian.variances[0]
        along = (image.reshape(32, 4) - gaussian.means[0]) @ gaussian.axes[0].T
        along = along * jnp.sqrt((alpha**2 * variances + sigma**2) / variances)
        expected = (alpha * gaussian.means[0] + along @ gaussian.axes[0]) / sigma
    np.testing.assert_allclose(noise.reshape(32, 4), expected, atol=5e-3)


def test_encoded_images_are_sampled_again():
    diffusion = Diffusion(COSINE, "v")
    network = IdealNetwork(make_mixture(4, 3, spread=0.3, scale=0.2), diffusion)
    settings = settings_of(
        SamplerConfig("heun", num_steps=64, grid="log_snr", sigma_min=0.01, threshold="none")
    )
    image = jnp.clip(network.mixture.sample(jax.random.key(1), 16), -1, 1).reshape(16, 2, 2, 1)
    labels, keys = jnp.arange(16) % 3, jax.random.split(jax.random.key(2), 16)
    mesh = make_mesh(devices=jax.devices())
    noise = make_encoder(diffusion, mesh)(network, image, labels, settings)
    sampler = make_sampler(diffusion, (2, 2, 1), "heun", mesh)
    again = sampler(network, keys, labels, settings, noise=noise).x
    np.testing.assert_allclose(again, image, atol=0.02)
    # Between two images lie others of the same distribution.
    between = slerp(noise[:8], noise[8:], 0.5)
    middle = sampler(network, keys[:8], labels[:8], settings, noise=between).x
    assert np.all(np.isfinite(middle)) and np.abs(middle - image[:8]).max() > 0.05


def test_interpolation_stays_on_the_sphere():
    first, second = np.random.default_rng(0).standard_normal((2, 3, 8, 8, 2))
    first = first / np.linalg.norm(first.reshape(3, -1), axis=1)[:, None, None, None]
    second = second / np.linalg.norm(second.reshape(3, -1), axis=1)[:, None, None, None]
    first, second = jnp.float32(first), jnp.float32(second)
    np.testing.assert_allclose(slerp(first, second, 0.0), first, atol=1e-6)
    np.testing.assert_allclose(slerp(first, second, 1.0), second, atol=1e-6)
    angle = np.arccos(np.sum(first * second, (1, 2, 3)))
    for fraction in (0.25, 0.5, 0.9):
        found = slerp(first, second, fraction)
        np.testing.assert_allclose(np.sum(np.square(found), (1, 2, 3)), 1, rtol=1e-5)
        turned = np.arccos(np.sum(first * found, (1, 2, 3)))
        np.testing.assert_allclose(turned, fraction * angle, rtol=1e-4)
    np.testing.assert_allclose(slerp(first, first, 0.3), first, atol=1e-6)
    unequal = slerp(first, 3 * first, 0.5)  # of one direction: a straight line
    np.testing.assert_allclose(unequal, 2 * first, atol=1e-5)


def test_the_inpainter_keeps_what_is_known_in_one_executable():
    diffusion = Diffusion(Process("cosine", num_steps=50), "v")
    network = IdealNetwork(make_mixture(4, 3, spread=0.3, scale=0.2), diffusion)
    mesh = make_mesh(devices=jax.devices())
    inpainter = make_inpainter(diffusion, mesh)
    image = jnp.clip(network.mixture.sample(jax.random.key(1), 16), -1, 1).reshape(16, 2, 2, 1)
    known = jnp.zeros_like(image).at[:, 0].set(1)
    labels, keys = jnp.arange(16) % 3, jax.random.split(jax.random.key(2), 16)
    found = []
    for config, resamples in (
        (SamplerConfig(num_steps=10), 1),
        (SamplerConfig(num_steps=10), 3),
        (SamplerConfig(num_steps=5, grid="karras", guidance_scale=2.0), 3),
    ):
        settings = settings_of(config)
        drawn = inpainter(
            network, keys, labels, settings, image=image, known=known, resamples=resamples
        ).x
        np.testing.assert_allclose(drawn[:, 0], image[:, 0], atol=1e-6)
        assert np.abs(drawn[:, 1] - image[:, 1]).mean() > 0.05
        found.append(np.asarray(drawn))
    assert np.abs(found[0] - found[1]).max() > 0.01 and np.abs(found[1] - found[2]).max() > 0.01
    assert inpainter._cache_size() == 1
