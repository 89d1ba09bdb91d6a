import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.training.ema import EMAConfig, ema_decay, ema_update


def test_average_has_its_closed_form():
    """ema_n = d^n p_0 + (1 - d) sum_i d^(n-i) p_i."""
    d, n = 0.9, 12
    params = np.random.default_rng(0).standard_normal((n + 1, 3))
    ema = {"kernel": jnp.asarray(params[0], jnp.float32)}
    update = jax.jit(ema_update)
    for p in params[1:]:
        ema = update(ema, {"kernel": jnp.asarray(p, jnp.float32)}, d)
    weights = (1 - d) * d ** np.arange(n - 1, -1, -1)
    expected = d**n * params[0] + weights @ params[1:]
    np.testing.assert_allclose(ema["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_warmup_rises_to_the_decay():
    config = EMAConfig(decay=0.99)
    decays = [float(ema_decay(config, t)) for t in (0, 10, 90, 10_000)]
    np.testing.assert_allclose(decays, [1 / 10, 11 / 20, 91 / 100, 0.99], rtol=1e-6)
    assert float(ema_decay(EMAConfig(decay=0.99, warmup=False), 0)) == pytest.approx(0.99)


def test_average_of_bfloat16_parameters_keeps_float32():
    """In bfloat16, steps of a thousandth of the way would be rounded away."""
    ema = {"kernel": jnp.ones(4, jnp.float32)}
    params = {"kernel": jnp.full(4, 1.5, jnp.bfloat16)}
    ema = ema_update(ema, params, 0.999)
    assert ema["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(ema["kernel"], 1.0005, rtol=1e-6)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_meaningless_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"`decay` must be in .* got {decay}.*Choose"):
        EMAConfig(decay=decay)
