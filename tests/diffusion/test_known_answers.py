"""Solvers on distributions whose score is known: every schedule, target and solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genai_jax.diffusion.denoiser import Diffusion
from tests.diffusion.any_process import (
    EXACT,
    PROCESSES,
    SOLVERS,
    TARGETS,
    Unchecked,
    compiled,
    levels,
    row_keys,
)
from tests.diffusion.known_scores import (
    AnyOf,
    IdealNetwork,
    Mixture,
    Product,
    make_denoiser,
    make_mixture,
)

WIDE, PLANE, LINE = (make_mixture(d, k, seed=d) for d, k in ((64, 2), (2, 3), (1, 3)))
EVERYTHING = Product((WIDE, PLANE, LINE))
GROUPS = (512, 16, 16, 16, 16)  # rows of each target; the first ones are the same in all
STEPS = {"ancestral": 96, "ddim": 64, "euler": 64, "heun": 32, "dpm_solver_2m": 32}
OPTIONS = {"ancestral": {"variance": 0}, "ddim": {"eta": 0.0}}
# On the line, at these steps: twice what is seen, of a distribution whose deviation is 0.5.
LARGEST_ERROR = {"ddim": 0.08, "euler": 0.08, "heun": 0.02, "dpm_solver_2m": 0.02}


@functools.cache
def image_and_noise():
    """Draws of everything, and noise."""
    parts = [part.sample(jax.random.key(i), GROUPS[0]) for i, part in enumerate(EVERYTHING.parts)]
    x_0 = np.concatenate(parts, axis=-1)
    return x_0, np.random.default_rng(0).standard_normal(x_0.shape, np.float32)


def times_of(process, n, sigma_min=0.002):
    """n steps as far from each other in log-SNR, from 1 to 0."""
    levels = np.linspace(max(process.last_log_snr, -12), -2 * np.log(sigma_min), n)
    return np.concatenate([[1], process.snap(process.time_at(jnp.float32(levels)))[1:], [0]])


def cdf(mixture, x, alpha=1.0, sigma=0.0):
    """Of a mixture in one dimension, float64."""
    weights, means = (np.asarray(a, np.float64).ravel() for a in (mixture.weights, mixture.means))
    deviations = np.sqrt(alpha**2 * np.asarray(mixture.variances, np.float64).ravel() + sigma**2)
    return norm.cdf((np.asarray(x)[..., None] - alpha * means) / deviations) @ weights


def quantile_map(mixture, x, alpha, sigma):
    """Where the ODE takes points of a line: all keep their quantile."""
    grid = np.linspace(-6, 6, 100_001)
    return np.interp(cdf(mixture, x[:, 0], alpha, sigma), cdf(mixture, grid), grid)[:, None]


def largest_gap(mixture, samples, directions):
    """The largest Kolmogorov-Smirnov distance along random directions."""
    mixture = jax.tree.map(lambda x: np.asarray(x, np.float64), mixture)
    rank, gaps = np.arange(len(samples) + 1) / len(samples), []
    for direction in np.random.default_rng(0).standard_normal((directions, samples.shape[1])):
        direction = direction / np.linalg.norm(direction)
        variances = np.sum(mixture.variances * (mixture.axes @ direction) ** 2, -1)
        seen = type(mixture)(mixture.weights, mixture.means @ direction, variances, None)
        expected = cdf(seen, np.sort(samples @ direction))
        gaps.append(max(np.max(expected - rank[:-1]), np.max(rank[1:] - expected)))
    return max(gaps)


def refuses(process, target):
    """Whether eps says nothing at t = 1, where no signal is left."""
    return target == "eps" and process.last_log_snr < -24


@functools.cache
def compiled_estimates():
    """Compile what networks of all targets say x_0 is, and what it is."""

    @jax.jit
    def estimates(index, x, t):
        process = AnyOf(processes=tuple(PROCESSES.values()), index=index)
        networks = [IdealNetwork(LINE, Unchecked(process, target)) for target in TARGETS]
        said = [network.diffusion.make_denoiser(network)(x, t).x_0 for network in networks]
        return make_denoiser(LINE, process)(x, t).x_0, said

    return estimates


@pytest.mark.parametrize("name", PROCESSES)
def test_an_ideal_network_of_any_target_is_the_exact_denoiser(name):
    """Told the noise level and given scaled input, as a network is; float32, at many times."""
    process = PROCESSES[name]
    t = process.snap(jnp.arange(1, 65) / 64)
    alpha, sigma = levels(process, t)
    x_0, noise = (draw[:64, -1] for draw in image_and_noise())
    x = np.float32(alpha * x_0 + sigma * noise)
    exact, said = compiled_estimates()(list(PROCESSES).index(name), x.reshape(64, 1, 1, 1), t)
    for target, x_0 in zip(TARGETS, said, strict=True):
        if refuses(process, target):
            with pytest.raises(ValueError, match="says nothing of the image"):
                Diffusion(process, target)
            continue
        # eps loses as many digits as sigma / alpha has.
        lost = np.maximum(sigma / alpha, 1) if target == "eps" else np.ones(64)
        assert np.max(np.abs(np.ravel(x_0 - exact)) / lost) < 1e-5, target


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_schedule_target_and_solver_reaches_the_distribution(solver, name):
    process = PROCESSES[name]
    times = times_of(process, STEPS[solver])
    (alpha, *_), (sigma, *_) = levels(process, times[:1])
    x_0, noise = image_and_noise()
    x = np.float32(alpha * x_0 + sigma * noise)
    chosen = np.concatenate([np.arange(count) for count in GROUPS])
    run, options = compiled(solver, groups=GROUPS), OPTIONS.get(solver, {})
    found = run(name, EVERYTHING, x[chosen], row_keys(GROUPS[0])[chosen], times, **options)
    samples, *others = np.split(np.asarray(found), np.cumsum(GROUPS)[:-1])
    for target, other in zip(TARGETS[1:], others, strict=True):
        if not refuses(process, target):
            # eps at the start loses as many digits as sigma / alpha has: 1800 at most here.
            np.testing.assert_allclose(other, samples[: len(other)], atol=1e-4, err_msg=target)
    wide, plane, line = (np.asarray(part) for part in EVERYTHING.split(samples))
    if solver in LARGEST_ERROR:
        exact = quantile_map(LINE, x[:, -1:], alpha, sigma)
        assert np.max(np.abs(line - exact)) < LARGEST_ERROR[solver]
    # Of 512 draws a gap of 0.1 has a probability of 7e-5.
    gaps = largest_gap(WIDE, wide, 8), largest_gap(PLANE, plane, 4), largest_gap(LINE, line, 1)
    assert max(gaps) < 0.1, gaps


def moments_down(alphas, sigmas, mean, variance, kept, deviation):
    """Mean and variance after a step of a reverse chain towards N(MEAN, VARIANCE), float64.

    The denoiser is E[x_0 | x_t] = m + g (x_t - alpha m): the chain stays Gaussian.
    """
    (alpha, alpha_s), (sigma, _) = alphas, sigmas
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    # x_s = alpha_s x_0 + kept (x - alpha x_0) / sigma + noise.
    of_x_0 = alpha_s - kept * alpha / sigma
    factor = of_x_0 * gain + kept / sigma
    mean = of_x_0 * (1 - gain * alpha) * MEAN + factor * mean
    return mean, factor**2 * variance + deviation**2


def posterior(alphas, sigmas, fraction):
    """DDPM's eq. 7 and its two variances, for any alpha and sigma: `kept` and `deviation`."""
    (alpha, alpha_s), (sigma, sigma_s) = alphas, sigmas
    beta = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    beta_tilde = beta * sigma_s**2 / sigma**2
    # mu = alpha_s beta / sigma^2 x_0 + alpha_t|s sigma_s^2 / sigma^2 x: of x a part is x_0's.
    kept = alpha / alpha_s * sigma_s**2 / sigma
    return kept, np.sqrt(beta if fraction else beta_tilde) if sigma_s else 0.0


def eta_noise(alphas, sigmas, eta):
    """DDIM's eq. 12 and 16, for any alpha and sigma."""
    _, deviation = posterior(alphas, sigmas, 0)
    return np.sqrt(sigmas[1] ** 2 - (eta * deviation) ** 2), eta * deviation


MEAN, VARIANCE = 0.4, 0.09
# In the place of everything, so that nothing new is compiled: 64 times the same Gaussian in front.
BALL = Product(
    (
        Mixture(
            WIDE.weights,
            jnp.full_like(WIDE.means, MEAN),
            jnp.full_like(WIDE.variances, VARIANCE),
            jnp.broadcast_to(jnp.eye(64), WIDE.axes.shape),
        ),
        PLANE,
        LINE,
    )
)
CHAINS = {
    "small": ("ancestral", {"variance": 0}, lambda a, s: posterior(a, s, 0)),
    "large": ("ancestral", {"variance": 1}, lambda a, s: posterior(a, s, 1)),
    "eta 0.6": ("ddim", {"eta": 0.6}, lambda a, s: eta_noise(a, s, 0.6)),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("chain", CHAINS)
def test_reverse_chains_follow_the_recursion_of_moments(chain, name):
    """Few and large steps, from noise alone: far from the target, but known step by step."""
    solver, options, noise_of = CHAINS[chain]
    process, n = PROCESSES[name], 5
    times = times_of(process, n, sigma_min=0.2)
    alphas, sigmas = levels(process, times)
    rows = sum(GROUPS)
    x = np.float32(sigmas[0] * np.random.default_rng(1).standard_normal((rows, 67)))
    mean, variance, count = 0.0, sigmas[0] ** 2, GROUPS[0] * 64
    for i in range(n):
        step = alphas[i : i + 2], sigmas[i : i + 2]
        mean, variance = moments_down(*step, mean, variance, *noise_of(*step))
        run = compiled(solver, groups=GROUPS)
        found = run(name, BALL, x, row_keys(rows), times, num_steps=i + 1, **options)
        samples = np.asarray(found, np.float64)[: GROUPS[0], :64]
        # Within 4.5 standard errors of a mean and of a variance.
        assert abs(samples.mean() - mean) < 4.5 * np.sqrt(variance / count) + 1e-6
        assert abs(samples.var() / variance - 1) < 4.5 * np.sqrt(2 / count) + 1e-6


@pytest.mark.parametrize("name", EXACT[:-1])
@pytest.mark.parametrize(
    ("solver", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm_solver_2m", 2)]
)
def test_order_of_accuracy(solver, order, name):
    """Of the path between two levels of noise, against Heun's method extrapolated."""
    with jax.enable_x64(True):
        process = PROCESSES[name]
        plane = jax.tree.map(lambda x: x.astype(jnp.float64), PLANE)
        alpha, sigma = process.alpha_sigma(process.time_at(jnp.float64(-3)))
        x = alpha * plane.sample(jax.random.key(0), 64)
        x = x + sigma * jax.random.normal(jax.random.key(1), x.shape, x.dtype)

        def path(solver, n):
            times = process.time_at(jnp.linspace(-3, 4, n + 1))
            run, options = compiled(solver, EXACT), OPTIONS.get(solver, {})
            return np.asarray(run(name, plane, x, row_keys(64), times, **options))

        # Its error is of order h^2: 4/3 and -1/3 of two step sizes leave the next order alone.
        reference = (4 * path("heun", 1024) - path("heun", 512)) / 3
        steps = np.array([32, 64, 128, 256])
        errors = [np.sqrt(np.mean(np.square(path(solver, n) - reference))) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15), errors
