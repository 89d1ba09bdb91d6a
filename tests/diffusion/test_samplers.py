"""Solvers against each other, and against their papers' algorithms in NumPy, float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.grids import make_grid
from genai_jax.diffusion.predictions import Prediction
from genai_jax.diffusion.process import Process, discrete_betas
from genai_jax.diffusion.samplers import VARIANCES, Churn, ancestral, euler, heun
from genai_jax.diffusion.steps import level_at, row_noise, start_from, starting_noise
from tests.diffusion.any_process import EXACT, PROCESSES, SOLVERS, compiled, levels, row_keys
from tests.diffusion.known_scores import make_mixture

ROWS = 64
KEYS = row_keys(ROWS)
DETERMINISTIC = ("ddim", "euler", "heun", "dpm_solver_2m")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def plane():
    return make_mixture(2, 3, seed=2, dtype=np.float64)


def first_points(sigma=1.0):
    return sigma * np.random.default_rng(0).standard_normal((ROWS, 2))


def run(solver, name, times, x=None, keys=KEYS, **options):
    if x is None:
        x = first_points(levels(PROCESSES[name], times[:1])[1][0])
    defaults = {"ancestral": {"variance": 0}, "ddim": {"eta": 0.0}}
    options = options or defaults.get(solver, {})
    found = compiled(solver, EXACT)(name, plane(), jnp.asarray(x), keys, times, **options)
    return np.asarray(found)


def estimate(x, alpha, sigma):
    return np.asarray(plane().denoise(jnp.asarray(x), alpha, sigma))


def noise_of(i, keys=KEYS):
    """The noise of a step, as rows [rows, 2]."""
    return np.asarray(row_noise(keys, i, jnp.zeros((len(keys), 1, 1, 2), float)))[:, 0, 0]


@pytest.mark.parametrize("name", EXACT)
def test_euler_is_ddim_without_noise_and_ancestral_is_ddim_with_all_of_it(name):
    times = np.array([1, 0.8, 0.5, 0.3, 0.1, 0.02, 0])
    np.testing.assert_allclose(run("euler", name, times), run("ddim", name, times, eta=0.0))
    small = run("ancestral", name, times, variance=0)
    np.testing.assert_allclose(small, run("ddim", name, times, eta=1.0), atol=1e-12)
    assert np.abs(small - run("ancestral", name, times, variance=1)).max() > 0.01


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_on_exploding_variance_it_is_edm(solver):
    """Algorithm 2 of arXiv:2206.00364 without churn: alpha is 1, and sigma is the time."""
    times = np.array([1.0, 0.3, 0.05, 0.01, 0.001, 0])
    sigmas = 80 * times
    x = first_points(80.0)
    found = run(solver, "edm", times, x)
    for sigma, following in itertools.pairwise(sigmas):
        d = (x - estimate(x, 1.0, sigma)) / sigma
        ahead = x + (following - sigma) * d
        if following and solver == "heun":
            d = (d + (ahead - estimate(ahead, 1.0, following)) / following) / 2
        x = x + (following - sigma) * d
    np.testing.assert_allclose(found, x, atol=1e-10)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_on_the_straight_line_it_integrates_the_velocity(solver):
    """dx = (eps - x_0) dt, from noise alone, where alpha is 0, to the data."""

    def velocity(x, t):
        x_0 = estimate(x, 1 - t, t)
        return (x - (1 - t) * x_0) / t - x_0

    times = np.array([1.0, 0.7, 0.4, 0.2, 0.05, 0])
    x = first_points()
    found = run(solver, "flow", times, x)
    for t, s in itertools.pairwise(times):
        v = velocity(x, t)
        if s and solver == "heun":
            v = (v + velocity(x + (s - t) * v, s)) / 2
        x = x + (s - t) * v
    np.testing.assert_allclose(found, x, atol=1e-10)


def test_ancestral_is_ddpm_on_its_betas():
    """Equations 6 and 7 of arXiv:2006.11239, over all of five steps, with either variance."""
    betas = discrete_betas(PROCESSES["DDPM"])
    alpha_bars = np.cumprod(1 - betas)
    for first in (1000, 500, 5):
        steps = np.arange(first, first - 6, -1)
        start = np.sqrt(1 - alpha_bars[first - 1])
        for variance in (0, 1):
            x = first_points(start)
            found = run("ancestral", "DDPM", steps / 1000, x, variance=variance)
            for i, k in enumerate(steps[:-1]):
                bar, beta = alpha_bars[k - 1], betas[k - 1]
                before = alpha_bars[k - 2] if k > 1 else 1.0
                x_0 = estimate(x, np.sqrt(bar), np.sqrt(1 - bar))
                x = np.sqrt(before) * beta / (1 - bar) * x_0 + (
                    np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x
                )
                if k > 1:
                    tilde = (1 - before) / (1 - bar) * beta
                    x = x + np.sqrt(beta if variance else tilde) * noise_of(i)
            np.testing.assert_allclose(found, x, atol=1e-9)


def test_learned_variance_lies_between_the_two_logarithms():
    """Equation 15 of arXiv:2102.09672; a network's variance is asked for only where it is named."""
    process = Process("cosine", num_steps=50)
    betas = discrete_betas(process)
    bars = np.cumprod(1 - betas)
    k, v = 20, 0.3
    x = jnp.asarray(first_points())

    @jax.jit
    def step(variance, keys):
        denoise = lambda x, t: Prediction(0.5 * x, jnp.full_like(x, v))  # noqa: E731
        options = {"process": process, "num_steps": 1, "variance": variance}
        return ancestral(denoise, x, lambda i, n: (k - i) / 50, keys, **options).x

    tilde = betas[k - 1] * (1 - bars[k - 2]) / (1 - bars[k - 1])
    learned = np.exp(v * np.log(betas[k - 1]) + (1 - v) * np.log(tilde))
    draws = [np.asarray(row_noise(keys, 0, x)) for keys in (KEYS, row_keys(ROWS, 1))]
    for name, expected in {"small": tilde, "large": betas[k - 1], "learned": learned}.items():
        index = VARIANCES.index(name)
        moved = step(index, row_keys(ROWS, 1)) - step(index, KEYS)
        np.testing.assert_allclose(moved, np.sqrt(expected) * (draws[1] - draws[0]), rtol=1e-6)


def test_the_multistep_method_is_its_algorithm():
    """Algorithm 2 of arXiv:2211.01095, on uneven steps, and its last step of first order."""
    times = np.array([0.9, 0.7, 0.45, 0.3, 0.12, 0.03, 0])
    alphas, sigmas = levels(PROCESSES["linear"], times)
    x = first_points(sigmas[0])
    found = run("dpm_solver_2m", "linear", times, x)
    half = np.log(alphas[:-1] / sigmas[:-1])
    before = None
    for i in range(len(times) - 2):
        x_0 = estimate(x, alphas[i], sigmas[i])
        h = half[i + 1] - half[i]
        d = x_0
        if i:
            r = (half[i] - half[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * before
        x = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * (np.exp(-h) - 1) * d
        before = x_0
    np.testing.assert_allclose(found, estimate(x, alphas[-2], sigmas[-2]), atol=1e-10)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_says_what_the_denoiser_says_of_the_noise(solver, name):
    (alpha, *_), (sigma, *_) = levels(PROCESSES[name], [1.0])
    expected = estimate(first_points(sigma), alpha, sigma)
    np.testing.assert_allclose(run(solver, name, [1.0, 0.0]), expected, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_steps_of_no_length_change_nothing(solver, name):
    times = np.array([1.0, 0.6, 0.3, 0.1, 0])
    often = np.array([1.0, 1.0, 0.6, 0.3, 0.3, 0.3, 0.1, 0.1, 0])
    np.testing.assert_allclose(
        run(solver, name, often), run(solver, name, times), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("variance", [0, 1])
def test_steps_of_no_length_draw_nothing(variance):
    """At the end, so that the others keep their numbers and with them their noise."""
    for name in EXACT:
        times = [1.0, 0.5, 0.2, 0.0]
        twice = [1.0, 0.5, 0.2, 0.2, 0.0]
        np.testing.assert_allclose(
            run("ancestral", name, twice, variance=variance),
            run("ancestral", name, times, variance=variance),
            rtol=1e-12,
        )


def test_all_steps_of_a_discrete_process_can_be_taken():
    process = PROCESSES["DDPM"]
    for kind in ("uniform", "trailing"):
        times = make_grid(process, kind)(jnp.arange(1001), 1000)
        np.testing.assert_allclose(times, np.arange(1000, -1, -1) / 1000)
    fine = run("heun", "DDPM", times)
    assert np.abs(run("dpm_solver_2m", "DDPM", times) - fine).max() < 1e-3
    assert 1e-5 < np.abs(run("ddim", "DDPM", times) - fine).max() < 1e-2


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_a_row_depends_on_its_own_key_and_its_own_start(solver):
    times, order = [1.0, 0.5, 0.2, 0.0], np.random.default_rng(1).permutation(ROWS)
    options = {"eta": 0.5} if solver == "ddim" else {"variance": 0}
    x = first_points()
    found = run(solver, "cosine", times, x, **options)
    moved = run(solver, "cosine", times, x[order], KEYS[order], **options)
    np.testing.assert_allclose(moved, found[order], rtol=1e-12)
    assert np.abs(run(solver, "cosine", times, x, row_keys(ROWS, 7), **options) - found).min() > 0


def test_noise_is_another_one_at_every_step_and_at_the_start():
    x = jnp.zeros((ROWS, 64))
    drawn = [starting_noise(KEYS, x), *(row_noise(KEYS, i, x) for i in (0, 1))]
    correlation = np.corrcoef(np.stack(drawn).reshape(3, -1))
    np.testing.assert_allclose(correlation, np.eye(3), atol=4.5 / np.sqrt(ROWS * 64))
    level = level_at(PROCESSES["flow"], jnp.asarray(0.25))
    image = jnp.full_like(x, 0.5)
    np.testing.assert_allclose(start_from(image, drawn[0], level), 0.375 + 0.25 * drawn[0])


def test_frames_are_spread_over_the_steps_from_first_to_last():
    def denoise(x, t):
        return Prediction(jnp.full_like(x, t))

    @jax.jit
    def trajectory(n):
        grid = lambda i, n: 1 - i / n  # noqa: E731
        options = {"process": PROCESSES["flow"], "num_steps": n, "frames": 4}
        return euler(denoise, jnp.ones((2, 3)), grid, KEYS[:2], **options).trajectory

    for n, steps in ((10, [0, 3, 6, 9]), (4, [0, 1, 2, 3]), (2, [0, 0, 0, 1]), (1, [0, 0, 0, 0])):
        expected = np.tile((1 - np.array(steps) / n)[:, None], (2, 1, 3))
        np.testing.assert_allclose(trajectory(n), expected)


@pytest.mark.parametrize(("solver", "asked"), [(euler, 4), (heun, 6)])
def test_the_network_is_not_asked_at_the_data_nor_twice_where_nothing_moves(solver, asked):
    times_asked = []

    def denoise(x, t):
        jax.debug.callback(lambda t: times_asked.append(float(t)), t)
        return Prediction(0.5 * x)

    times = jnp.array([1.0, 0.6, 0.3, 0.3, 0.0])
    options = {"process": PROCESSES["cosine"], "num_steps": 4}
    solver(denoise, jnp.ones((2, 3)), lambda i, n: times[i], KEYS[:2], **options)
    jax.effects_barrier()
    assert len(times_asked) == asked and min(times_asked) == pytest.approx(0.3)


CHURNED = ("edm", "flow", "DDPM")


def churned(name, x, keys, times, **churn):
    gaussian = make_mixture(4, 1, seed=4)
    options = {"churn": Churn(**{field: jnp.float32(value) for field, value in churn.items()})}
    with jax.enable_x64(False):
        return np.asarray(
            compiled("heun", CHURNED)(
                name, gaussian, jnp.float32(x), keys, np.float32(times), **options
            )
        )


def test_churn_is_that_of_edm():
    """Algorithm 2 of arXiv:2206.00364 within S_min and S_max, in float32."""
    rows, sigmas = 4096, np.array([80.0, 20.0, 5.0, 1.0, 0.2, 0.05, 0])
    keys, gaussian = row_keys(rows), make_mixture(4, 1, seed=4)
    x = 80 * np.random.default_rng(0).standard_normal((rows, 4))
    settings = {"amount": 1.5, "least": 0.1, "most": 10.0, "noise": 1.1}
    found = churned("edm", x, keys, sigmas / 80, **settings)
    estimate = lambda x, sigma: np.asarray(gaussian.denoise(jnp.float32(x), 1.0, sigma))  # noqa: E731
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        gamma = min(1.5 / 6, np.sqrt(2) - 1) if 0.1 <= sigma <= 10 else 0
        raised = sigma * (1 + gamma)
        noise = np.asarray(row_noise(keys, i, jnp.zeros((rows, 1, 1, 4), jnp.float32)))[:, 0, 0]
        x = x + np.sqrt(raised**2 - sigma**2) * 1.1 * noise
        d = (x - estimate(x, raised)) / raised
        ahead = x + (following - raised) * d
        if following:
            d = (d + (ahead - estimate(ahead, following)) / following) / 2
        x = x + (following - raised) * d
    np.testing.assert_allclose(found, x, atol=2e-4)


@pytest.mark.parametrize("name", CHURNED)
def test_churn_keeps_the_distribution_and_its_bounds(name):
    rows, gaussian, n = 4096, make_mixture(4, 1, seed=4), 64
    keys = row_keys(rows, 3)
    with jax.enable_x64(False):
        times = np.asarray(
            make_grid(PROCESSES[name], "log_snr", sigma_min=0.02)(jnp.arange(n + 1), n)
        )
    (alpha, *_), (sigma, *_) = levels(PROCESSES[name], times[:1])
    rng = np.random.default_rng(5)
    x_0 = rng.standard_normal((rows, 4)) * np.sqrt(gaussian.variances[0]) @ gaussian.axes[0]
    x = alpha * (x_0 + gaussian.means[0]) + sigma * rng.standard_normal((rows, 4))
    still = churned(name, x, keys, times, amount=0.0, least=0.0, most=np.inf, noise=1.0)
    found = churned(name, x, keys, times, amount=20.0, least=0.0, most=np.inf, noise=1.0)
    assert np.corrcoef(still.T, found.T)[:4, 4:].max() < 0.9  # it has moved
    for samples in (still, found):
        along = (samples - np.asarray(gaussian.means[0])) @ np.asarray(gaussian.axes[0]).T
        variances = np.asarray(gaussian.variances[0], np.float64)
        assert np.all(np.abs(along.mean(0)) < 4.5 * np.sqrt(variances / rows))
        np.testing.assert_allclose(along.var(0) / variances, 1, atol=4.5 * np.sqrt(2 / rows))
    # No more than doubles the noise at once, and none outside of its bounds.
    most = churned(name, x, keys, times, amount=1e9, least=0.0, most=np.inf, noise=1.0)
    bound = n * (np.sqrt(2) - 1)
    again = churned(name, x, keys, times, amount=bound, least=0.0, most=np.inf, noise=1.0)
    np.testing.assert_allclose(most, again, atol=1e-5)
    nowhere = churned(name, x, keys, times, amount=20.0, least=1e-9, most=1e-8, noise=1.0)
    np.testing.assert_array_equal(nowhere, still)
