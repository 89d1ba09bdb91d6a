"""Low-rank adapters of one kernel, beside float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.linear import Linear
from genai_jax.nn.lora import Lora, LoraConfig, init_lora

INPUTS, OUTPUTS, RANK = (4, 6), (3, 5), 2


def with_lora(linear, **options):
    """A linear map with an adapter whose numbers are all random."""
    rng = np.random.default_rng(1)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    dora = options.pop("dora", False)
    magnitude = 1 + jnp.abs(random(*OUTPUTS)) if dora else None
    lora = Lora(random(*INPUTS, RANK), random(RANK, *OUTPUTS), magnitude, alpha=3.0, **options)
    linear.lora = lora
    return linear


def linear(**options):
    return Linear(INPUTS, OUTPUTS, jax.random.key(0), init_std=1.0, **options)


def by_hand(layer, x, dora):
    """The same in float64, from the formulas."""
    flat = {
        name: np.asarray(array[...], np.float64)
        for name, array in (("w", layer.kernel), ("a", layer.lora.a), ("b", layer.lora.b))
    }
    w, a, b = flat["w"].reshape(24, 15), flat["a"].reshape(24, RANK), flat["b"].reshape(RANK, 15)
    scale = 3.0 / (RANK**0.5 if layer.lora.rslora else RANK)
    whole = w + scale * a @ b
    if dora:
        m = np.asarray(layer.lora.magnitude[...], np.float64).reshape(-1)
        whole = m * whole / np.linalg.norm(whole, axis=0)
    bias = np.asarray(layer.bias[...], np.float64).reshape(-1)
    return (np.asarray(x, np.float64).reshape(-1, 24) @ whole + bias).reshape(2, 7, *OUTPUTS)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_the_map_is_that_of_the_formula(rslora, dora):
    layer = with_lora(linear(use_bias=True), rslora=rslora, dora=dora)
    layer.bias = layer.bias + 1.0  # not scaled by the magnitude
    x = jax.random.normal(jax.random.key(2), (2, 7, *INPUTS))
    np.testing.assert_allclose(layer(x), by_hand(layer, x, dora), rtol=1e-4, atol=1e-4)
    merged = layer.lora.merged(layer.weights())
    alone = x.reshape(-1, 24) @ merged + layer.bias.reshape(-1)
    np.testing.assert_allclose(alone.reshape(2, 7, *OUTPUTS), layer(x), rtol=1e-4, atol=1e-4)


def test_no_gradient_flows_through_the_norm():
    r"""DoRA's gradient of V = W + sAB is (m / |V|) times that of W', eq. 11; of m, V / |V|."""
    layer = with_lora(linear(), dora=True)
    x = jax.random.normal(jax.random.key(2), (5, *INPUTS))
    weights = jax.random.normal(jax.random.key(3), (5, *OUTPUTS))
    found = jax.grad(lambda lora: jnp.sum(weights * attached(layer, lora)(x)))(layer.lora)
    rows, by = (np.asarray(z, np.float64).reshape(5, -1) for z in (x, weights))
    a, b, m = (
        np.asarray(z[...], np.float64).reshape(shape)
        for z, shape in (
            (layer.lora.a, (24, RANK)),
            (layer.lora.b, (RANK, 15)),
            (layer.lora.magnitude, (15,)),
        )
    )
    scale = layer.lora.scale
    v = np.asarray(layer.kernel[...], np.float64).reshape(24, 15) + scale * a @ b
    length = np.linalg.norm(v, axis=0)
    of_v = (rows.T @ by) * m / length
    expected = {
        "a": scale * of_v @ b.T,
        "b": scale * a.T @ of_v,
        "magnitude": np.sum(v / length * (rows.T @ by), axis=0),
    }
    for name, value in expected.items():
        ours = np.asarray(getattr(found, name)[...]).reshape(value.shape)
        np.testing.assert_allclose(ours, value, rtol=2e-4, atol=2e-4, err_msg=name)


def attached(layer, lora):
    other = linear()
    other.kernel, other.lora = layer.kernel, lora
    return other


def test_a_new_adapter_is_drawn_as_peft_draws_it():
    """A fills ± 1 / sqrt(inputs), of variance a third of its square; B is zero; m the lengths."""
    kernel = jax.random.normal(jax.random.key(0), (20, 30, 7))
    lora = init_lora(LoraConfig(rank=40, dora=True), kernel, 2, jax.random.key(1))
    bound = 600**-0.5
    a = np.asarray(lora.a[...])
    assert a.shape == (20, 30, 40) and 0.99 * bound < np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / 3**0.5, rel=0.02) and abs(a.mean()) < 0.02 * bound
    assert lora.b.shape == (40, 7) and not np.asarray(lora.b[...]).any()
    lengths = np.linalg.norm(np.asarray(kernel, np.float64).reshape(600, 7), axis=0)
    np.testing.assert_allclose(lora.magnitude[...], lengths, rtol=1e-5)


def test_a_column_of_zeros_stays_zero():
    kernel = jnp.ones((4, 3)).at[:, 1].set(0)
    lora = init_lora(LoraConfig(rank=2, dora=True), kernel, 1, jax.random.key(0))
    np.testing.assert_allclose(lora.merged(kernel), kernel, rtol=1e-6)


def test_half_precision_is_computed_in_the_type_of_the_activations():
    layer = with_lora(linear(param_dtype=jnp.bfloat16), dora=True)
    x = jax.random.normal(jax.random.key(2), (5, *INPUTS), jnp.bfloat16)
    assert layer(x).dtype == jnp.bfloat16
    assert layer.lora.a[...].dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"rank": -1}, "`rank` must not be negative; got -1"),
        ({"alpha": 0.0}, "`alpha` must be above 0"),
        ({"alpha": float("inf")}, "`alpha` must be above 0 and finite"),
        ({"targets": ()}, "`targets` must be all, or some"),
        ({"targets": ("all", "query")}, "`targets` must be all, or some"),
    ],
)
def test_what_has_no_meaning_is_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        LoraConfig(**options)
