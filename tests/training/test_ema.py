import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.training.ema import (
    EMAConfig,
    PowerEMA,
    gamma_of,
    power_averages,
    sigma_rel_of,
    update_average,
)


def test_average_has_its_closed_form():
    """ema_n = d^n p_0 + (1 - d) sum_i d^(n-i) p_i."""
    d, n = 0.9, 12
    params = np.random.default_rng(0).standard_normal((n + 1, 3))
    ema = {"kernel": jnp.asarray(params[0], jnp.float32)}
    update, rule = jax.jit(update_average), EMAConfig(d, warmup=False)
    for step, p in enumerate(params[1:]):
        ema = update(ema, {"kernel": jnp.asarray(p, jnp.float32)}, rule.share(step))
    weights = (1 - d) * d ** np.arange(n - 1, -1, -1)
    expected = d**n * params[0] + weights @ params[1:]
    np.testing.assert_allclose(ema["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_power_average_weighs_every_update_by_its_density():
    """Of update i after n: the integral of the density from i - 1 to i; nothing of the start."""
    n, rule = 40, PowerEMA(0.1)
    params = np.random.default_rng(0).standard_normal((n, 3))
    average = {"kernel": jnp.full(3, 1e6, jnp.float32)}
    update, share = jax.jit(update_average), jax.jit(rule.share)
    for step, p in enumerate(params):
        average = update(average, {"kernel": jnp.asarray(p, jnp.float32)}, share(step))
    edges = (np.arange(n + 1) / n) ** (rule.gamma + 1)
    np.testing.assert_allclose(average["kernel"], np.diff(edges) @ params, rtol=1e-5, atol=1e-6)


def test_power_shares_do_not_cancel_late_in_a_run():
    rule = PowerEMA(0.05)
    for step in (0, 1, 99, 10**4, 10**6, 10**7 - 1):
        t = np.float64(step + 1)
        beta = np.exp((rule.gamma + 1) * np.log1p(-1 / t)) if step else 0.0
        expected = -np.expm1((rule.gamma + 1) * np.log1p(-1 / t)) if step else 1.0
        assert expected == pytest.approx(1 - beta, abs=1e-12)
        assert float(rule.share(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 12**-0.5])
def test_length_is_the_standard_deviation_of_the_density(sigma_rel):
    gamma = gamma_of(sigma_rel)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    tau = (nodes + 1) / 2
    density = weights / 2 * (gamma + 1) * tau**gamma
    mean = density @ tau
    assert density.sum() == pytest.approx(1, rel=1e-9)
    assert np.sqrt(density @ (tau - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-9)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-12)


def test_exponents_of_the_paper():
    """Karras et al., arXiv:2312.02696, section 3.2: 0.05 and 0.10 are 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-6)


def test_warmup_falls_to_the_share():
    config = EMAConfig(decay=0.99)
    shares = [float(config.share(t)) for t in (0, 10, 90, 10_000)]
    np.testing.assert_allclose(shares, [9 / 10, 9 / 20, 9 / 100, 0.01], rtol=1e-6)
    assert float(EMAConfig(decay=0.99, warmup=False).share(0)) == pytest.approx(0.01)


def test_average_of_bfloat16_parameters_keeps_float32():
    """In bfloat16, steps of a thousandth of the way would be rounded away."""
    ema = {"kernel": jnp.ones(4, jnp.float32)}
    params = {"kernel": jnp.full(4, 1.5, jnp.bfloat16)}
    ema = update_average(ema, params, 0.001)
    assert ema["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(ema["kernel"], 1.0005, rtol=1e-6)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_meaningless_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"`decay` must be in .* got {decay}.*Choose"):
        EMAConfig(decay=decay)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_meaningless_length_is_refused(sigma_rel):
    with pytest.raises(ValueError, match=f"`sigma_rel` must be above 0 .* got {sigma_rel}"):
        PowerEMA(sigma_rel)


def test_traces_are_called_by_their_lengths():
    assert list(power_averages((0.05, 0.1))) == ["0.05", "0.1"]
    assert power_averages(()) == {}
    with pytest.raises(ValueError, match=r"must differ; got \(0\.1, 0\.1\)"):
        power_averages((0.1, 0.1))
