import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.norms import LayerNorm, RMSNorm

D, EPS = 12, 1e-5
X = 3 * np.asarray(jax.random.normal(jax.random.key(0), (4, 5, D))) + 7
WEIGHTS = np.asarray(jax.random.normal(jax.random.key(1), (2, D)))


def layer_reference(x):
    x = x.astype(np.float64)
    variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + EPS) * WEIGHTS[0] + WEIGHTS[1]


def rms_reference(x, offset):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * (offset + WEIGHTS[0])


def layer_norm():
    norm = LayerNorm(D, eps=EPS, use_bias=True, param_dtype=jnp.float32)
    norm.scale[...], norm.bias[...] = WEIGHTS
    return norm


def rms_norm(offset):
    norm = RMSNorm(D, eps=EPS, offset=offset, param_dtype=jnp.float32)
    norm.scale[...] = WEIGHTS[0]
    return norm


CASES = [
    (layer_norm, layer_reference),
    (lambda: rms_norm(0.0), lambda x: rms_reference(x, 0.0)),
    (lambda: rms_norm(1.0), lambda x: rms_reference(x, 1.0)),
]


@pytest.mark.parametrize(("make", "reference"), CASES)
def test_norms_are_their_definition(make, reference):
    np.testing.assert_allclose(make()(jnp.asarray(X)), reference(X), atol=2e-5)


@pytest.mark.parametrize(("make", "reference"), CASES)
def test_gradients_are_those_of_finite_differences(make, reference):
    direction, weights = np.asarray(jax.random.normal(jax.random.key(2), (2, *X.shape)), np.float64)
    gradient = jax.grad(lambda x: jnp.sum(make()(x) * weights.astype(np.float32)))(jnp.asarray(X))
    step = 1e-6
    high, low = (reference(X.astype(np.float64) + s * step * direction) for s in (1, -1))
    expected = np.sum((high - low) * weights) / (2 * step)
    assert np.vdot(gradient, direction) == pytest.approx(expected, rel=1e-3)


def test_moments_are_float32_whatever_the_activations_are():
    x = jnp.full((1, D), 300.0, jnp.bfloat16).at[0, 0].set(304.0)  # squares lose this in bfloat16
    y = LayerNorm(D, eps=EPS, use_bias=False, param_dtype=jnp.float32)(x)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0]) == pytest.approx((D - 1) ** 0.5, rel=0.01)


def test_norms_without_parameters_are_what_the_others_begin_as():
    layer = {"eps": EPS, "use_bias": False, "param_dtype": jnp.float32}
    rms = {"eps": EPS, "param_dtype": jnp.float32}
    for norm, options in ((LayerNorm, layer), (RMSNorm, rms), (RMSNorm, rms | {"offset": 1.0})):
        bare = norm(D, use_scale=False, **options)
        assert not jax.tree.leaves(bare)
        x = jnp.asarray(X)
        np.testing.assert_allclose(bare(x), norm(D, **options)(x), rtol=1e-6)


def test_norms_begin_as_the_identity_on_normalised_input():
    x = jnp.asarray([[1.0, -1.0] * (D // 2)])
    for norm in (
        LayerNorm(D, eps=0.0, use_bias=True, param_dtype=jnp.float32),
        RMSNorm(D, eps=0.0, param_dtype=jnp.float32),
        RMSNorm(D, eps=0.0, offset=1.0, param_dtype=jnp.float32),
    ):
        np.testing.assert_allclose(norm(x), x, rtol=1e-6)
