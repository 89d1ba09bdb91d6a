"""Weights against their closed forms, and times against their distributions."""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from genai_jax.diffusion.likelihood import step_kl
from genai_jax.diffusion.predictions import Target, squared_error_ratio
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.weightings import LevelConfig, draw_times, loss_weight

TARGETS = get_args(Target)
PROCESSES = [
    Process("linear", num_steps=1000),
    Process("cosine"),
    Process("edm"),
    Process("flow"),
    Process("linear", num_steps=1000, zero_terminal_snr=True),
]
TIMES = np.array([0.001, 0.02, 0.3, 0.5, 0.9, 0.998, 1.0])


def name(process):
    return f"{process.schedule}{'-zero_terminal' * process.zero_terminal_snr}"


def weights(config, process, target, sigma_data=1.0, t=TIMES):
    with jax.enable_x64(True):
        times = jnp.asarray(t, jnp.float64)
        return np.asarray(loss_weight(config, process, target, times, sigma_data))


def snr_of(process, t=TIMES):
    with jax.enable_x64(True):
        return np.exp(np.asarray(process.log_snr(jnp.asarray(t, jnp.float64))))


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "vlb"])
def test_a_weighting_means_the_same_for_every_target(process, weighting):
    """Weight over the ratio of squared errors: what an error of x_0 counts."""
    config = LevelConfig(weighting)
    expected = weights(config, process, "x_0", 0.5)
    with jax.enable_x64(True):
        alpha, sigma = process.alpha_sigma(jnp.asarray(TIMES, jnp.float64))
        ratios = {t: np.asarray(squared_error_ratio(t, alpha, sigma, 0.5)) for t in TARGETS}
    for target in ("eps", "v", "edm"):
        found = weights(config, process, target, 0.5) / ratios[target]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-25)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_has_the_closed_forms_of_the_paper(gamma):
    """min(SNR, gamma) of x_0, over SNR of eps, over SNR + 1 of v."""
    for process in (PROCESSES[0], PROCESSES[1], PROCESSES[4]):
        snr = snr_of(process)
        clipped, config = np.minimum(snr, gamma), LevelConfig("min_snr", min_snr_gamma=gamma)
        closed = {"x_0": clipped, "eps": clipped / snr, "v": clipped / (snr + 1)}
        for target, expected in closed.items():
            np.testing.assert_allclose(weights(config, process, target), expected, rtol=1e-9)
        # Without signal: of v no division by zero, nor a weight.
        assert np.isfinite(weights(config, process, "v")).all()


def test_edm_weights_have_the_closed_forms_of_the_paper():
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, and lambda c_out^2 = 1."""
    t = np.array([0.002, 0.1, 0.5, 10, 80]) / 80
    sigma, config = 80 * t, LevelConfig("edm", times="lognormal")
    for sigma_data in (0.5, 1.0):
        expected = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        found = weights(config, Process("edm"), "x_0", sigma_data, t)
        np.testing.assert_allclose(found, expected, rtol=1e-11)
        found = weights(config, Process("edm"), "edm", sigma_data, t)
        np.testing.assert_allclose(found, 1, rtol=1e-11)


def test_simple_counts_errors_of_the_target_as_they_are():
    for target in TARGETS:
        np.testing.assert_array_equal(weights(LevelConfig(), PROCESSES[1], target), 1)


@pytest.mark.parametrize(
    "process", [Process("cosine"), Process("flow", shift=2.0), Process("edm"), Process("linear")]
)
def test_vlb_weights_integrate_to_what_noise_hides_of_a_gaussian(process):
    r"""With the least error s^2 / (1 + s^2 SNR), $\frac12 \log$ of the ratio of 1 + s^2 SNR."""
    s, first = 0.4, 1e-3
    edges = np.geomspace(first, 1, 20_001)
    t = (edges[1:] + edges[:-1]) / 2
    error = s**2 / (1 + s**2 * snr_of(process, t))
    weight = weights(LevelConfig("vlb"), process, "x_0", t=t)
    integral = np.sum(weight * error * np.diff(edges))
    ends = 1 + s**2 * snr_of(process, np.array([first, 1.0]))
    assert integral == pytest.approx(math.log(ends[0] / ends[1]) / 2, rel=1e-5)


def test_vlb_weights_of_steps_are_their_kl():
    """With the smallest variance, and at the first step of a Gaussian of sigma^2 / alpha^2."""
    process = PROCESSES[0]
    t = np.array([2, 3, 100, 1000]) / 1000
    with jax.enable_x64(True):
        times = jnp.asarray(t, jnp.float64)
        one = jnp.ones((4, 1), jnp.float64)
        kl = np.asarray(step_kl(process, times, times - 1e-3, one, 0 * one))[:, 0]
    np.testing.assert_allclose(weights(LevelConfig("vlb"), process, "x_0", t=t), 1000 * kl)
    (first,) = weights(LevelConfig("vlb"), process, "x_0", t=np.array([1e-3]))
    assert first == pytest.approx(500 * snr_of(process, 1e-3), rel=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_weights_are_finite_in_float32(process):
    """At the first step, at the last, and where no signal is left."""
    t = jnp.asarray([1e-3, 0.5, 1.0])
    for weighting in ("simple", "min_snr", "edm", "vlb"):
        for target in ("v", "x_0"):
            found = loss_weight(LevelConfig(weighting), process, target, t)
            assert jnp.isfinite(found).all()
            assert (found >= 0).all()
            expected = weights(LevelConfig(weighting), process, target, t=np.asarray(t))
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-12)


STRATA = (np.arange(1000) + 0.37) / 1000


def drawn(config, process, uniform=STRATA):
    with jax.enable_x64(True):
        return np.asarray(draw_times(config, process, jnp.asarray(uniform, jnp.float64)))


def test_strata_visit_every_step_once():
    for u in (0.0, 0.37, 0.999):
        strata = jnp.asarray((np.arange(1000) + u) / 1000, jnp.float32)
        t = draw_times(LevelConfig(), PROCESSES[0], strata)
        steps = np.rint(np.asarray(t) * 1000)
        if u:  # at 0 rounding may go either way
            np.testing.assert_array_equal(np.sort(steps), np.arange(1, 1001))
        assert steps.min() == 1
        assert steps.max() == 1000
    last = draw_times(LevelConfig(), PROCESSES[0], jnp.float32(1 - 2**-24))
    assert last == 1


def test_uniform_times_of_continuous_time():
    t = drawn(LevelConfig(time_min=0.01), Process("cosine"))
    np.testing.assert_allclose(t, 0.01 + 0.99 * STRATA, rtol=1e-12)
    ends = draw_times(LevelConfig(), Process("flow"), jnp.asarray([0, 1 - 2**-24], jnp.float32))
    assert ends[0] == pytest.approx(1e-4)
    assert 0.9999 < ends[1] <= 1


def test_lognormal_times_have_the_quantiles_of_the_paper():
    config = LevelConfig("edm", times="lognormal", mean=-1.2, std=1.2)
    sigma = 80 * drawn(config, Process("edm"))
    np.testing.assert_allclose(np.log(sigma), norm.ppf(STRATA, -1.2, 1.2), rtol=1e-9)
    # Of another process: of its sigma / alpha.
    cosine = Process("cosine")
    ratio = snr_of(cosine, drawn(config, cosine)) ** -0.5
    np.testing.assert_allclose(np.log(ratio), norm.ppf(STRATA, -1.2, 1.2), rtol=1e-7, atol=1e-7)


def test_logit_normal_times_have_the_quantiles_of_the_paper():
    config = LevelConfig(times="logit_normal", mean=0.3, std=0.8)
    t = drawn(config, Process("flow"))
    np.testing.assert_allclose(np.log(t / (1 - t)), norm.ppf(STRATA, 0.3, 0.8), rtol=1e-9)


@pytest.mark.parametrize("times", ["lognormal", "logit_normal"])
def test_times_are_within_the_process_whatever_is_drawn(times):
    config = LevelConfig(times=times, std=5.0)
    uniform = jnp.asarray([0.0, 1e-7, 0.5, 1 - 2**-24], jnp.float32)
    for process in PROCESSES:
        t = draw_times(config, process, uniform)
        assert (t > 0).all()
        assert (t <= 1).all()
        assert (jnp.diff(t) >= 0).all()
        if process.num_steps:
            np.testing.assert_allclose(t * 1000, jnp.round(t * 1000), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_snr_gamma": 0.0}, r"`min_snr_gamma` must be positive; got 0\.0"),
        ({"std": -1.0}, r"`std` must be positive; got -1\.0"),
        ({"std": math.nan}, "`std` must be positive; got nan"),
        ({"time_min": 0.0}, r"`time_min` must be in \(0, 1\); got 0\.0\. Try 1e-4"),
        ({"time_min": 1.0}, r"got 1\.0"),
        ({"weighting": "vlb", "times": "lognormal"}, "Choose times uniform"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LevelConfig(**arguments)
