"""Guidance against closed forms: what is said at one time, and the distribution it leads to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.guidance import (
    THRESHOLDS,
    Guidance,
    keep_in_range,
    make_guided_denoiser,
    rescale_deviation,
)
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.samplers import heun
from tests.diffusion.known_scores import IdealNetwork, Mixture, make_mixture

ROWS = 6
FLOW = Diffusion(Process("flow"), "v")
LABELS = jnp.arange(ROWS) % 3
X = jax.random.normal(jax.random.key(0), (ROWS, 2, 2, 1))
IMAGES = 2 * jax.random.normal(jax.random.key(1), (ROWS, 3, 4, 2))


class Counted(IdealNetwork):
    """Notes the rows of every call that is really made."""

    calls: list = []  # noqa: RUF012

    def __call__(self, x, noise_level, condition=None, key=None):
        jax.debug.callback(lambda: self.calls.append(x.shape[0]))
        return super().__call__(x, noise_level, condition, key)


MIXTURE = make_mixture(4, 3)
NETWORK = Counted(MIXTURE, FLOW)
WEAKER = Counted(make_mixture(4, 3, seed=8), FLOW)


@jax.jit
def guided(x, t, guidance):
    return make_guided_denoiser(FLOW, NETWORK, LABELS, guidance)(x, t).x_0


@jax.jit
def autoguided(x, t, guidance):
    return make_guided_denoiser(FLOW, NETWORK, LABELS, guidance, WEAKER)(x, t).x_0


def exact(t, labels=None, mixture=MIXTURE):
    flat = mixture.denoise(X.reshape(ROWS, -1), 1 - t, t, labels)
    return np.asarray(flat.reshape(X.shape), np.float64)


def ask(function, t, **settings):
    """The guided estimate, and the rows of every call of a network that it took."""
    NETWORK.calls.clear()
    scalars = {name: jnp.float32(value) for name, value in settings.items()}
    found = np.asarray(function(X, jnp.float32(t), Guidance()._replace(**scalars)))
    jax.effects_barrier()
    return found, list(NETWORK.calls)


def test_guidance_goes_from_the_estimate_of_nothing_through_the_one_of_the_condition():
    told, untold = exact(0.4, LABELS), exact(0.4)
    for scale in (0.0, 0.5, 3.0):
        found, calls = ask(guided, 0.4, scale=scale)
        np.testing.assert_allclose(found, untold + scale * (told - untold), atol=1e-5)
        assert calls == [2 * ROWS]  # one call, both estimates of a row side by side
    ho_and_salimans = 2.0  # (1 + w') c - w' u
    found, _ = ask(guided, 0.4, scale=1 + ho_and_salimans)
    expected = (1 + ho_and_salimans) * told - ho_and_salimans * untold
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_guidance_takes_one_call_of_as_many_rows():
    found, calls = ask(guided, 0.4, scale=1.0)
    np.testing.assert_allclose(found, exact(0.4, LABELS), atol=1e-6)
    assert calls == [ROWS]


def test_guidance_acts_within_its_interval_alone():
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        found, calls = ask(guided, t, scale=3.0, start=0.3, stop=0.7)
        told, untold = exact(t, LABELS), exact(t)
        within = 0.3 <= t <= 0.7
        expected = untold + 3 * (told - untold) if within else told
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert calls == [2 * ROWS if within else ROWS]


def test_autoguidance_goes_from_the_weaker_network_through_the_other():
    told, weaker = exact(0.4, LABELS), exact(0.4, LABELS, WEAKER.mixture)
    found, calls = ask(autoguided, 0.4, scale=2.5)
    np.testing.assert_allclose(found, weaker + 2.5 * (told - weaker), atol=1e-5)
    assert calls == [ROWS, ROWS]
    assert ask(autoguided, 0.4, scale=1.0)[1] == [ROWS]


def test_without_condition_there_is_only_autoguidance():
    denoise = make_guided_denoiser(FLOW, NETWORK, None, Guidance(3.0))
    np.testing.assert_allclose(denoise(X, jnp.float32(0.4)).x_0, exact(0.4), atol=1e-6)
    denoise = make_guided_denoiser(FLOW, NETWORK, None, Guidance(3.0), WEAKER)
    told, weaker = exact(0.4), exact(0.4, None, WEAKER.mixture)
    expected = weaker + 3 * (told - weaker)
    np.testing.assert_allclose(denoise(X, jnp.float32(0.4)).x_0, expected, atol=1e-5)


def test_a_learned_variance_is_the_one_of_the_condition():
    class Said(IdealNetwork):
        def __call__(self, x, noise_level, condition=None, key=None):
            raw = jnp.broadcast_to(condition[:, None, None, None].astype(x.dtype), x.shape)
            return jnp.concatenate([x, raw], axis=-1)

    diffusion = Diffusion(Process("cosine", num_steps=10), "v", learned_variance=True)
    network = Said(MIXTURE, diffusion)
    said = make_guided_denoiser(diffusion, network, LABELS, Guidance(3.0))(X, jnp.float32(0.5))
    expected = np.broadcast_to((LABELS[:, None, None, None] + 1) / 2, X.shape)
    np.testing.assert_allclose(said.log_variance, expected)


def test_rescaling_gives_an_image_the_contrast_of_the_unguided_one():
    told, wide = np.asarray(IMAGES, np.float64), np.asarray(3 * IMAGES[::-1] + 1, np.float64)
    deviations = (told.std((1, 2, 3)) / wide.std((1, 2, 3)))[:, None, None, None]
    for part in (0.0, 0.7, 1.0):
        found = rescale_deviation(jnp.float32(wide), IMAGES, part)
        np.testing.assert_allclose(
            found, part * wide * deviations + (1 - part) * wide, rtol=1e-5, atol=1e-5
        )
    grey = jnp.full_like(IMAGES, 0.3)
    np.testing.assert_array_equal(rescale_deviation(grey, IMAGES, 1.0), grey)
    found, _ = ask(guided, 0.4, scale=4.0, rescale=1.0)
    deviation = exact(0.4, LABELS).std((1, 2, 3))
    np.testing.assert_allclose(found.std((1, 2, 3)), deviation, rtol=1e-4)


def test_thresholds_are_those_of_imagen():
    kept = jax.jit(keep_in_range)
    small = 0.1 * IMAGES
    for percentile in (0.5, 0.9, 1.0):
        bound = np.percentile(np.abs(IMAGES), 100 * percentile, axis=(1, 2, 3), keepdims=True)
        bound = np.maximum(bound, 1)
        expected = {
            "none": IMAGES,
            "static": np.clip(IMAGES, -1, 1),
            "dynamic": np.clip(IMAGES, -bound, bound) / bound,
        }
        for threshold, values in expected.items():
            index = THRESHOLDS.index(threshold)
            found = kept(IMAGES, index, jnp.float32(percentile))
            np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=threshold)
            by_name = keep_in_range(IMAGES, threshold, percentile)
            np.testing.assert_allclose(by_name, found, rtol=1e-5)
            np.testing.assert_array_equal(kept(small, index, jnp.float32(1.0)), small)
    assert kept._cache_size() == 1


def two_gaussians(mean_told, mean_untold, variance_told, variance_untold):
    """Label 0 is one Gaussian; nothing is known of the other one's label 1, nor of nothing."""
    pair = lambda a, b: jnp.array([[a], [b]], jnp.float64)  # noqa: E731
    return Mixture(
        jnp.array([0.0, 1.0], jnp.float64),
        pair(mean_told, mean_untold),
        pair(variance_told, variance_untold),
        jnp.ones((2, 1, 1), jnp.float64),
    )


@pytest.mark.parametrize("schedule", ["linear", "flow"])
def test_guided_samples_follow_the_distribution_of_the_formula(schedule):
    """Both estimates of Gaussians are linear in x, and so is the ODE that guidance leads along."""
    with jax.enable_x64(True):
        diffusion = Diffusion(Process(schedule), "flow")
        process = diffusion.process

        @jax.jit
        def path(distribution, x, guidance, times):
            network = IdealNetwork(distribution, diffusion)
            condition = jnp.zeros(len(x), int)
            denoise = make_guided_denoiser(diffusion, network, condition, guidance)
            keys = jax.random.split(jax.random.key(0), len(x))
            steps = {"process": process, "num_steps": len(times) - 1}
            return heun(denoise, x[:, None, None, None], lambda i, n: times[i], keys, **steps).x

        levels = jnp.linspace(-7, 8, 401)
        times = process.time_at(levels)
        (alpha, end_alpha), (sigma, end_sigma) = process.alpha_sigma(times[jnp.array([0, -1])])
        x = sigma * jnp.array([-1.5, 0.0, 2.0])

        # Of equal variances the guided score is that of a Gaussian whose mean is guided.
        w, m_c, m_u, v = 3.0, 0.4, -0.2, 0.09
        mean = m_u + w * (m_c - m_u)
        ratio = jnp.sqrt((end_alpha**2 * v + end_sigma**2) / (alpha**2 * v + sigma**2))
        found = path(two_gaussians(m_c, m_u, v, v), x, Guidance(w), times).ravel()
        expected = end_alpha * mean + ratio * (x - alpha * mean)
        np.testing.assert_allclose(found, expected, atol=3e-4)

        # Of others there is the ODE itself, by another integrator, from the scores' closed forms.
        # The interval ends in the middle of steps, where a step of Heun's method is exact, too.
        v_u, spans = 0.25, (-7, *((levels[i] + levels[i + 1]) / 2 for i in (100, 300)), 8)
        stop, start = (float(process.time_at(level)) for level in spans[1:3])
        found = path(two_gaussians(m_c, m_u, v, v_u), x, Guidance(w, start, stop), times).ravel()

        def slope(level, x, scale):
            """dx = x_0 dalpha + eps dsigma, by the log-SNR."""
            if schedule == "linear":
                alpha, sigma = np.sqrt(expit(level)), np.sqrt(expit(-level))
                rates = alpha * sigma**2 / 2, -sigma * alpha**2 / 2
            else:
                alpha, sigma = expit(level / 2), expit(-level / 2)
                rates = alpha * sigma / 2, -alpha * sigma / 2
            told, untold = (
                mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
                for mean, variance in ((m_c, v), (m_u, v_u))
            )
            x_0 = untold + scale * (told - untold)
            return x_0 * rates[0] + (x - alpha * x_0) / sigma * rates[1]

        expected = np.asarray(x)
        for first, last, scale in zip(spans, spans[1:], (1, w, 1), strict=False):
            ends = float(first), float(last)
            solved = solve_ivp(slope, ends, expected, args=(scale,), rtol=1e-8, atol=1e-10)
            expected = solved.y[:, -1]
        np.testing.assert_allclose(found, expected, atol=1e-3)
