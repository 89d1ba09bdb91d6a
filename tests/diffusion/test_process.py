"""The noise process against the constants of its papers and formulas in float64."""

import dataclasses
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.diffusion.process import Process, alpha_sigma, discrete_betas, discrete_log_snr

DDPM = Process("linear", num_steps=1000)
CONTINUOUS = ("linear", "cosine", "sigmoid", "edm", "flow")
DISCRETE = (
    DDPM,
    Process("sigmoid", num_steps=250),
    Process("cosine", num_steps=4000, zero_terminal_snr=True, shift=2.0),
)
EVERYWHERE = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 1.0])
NEAR_THE_END = 1 - np.array([1e-4, 1e-5, 1e-6])


def named(process):
    zero_terminal = "-zero_terminal" * process.zero_terminal_snr
    return f"{process.schedule}-{process.num_steps}{zero_terminal}"


def alpha_bars(process):
    return np.cumprod(1 - discrete_betas(process))


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        values = jax.jit(function)(*(jnp.asarray(np.asarray(x), jnp.float64) for x in arguments))
        return jax.tree.map(np.asarray, values)


def test_linear_betas_are_those_of_ddpm():
    betas = discrete_betas(DDPM)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-15)
    assert alpha_bars(DDPM)[499] == pytest.approx(0.078587243, rel=1e-8)
    # The paper's L_T: next to nothing of the image is left.
    assert alpha_bars(DDPM)[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_posterior_variance_of_ddpm():
    """beta-tilde of the second step, from the log-SNR alone: sigma_s^2 (1 - SNR_t / SNR_s)."""
    s, t = discrete_log_snr(DDPM)[:2]
    _, sigma = in_float64(lambda x: alpha_sigma("variance_preserving", x), s)
    assert -(sigma**2) * math.expm1(t - s) == pytest.approx(5.45318766e-5, rel=1e-8)


def test_cosine_betas_are_those_of_the_paper():
    for steps in (1000, 4000):
        t = np.arange(steps + 1)
        f = np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        expected = np.minimum(1 - f[1:] / f[:-1], 0.999)
        process = Process("cosine", num_steps=steps)
        np.testing.assert_allclose(discrete_betas(process), expected, rtol=1e-9)
        assert discrete_betas(process)[-1] == 0.999
        # Why s is 0.008: the first noise is a little below the width of a bin of 256.
        assert 0.4 / 127.5 < math.sqrt(discrete_betas(process)[0]) < 1 / 127.5


def test_betas_of_other_step_counts_keep_the_end():
    ends = [alpha_bars(Process("linear", num_steps=n))[-1] for n in (500, 1000, 4000)]
    np.testing.assert_allclose(np.log(ends), math.log(ends[1]), atol=0.15)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
def test_continuous_time_is_the_limit_of_many_steps(schedule):
    """At fixed times the difference falls as one over the number of steps."""
    t = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    limit = in_float64(Process(schedule).log_snr, t)
    errors = [
        np.abs(in_float64(Process(schedule, num_steps=n).log_snr, t) - limit).max()
        for n in (1000, 10_000, 100_000)
    ]
    assert errors[2] < 1e-3
    assert errors[0] < 0.07
    if errors[0] > 1e-9:  # cosine and sigmoid are the same at every step
        np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.15)
        np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.15)


def reference_log_snr(schedule, t):
    """Each schedule as its paper writes it."""
    match schedule:
        case "linear":
            signal = np.exp(-0.1 * t - (20 - 0.1) * t**2 / 2)
        case "cosine":
            f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
            signal = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
        case "sigmoid":
            low, here, high = (1 / (1 + np.exp(-x)) for x in (-3.0, -3 + 6 * t, 3.0))
            signal = (high - here) / (high - low)
        case "edm":
            return -2 * np.log(80 * t)
        case "flow":
            return 2 * np.log((1 - t) / t)
    return np.log(signal) - np.log1p(-signal)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_log_snr_is_that_of_the_paper(schedule):
    t = np.array([0.02, 0.1, 0.25, 0.5, 0.8, 0.95, 0.99])
    actual = in_float64(Process(schedule).log_snr, t)
    np.testing.assert_allclose(actual, reference_log_snr(schedule, t), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("schedule", CONTINUOUS)
def test_float32_is_accurate_at_both_ends(schedule):
    """log-SNR to a few units in the last place, times near 0 by their own size."""
    process = Process(schedule)
    t = np.concatenate([EVERYWHERE, NEAR_THE_END]).astype(np.float32)
    exact = in_float64(process.log_snr, t)
    np.testing.assert_allclose(process.log_snr(jnp.asarray(t)), exact, rtol=4e-7, atol=2e-6)
    found = exact.astype(np.float32)
    times = in_float64(process.time_at, found)
    np.testing.assert_allclose(process.time_at(jnp.asarray(found)), times, rtol=1e-6)


@pytest.mark.parametrize("process", [*map(Process, CONTINUOUS), *DISCRETE], ids=named)
def test_time_at_is_the_inverse_of_log_snr(process):
    t = EVERYWHERE
    back = in_float64(lambda t: process.time_at(process.log_snr(t)), t)
    np.testing.assert_allclose(back, t, rtol=1e-9)
    # In float32 the steepness of a schedule's end multiplies rounding.
    single = jax.jit(lambda t: process.time_at(process.log_snr(t)))(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(single, t, rtol=2e-6)
    assert float(process.time_at(jnp.float32(jnp.inf))) == 0
    assert float(process.time_at(jnp.float32(-1000))) == 1


@given(st.sampled_from(CONTINUOUS), st.floats(1e-5, 1), st.floats(1e-5, 1), st.floats(0.3, 4))
def test_log_snr_falls(schedule, a, b, shift):
    process = Process(schedule, shift=shift)
    low, high = sorted((a, b))
    with jax.enable_x64(True):
        here, there = np.asarray(process.log_snr(jnp.asarray([low, high], jnp.float64)))
    assert np.isfinite([here, there]).all()
    assert here > there or high - low < 1e-12


@pytest.mark.parametrize("process", [*map(Process, CONTINUOUS), *DISCRETE], ids=named)
def test_ends_of_time(process):
    t = jnp.asarray([0.0, 1.0])
    log_snr = process.log_snr(t)
    assert log_snr[0] == jnp.inf
    assert jnp.isfinite(log_snr[1])
    alpha, sigma = process.alpha_sigma(t)
    assert (alpha[0], sigma[0]) == (1, 0)
    ends_without_signal = process.schedule in ("flow", "cosine", "sigmoid") and (
        not process.num_steps or process.zero_terminal_snr
    )
    if ends_without_signal:
        assert log_snr[1] == -80 - 2 * math.log(process.shift)
        assert alpha[1] < 1e-17
        assert sigma[1] == 1
        slope = jax.grad(process.log_snr)(t[1])
        assert jnp.isfinite(slope)


@pytest.mark.parametrize("log_snr", [-80.0, -20.0, -1.0, 0.0, 3.0, 15.0, 40.0, math.inf])
def test_alpha_and_sigma_keep_their_geometry(log_snr):
    for dtype, rtol in ((jnp.float32, 5e-6), (jnp.float64, 1e-14)):
        with jax.enable_x64(True):
            x = jnp.asarray(log_snr, dtype)
            pairs = {
                geometry: [np.float64(level) for level in alpha_sigma(geometry, x)]
                for geometry in ("variance_preserving", "variance_exploding", "flow")
            }
        alpha, sigma = pairs["variance_preserving"]
        assert alpha**2 + sigma**2 == pytest.approx(1, rel=rtol)
        alpha, sigma = pairs["flow"]
        assert alpha + sigma == pytest.approx(1, rel=rtol)
        assert pairs["variance_exploding"][0] == 1
        for alpha, sigma in pairs.values():
            expected = math.exp(-log_snr / 2)
            assert sigma / alpha == pytest.approx(expected, rel=10 * rtol)


def test_levels_of_a_discrete_process_are_its_alpha_bars():
    for process in DISCRETE[:2]:
        t = np.arange(1, process.num_steps + 1) / process.num_steps
        alpha, sigma = in_float64(process.alpha_sigma, t)
        np.testing.assert_allclose(alpha**2, alpha_bars(process), rtol=1e-11)
        np.testing.assert_allclose(sigma**2, 1 - alpha_bars(process), rtol=1e-9)


@pytest.mark.parametrize("process", DISCRETE, ids=named)
def test_steps_are_exact_in_float32(process):
    steps = np.arange(1, process.num_steps + 1)
    t = jnp.asarray(steps / process.num_steps, jnp.float32)
    np.testing.assert_array_equal(process.noise_level(t), steps - 1)
    np.testing.assert_allclose(process.snap(t), t, rtol=2e-7)
    expected = discrete_log_snr(process) - 2 * math.log(process.shift)
    np.testing.assert_allclose(process.log_snr(t), expected, rtol=2e-7, atol=1e-6)


def test_before_the_first_step_noise_grows_with_time():
    t = np.array([0.1, 0.25, 0.5, 1.0]) / 1000
    log_snr = in_float64(DDPM.log_snr, t)
    np.testing.assert_allclose(np.exp(-log_snr), np.exp(-log_snr[-1]) * t * 1000, rtol=1e-12)


def test_slopes_of_a_discrete_process_are_those_between_its_steps():
    table = discrete_log_snr(DDPM)
    slopes = in_float64(jax.vmap(jax.grad(DDPM.log_snr)), [0.5, 0.5005])
    assert slopes[1] == pytest.approx((table[500] - table[499]) * 1000, rel=1e-9)
    assert slopes[0] == pytest.approx(slopes[1], rel=0.01)


def test_snap_never_reaches_time_zero():
    t = jnp.asarray([0.0, 4e-4, 1e-3, 0.5004, 0.5006, 1.0])
    np.testing.assert_allclose(DDPM.snap(t), [0.001, 0.001, 0.001, 0.5, 0.501, 1], rtol=1e-6)
    np.testing.assert_array_equal(Process().snap(t), t)


def test_zero_terminal_snr_is_algorithm_1():
    """Shift and scale the alphas so that the last is 0 and the first is kept."""
    process = dataclasses.replace(DDPM, zero_terminal_snr=True)
    alphas = np.sqrt(alpha_bars(DDPM))
    expected = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    actual = np.sqrt(alpha_bars(process))
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-15)
    assert discrete_betas(process)[-1] == 1
    assert actual[0] == pytest.approx(alphas[0], rel=1e-14)
    assert discrete_log_snr(process)[-1] == -80


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_of_a_flow_is_that_of_stable_diffusion_3(shift):
    t = np.array([0.01, 0.2, 0.5, 0.9, 0.999])
    alpha, sigma = in_float64(Process("flow", shift=shift).alpha_sigma, t)
    moved = shift * t / (1 + (shift - 1) * t)
    np.testing.assert_allclose(sigma, moved, rtol=1e-13)
    np.testing.assert_allclose(alpha, 1 - moved, rtol=1e-12)


@pytest.mark.parametrize("process", [Process(), Process("edm"), DDPM], ids=named)
def test_shift_divides_signal_by_noise(process):
    t = EVERYWHERE[:-1]
    plain = in_float64(process.alpha_sigma, t)
    shifted = in_float64(dataclasses.replace(process, shift=4.0).alpha_sigma, t)
    ratio = (plain[0] / plain[1]) / (shifted[0] / shifted[1])
    np.testing.assert_allclose(ratio, 4, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid", "flow", "linear"])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_a_least_log_snr_is_that_of_the_end(schedule, shift):
    process = Process(schedule, shift=shift, log_snr_min=-9.0)
    assert in_float64(process.log_snr, 1.0) == pytest.approx(-9, abs=1e-10)
    assert in_float64(process.time_at, -9.0) == pytest.approx(1, abs=1e-12)
    # Time is stretched evenly.
    whole = Process(schedule, shift=shift)
    end = in_float64(whole.time_at, -9.0)
    np.testing.assert_allclose(
        in_float64(process.log_snr, 0.3), in_float64(whole.log_snr, 0.3 * end), rtol=1e-12
    )


def test_a_least_log_snr_below_the_schedule_leaves_it():
    t = jnp.asarray([0.1, 1.0])
    stretched = Process("linear", log_snr_min=-30.0)
    np.testing.assert_array_equal(stretched.log_snr(t), Process("linear").log_snr(t))


def test_noise_levels_are_what_networks_are_told():
    sigma = np.array([0.002, 0.5, 80.0])
    t = in_float64(Process("edm").time_at, -2 * np.log(sigma))
    np.testing.assert_allclose(t, sigma / 80, rtol=1e-13)
    c_noise = in_float64(Process("edm").noise_level, t)
    np.testing.assert_allclose(c_noise, np.log(sigma) / 4, rtol=1e-13)
    np.testing.assert_allclose(Process("flow").noise_level(jnp.asarray([0.25, 1.0])), [250, 1000])
    np.testing.assert_array_equal(DDPM.noise_level(jnp.asarray([0.001, 1.0])), [0, 999])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "linear", "num_steps": 20},
        {"schedule": "cosine", "log_snr_min": -11.25},
        {"schedule": "flow", "shift": 1.5},
    ],
)
def test_a_process_may_be_met_first_inside_jit(arguments, x64):
    """Tables and constants are computed there once, hold no tracer, and whatever asks first."""
    arguments = arguments | {"beta_last": 0.02 + 1e-6 * x64}  # one that no other test has asked
    with jax.enable_x64(x64):
        t = jnp.asarray([0.1, 0.5, 1.0])

        levels, times, told = jax.jit(lambda t: outputs(Process(**arguments), t))(t)
        eager = outputs(Process(**arguments), t)
        assert levels[0].dtype == t.dtype == (jnp.float64 if x64 else jnp.float32)
    np.testing.assert_allclose(times, t, rtol=1e-12 if x64 else 1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (levels, times, told), eager
    )


def outputs(process, t):
    return (
        process.alpha_sigma(process.snap(t)),
        process.time_at(process.log_snr(t)),
        process.noise_level(t),
    )


def test_cached_tables_cannot_be_written():
    for table in (discrete_betas(DDPM), discrete_log_snr(DDPM)):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 1}, r"`num_steps` must be 0 .* or at least 2; got 1"),
        ({"num_steps": -5}, "got -5"),
        ({"schedule": "flow", "num_steps": 10}, r"got 10 with 'flow'\. Choose 0"),
        ({"schedule": "edm", "num_steps": 10}, "Choose 0"),
        ({"beta_first": 0.5, "beta_last": 0.1}, r"got `beta_first` 0\.5 and `beta_last` 0\.1"),
        ({"beta_last": 1.0}, "DDPM has 1e-4 and 0.02"),
        ({"sigmoid_start": 3.0}, "Choose -3 and 3"),
        ({"cosine_offset": 0.0}, r"`cosine_offset` must be positive; got 0\.0\. Choose 0\.008"),
        ({"shift": -1.0}, r"Choose 1\.0"),
        ({"shift": math.nan}, "got nan"),
        ({"sigma_max": math.inf}, "got inf"),
        ({"num_steps": 10, "log_snr_min": -9.0}, "Leave one of them out"),
        ({"zero_terminal_snr": True}, "Give num_steps 1000"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Process(**arguments)


def test_continuous_time_has_no_betas():
    with pytest.raises(ValueError, match="no betas; got `num_steps` 0"):
        discrete_betas(Process())


@pytest.mark.parametrize(
    "process",
    [
        Process("linear"),
        Process("linear", num_steps=50, shift=2.0),
        Process("edm", shift=0.5),
        Process("cosine", log_snr_min=-15.0, shift=3.0),
        Process("cosine", num_steps=30, zero_terminal_snr=True),
    ],
    ids=str,
)
def test_the_end_is_known_without_jax(process):
    assert process.last_log_snr == pytest.approx(float(process.log_snr(jnp.ones(()))), rel=1e-4)


def test_configurations_do_not_start_jax():
    """Else scripts could not choose their devices after reading their command line."""
    code = """
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.process import Process
Diffusion(Process("linear", num_steps=1000), "eps")
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
