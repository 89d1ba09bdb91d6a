import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.linear import Linear
from genai_jax.nn.mlp import MLP, activate

X = np.linspace(-6, 6, 49)
ERF = np.array([math.erf(x / math.sqrt(2)) for x in X])
ACTIVATIONS = {
    "gelu_exact": X * (1 + ERF) / 2,
    "gelu": X / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
    "silu": X / (1 + np.exp(-X)),
    "relu2": np.maximum(X, 0) ** 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_formula(name):
    actual = activate(jnp.asarray(X, jnp.float32), name)
    np.testing.assert_allclose(actual, ACTIVATIONS[name], atol=2e-6)
    slope = jax.vmap(jax.grad(lambda x: activate(x, name)))(jnp.asarray(X[1:-1], jnp.float32))
    expected = (ACTIVATIONS[name][2:] - ACTIVATIONS[name][:-2]) / (X[2] - X[0])
    np.testing.assert_allclose(slope, expected, atol=0.13 if name == "relu2" else 0.01)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_mlp_is_its_formula(gated, use_bias):
    mlp = MLP(
        3,
        8,
        jax.random.key(0),
        activation="silu",
        gated=gated,
        use_bias=use_bias,
        init_std=0.5,
        output_std=0.5,
        param_dtype=jnp.float32,
    )
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 4, 3)))

    def affine(linear, x):
        y = np.asarray(x, np.float64) @ np.asarray(linear.kernel[...])
        return y if linear.bias is None else y + np.asarray(linear.bias[...])

    if use_bias:
        for linear in (mlp.up, mlp.down, mlp.gate):
            if linear is not None:
                linear.bias[...] = jnp.arange(linear.bias.shape[0], dtype=jnp.float32) / 4
    inner = affine(mlp.gate if gated else mlp.up, x)
    inner = inner / (1 + np.exp(-inner))
    expected = affine(mlp.down, inner * affine(mlp.up, x) if gated else inner)
    np.testing.assert_allclose(mlp(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize(("inner", "outer"), [((6,), (2, 4)), ((4, 3), (5,))])
def test_linear_contracts_trailing_axes_and_its_gradient_is_the_outer_product(inner, outer):
    linear = Linear(inner, outer, jax.random.key(0), init_std=1.0, use_bias=True)
    x = jax.random.normal(jax.random.key(1), (7, 3, *inner))
    y, pull = jax.vjp(lambda linear, x: linear(x), linear, x)
    axes = len(inner)
    kernel = np.asarray(linear.kernel[...], np.float64)
    np.testing.assert_allclose(y, np.tensordot(x, kernel, axes), atol=1e-4)
    ct = jax.random.normal(jax.random.key(2), y.shape)
    by_linear, by_x = pull(ct)
    expected = np.tensordot(x, ct, [(0, 1), (0, 1)])
    np.testing.assert_allclose(by_linear.kernel[...], expected, atol=1e-4)
    np.testing.assert_allclose(by_linear.bias[...], ct.sum((0, 1)), atol=1e-4)
    spread = list(range(2, 2 + len(outer)))
    expected = np.tensordot(ct, kernel, [spread, list(range(axes, axes + len(outer)))])
    np.testing.assert_allclose(by_x, expected, atol=1e-4)


def test_linear_computes_in_the_dtype_of_its_input():
    linear = Linear((4,), (3,), jax.random.key(0), init_std=1.0)
    assert linear(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16
