"""Times that samplers visit, against their papers' formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.grids import GRIDS, make_grid
from genai_jax.diffusion.process import Process

PROCESSES = (
    Process("linear"),
    Process("cosine"),
    Process("edm"),
    Process("flow"),
    Process("linear", num_steps=1000),
    Process("cosine", num_steps=50, zero_terminal_snr=True),
)


@functools.cache
def compiled(process):
    """Every time of a grid of up to 1000 steps, one executable for all kinds."""

    @jax.jit
    def times(kind, n, start, rho, sigma_min):
        grid = make_grid(process, kind, start=start, rho=rho, sigma_min=sigma_min)
        return grid(jnp.arange(1001), n)

    return times


def times_of(process, kind, n, start=1.0, rho=7.0, sigma_min=0.002):
    found = compiled(process)(GRIDS.index(kind), n, start, rho, sigma_min)
    assert compiled(process)._cache_size() == 1
    return np.asarray(found)[: n + 1]


def steps_of(kind, n, start=1.0):
    return np.round(times_of(PROCESSES[4], kind, n, start) * 1000).astype(int)


def test_leading_steps_are_ddim():
    """floor(k T / n) + 1, of arXiv:2010.02502: the last step is left out, the first one is not."""
    np.testing.assert_array_equal(
        steps_of("uniform", 10), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    )
    np.testing.assert_array_equal(steps_of("uniform", 3), [667, 334, 1, 0])
    np.testing.assert_array_equal(steps_of("uniform", 1), [1, 0])


def test_trailing_steps_start_at_the_last():
    """T - i T / n, of arXiv:2305.08891."""
    np.testing.assert_array_equal(
        steps_of("trailing", 10), [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    )
    np.testing.assert_array_equal(steps_of("trailing", 3), [1000, 667, 333, 0])
    np.testing.assert_array_equal(steps_of("trailing", 1), [1000, 0])


@pytest.mark.parametrize("kind", ["uniform", "trailing"])
def test_as_many_steps_as_there_are_are_all_of_them(kind):
    np.testing.assert_array_equal(steps_of(kind, 1000), np.arange(1000, -1, -1))


def test_steps_from_an_image_are_those_below_the_start():
    np.testing.assert_array_equal(steps_of("uniform", 4, 0.6), [451, 301, 151, 1, 0])
    np.testing.assert_array_equal(steps_of("trailing", 4, 0.6), [600, 450, 300, 150, 0])


@pytest.mark.parametrize("start", [1.0, 0.7])
@pytest.mark.parametrize("n", [1, 2, 18, 1000])
def test_continuous_times_are_those_of_their_formulas(n, start):
    flow, edm, linear = PROCESSES[3], PROCESSES[2], PROCESSES[0]
    part = np.arange(n + 1) / n
    for kind in ("uniform", "trailing"):
        np.testing.assert_allclose(times_of(flow, kind, n, start), start * (1 - part), atol=1e-6)
    quadratic = times_of(flow, "quadratic", n, start)
    np.testing.assert_allclose(quadratic, start * (1 - part) ** 2, atol=1e-6)
    # Karras et al., arXiv:2206.00364, eq. 5.
    inner = np.arange(n) / max(n - 1, 1)
    first, last, rho = 80 * start, 0.01, 5.0
    sigmas = (first ** (1 / rho) + inner * (last ** (1 / rho) - first ** (1 / rho))) ** rho
    found = times_of(edm, "karras", n, start, rho, last)
    np.testing.assert_allclose(80 * found, [*sigmas, 0], rtol=2e-5)
    found = times_of(linear, "log_snr", n, start, sigma_min=last)
    ends = float(linear.log_snr(jnp.float32(start))), -2 * np.log(last)
    levels = ends[0] + inner * (ends[1] - ends[0])
    np.testing.assert_allclose(linear.log_snr(jnp.float32(found[:-1])), levels, atol=2e-4)
    assert found[-1] == 0


def test_edm_has_its_eighteen_steps():
    """Equation 5 of arXiv:2206.00364 from 80 to 0.002 with rho 7, worked out."""
    sigmas = 80 * times_of(PROCESSES[2], "karras", 18)
    expected = [80.0, 57.586, 40.786, 28.374, 19.352, 12.910, 8.4009, 5.3152, 3.2566, 1.9233]
    np.testing.assert_allclose(sigmas[:10], expected, rtol=1e-4)
    np.testing.assert_allclose(sigmas[17:], [0.002, 0], rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.schedule}-{p.num_steps}")
@pytest.mark.parametrize("kind", GRIDS)
def test_every_grid_goes_down_from_its_start_to_the_data(process, kind):
    for start in (1.0, 0.5):
        for n in (1, 2, 7, process.num_steps or 100):
            times = times_of(process, kind, n, start)
            assert np.all(np.isfinite(times)) and np.all(np.diff(times) <= 0)
            assert times[-1] == 0 and np.all(times[:-1] > 0)
            if process.num_steps:
                steps = times * process.num_steps
                np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
            if kind != "uniform" or not process.num_steps:
                assert times[0] == np.float32(start)


def test_a_start_without_signal_is_spaced_as_if_it_had_some():
    flow = PROCESSES[3]
    times = times_of(flow, "log_snr", 5)
    levels = np.asarray(flow.log_snr(jnp.float32(times[1:-1])))
    np.testing.assert_allclose(levels, np.linspace(-12, -2 * np.log(0.002), 5)[1:], rtol=1e-4)
    assert times[0] == 1


def test_a_grid_goes_by_its_name_too_and_in_float64():
    with jax.enable_x64(True):
        grid = make_grid(Process("flow"), "quadratic")
        assert grid(1, 3).dtype == jnp.float64
        assert float(grid(1, 3)) == pytest.approx(4 / 9, abs=1e-15)
