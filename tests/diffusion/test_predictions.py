"""Targets, their solution for image and noise, and what EDM makes of them."""

import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.predictions import (
    Target,
    coefficients,
    input_scale,
    like,
    make_target,
    solve,
    squared_error_ratio,
)
from genai_jax.diffusion.process import Process

TARGETS = get_args(Target)
PROCESSES = [
    Process("linear", num_steps=1000),
    Process("cosine"),
    Process("sigmoid"),
    Process("edm"),
    Process("flow"),
]
TIMES = np.array([1e-3, 0.1, 0.5, 0.9, 0.999])
RNG = np.random.default_rng(0)
X_0, EPS = RNG.uniform(-1, 1, (5, 2, 3, 1)), RNG.standard_normal((5, 2, 3, 1))


def mixed(process, dtype):
    alpha, sigma = process.alpha_sigma(jnp.asarray(TIMES, dtype))
    x_0, eps = jnp.asarray(X_0, dtype), jnp.asarray(EPS, dtype)
    return alpha, sigma, x_0, eps, like(alpha, x_0) * x_0 + like(sigma, x_0) * eps


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule)
@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_solved_for_image_and_noise(process, target):
    """To float64 precision, times how much noise level and target let shine through."""
    with jax.enable_x64(True):
        alpha, sigma, x_0, eps, x_t = mixed(process, jnp.float64)
        said = make_target(target, x_0, eps, alpha, sigma, 0.5)
        found_x_0, found_eps = solve(target, said, x_t, alpha, sigma, 0.5)
        for found, right in ((found_x_0, x_0), (found_eps, eps)):
            np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule)
def test_every_target_turns_into_every_other_and_back(process):
    with jax.enable_x64(True):
        alpha, sigma, x_0, eps, x_t = mixed(process, jnp.float64)
        for first, second in itertools.permutations(TARGETS, 2):
            said = make_target(first, x_0, eps, alpha, sigma)
            other = make_target(second, *solve(first, said, x_t, alpha, sigma), alpha, sigma)
            back = make_target(first, *solve(second, other, x_t, alpha, sigma), alpha, sigma)
            np.testing.assert_allclose(back, said, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule)
@pytest.mark.parametrize("target", ["v", "flow", "edm"])
def test_float32_solves_the_image_at_every_level(process, target):
    """Unlike eps and x_0, these say of both what they say of either; EDM down to sigma 0.002."""
    alpha, sigma, x_0, eps, x_t = mixed(process, jnp.float32)
    said = make_target(target, x_0, eps, alpha, sigma, 0.5)
    found, _ = solve(target, said, x_t, alpha, sigma, 0.5)
    # Rounding of x_t, as x_0 sees it where the flow of an exploding variance is solved for it.
    scale = 1 + np.asarray(sigma)[:, None, None, None] * (target == "flow")
    np.testing.assert_array_less(np.abs(found - X_0), 4e-6 * np.broadcast_to(scale, X_0.shape))


def test_coefficients_are_those_of_the_papers():
    alpha, sigma = jnp.asarray([0.8, 0.6]), jnp.asarray([0.6, 0.8])
    expected = {
        "eps": ([0, 0], [1, 1]),
        "x_0": ([1, 1], [0, 0]),
        "v": ([-0.6, -0.8], [0.8, 0.6]),
        "flow": ([-1, -1], [1, 1]),
    }
    for target, pair in expected.items():
        np.testing.assert_allclose(coefficients(target, alpha, sigma), pair, rtol=1e-6)


def test_v_is_the_velocity_of_the_angle_and_flow_that_of_time():
    """v = dx / dphi of cos(phi) x_0 + sin(phi) eps; eps - x_0 = dx / dt of the straight line."""
    with jax.enable_x64(True):
        x_0, eps = jnp.asarray(X_0), jnp.asarray(EPS)
        phi = jnp.asarray(0.7, jnp.float64)
        path = lambda phi: jnp.cos(phi) * x_0 + jnp.sin(phi) * eps  # noqa: E731
        _, slope = jax.jvp(path, (phi,), (jnp.ones_like(phi),))
        v = make_target("v", x_0, eps, jnp.cos(phi), jnp.sin(phi))
        np.testing.assert_allclose(v, slope, rtol=1e-12)
        line = lambda t: (1 - t) * x_0 + t * eps  # noqa: E731
        _, slope = jax.jvp(line, (phi,), (jnp.ones_like(phi),))
        np.testing.assert_allclose(make_target("flow", x_0, eps, 1 - phi, phi), slope, rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_is_its_preconditioning(sigma_data):
    """c_skip, c_out and c_in of table 1, where alpha is 1."""
    with jax.enable_x64(True):
        sigma = jnp.asarray([0.002, 0.1, 0.5, 3.0, 80.0], jnp.float64)
        alpha, x_0, eps = jnp.ones(5, jnp.float64), jnp.asarray(X_0), jnp.asarray(EPS)
        x = x_0 + like(sigma, x_0) * eps
        said = jnp.asarray(RNG.standard_normal(X_0.shape))
        found, _ = solve("edm", said, x, alpha, sigma, sigma_data)
        s = np.asarray(sigma)[:, None, None, None]
        norm = np.sqrt(s**2 + sigma_data**2)
        c_skip, c_out = sigma_data**2 / norm**2, s * sigma_data / norm
        np.testing.assert_allclose(found, c_skip * x + c_out * said, rtol=1e-9, atol=1e-12)
        c_in = input_scale("edm", alpha, sigma, sigma_data)
        np.testing.assert_allclose(c_in, 1 / norm.ravel(), rtol=1e-12)
        # What makes the denoiser right is what the network is trained on.
        target = make_target("edm", x_0, eps, alpha, sigma, sigma_data)
        np.testing.assert_allclose(target, (x_0 - c_skip * x) / c_out, rtol=1e-7, atol=1e-9)


def test_edm_of_unit_data_is_minus_v():
    for process in (Process("cosine"), Process("linear", num_steps=1000)):
        alpha, sigma, x_0, eps, _ = mixed(process, jnp.float32)
        edm = make_target("edm", x_0, eps, alpha, sigma, 1.0)
        np.testing.assert_allclose(edm, -make_target("v", x_0, eps, alpha, sigma), atol=1e-5)
        np.testing.assert_allclose(input_scale("edm", alpha, sigma, 1.0), 1, rtol=1e-5)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_sees_and_says_numbers_of_unit_variance(process, sigma_data):
    """For data of variance sigma_data^2, at every noise level."""
    with jax.enable_x64(True):
        alpha, sigma, *_ = mixed(process, jnp.float64)
        scale = input_scale("edm", alpha, sigma, sigma_data)
        seen = scale**2 * ((alpha * sigma_data) ** 2 + sigma**2)
        a, b = coefficients("edm", alpha, sigma, sigma_data)
        np.testing.assert_allclose(seen, 1, rtol=1e-12)
        np.testing.assert_allclose((a * sigma_data) ** 2 + b**2, 1, rtol=1e-12)
        # And what it says is no part of what it sees.
        np.testing.assert_allclose(a * alpha * sigma_data**2 + b * sigma, 0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.schedule)
@pytest.mark.parametrize("target", TARGETS)
def test_ratio_of_squared_errors(process, target):
    with jax.enable_x64(True):
        alpha, sigma, x_0, eps, x_t = mixed(process, jnp.float64)
        said = make_target(target, x_0, eps, alpha, sigma, 0.5)
        wrong = said + jnp.asarray(RNG.standard_normal(X_0.shape))
        found, _ = solve(target, wrong, x_t, alpha, sigma, 0.5)
        ratio = like(squared_error_ratio(target, alpha, sigma, 0.5), x_0)
        np.testing.assert_allclose(
            jnp.square(found - x_0), ratio * jnp.square(wrong - said), rtol=1e-5, atol=1e-18
        )


def test_only_edm_scales_its_input():
    alpha, sigma = jnp.asarray([0.5]), jnp.asarray([0.9])
    for target in set(TARGETS) - {"edm"}:
        assert input_scale(target, alpha, sigma, 0.5) == 1


def test_levels_meet_images_by_row_or_all_at_once():
    x = jnp.ones((3, 2, 2, 1))
    assert like(jnp.ones(()), x).shape == ()
    assert like(jnp.ones(3), x).shape == (3, 1, 1, 1)
    rows = like(jnp.asarray([1.0, 2, 3]), x) * x
    np.testing.assert_array_equal(rows[:, 0, 0, 0], [1, 2, 3])
    assert like(jnp.asarray([True, False, True]), x).dtype == bool
