import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.group_norm import GroupNorm

B, H, W, C, EPS = 3, 4, 5, 12, 1e-5
# Every channel has a mean and a width of its own.
CHANNELS = np.asarray(jax.random.normal(jax.random.key(1), (2, C)))
X = np.asarray(jax.random.normal(jax.random.key(0), (B, H, W, C))) * np.exp(CHANNELS[0])
X = (X + 3 * CHANNELS[1] + 7).astype(np.float32)
SCALE, BIAS = np.asarray(jax.random.normal(jax.random.key(2), (2, C)))
WEIGHTS, DIRECTION = np.asarray(jax.random.normal(jax.random.key(3), (2, *X.shape)), np.float64)

CASES = [(g, silu) for g in (1, 3, 4, C) for silu in (False, True)]


def reference(x, groups, silu, scale=SCALE, bias=BIAS):
    grouped = np.asarray(x, np.float64).reshape(B, H, W, groups, C // groups)
    centred = grouped - grouped.mean((1, 2, 4), keepdims=True)
    variance = (centred**2).mean((1, 2, 4), keepdims=True)
    y = (centred / np.sqrt(variance + EPS)).reshape(x.shape) * scale + bias
    return y / (1 + np.exp(-y)) if silu else y


def group_norm(groups, dtype=jnp.float32):
    norm = GroupNorm(C, groups, eps=EPS, param_dtype=dtype)
    norm.scale[...], norm.bias[...] = SCALE, BIAS
    return norm


@pytest.mark.parametrize(("groups", "silu"), CASES)
def test_group_norms_are_their_definition(groups, silu):
    y = jax.jit(lambda norm, x: norm(x, silu=silu))(group_norm(groups), jnp.asarray(X))
    np.testing.assert_allclose(y, reference(X, groups, silu), atol=2e-5)


@pytest.mark.parametrize(("groups", "silu"), CASES)
def test_gradients_are_those_of_finite_differences(groups, silu):
    def loss(norm, x):
        return jnp.sum(norm(x, silu=silu) * WEIGHTS.astype(np.float32))

    of_norm, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(group_norm(groups), jnp.asarray(X))
    step, along = 1e-6, np.linspace(-1, 1, C)

    def slope(**moved):
        high, low = (
            reference(X + s * moved.get("x", 0), groups, silu, SCALE + s * moved.get("scale", 0),
                      BIAS + s * moved.get("bias", 0))
            for s in (step, -step)
        )  # fmt: skip
        return np.sum((high - low) * WEIGHTS) / (2 * step)

    assert np.vdot(of_x, DIRECTION) == pytest.approx(slope(x=DIRECTION), rel=1e-3)
    assert of_norm.scale[...] @ along == pytest.approx(slope(scale=along), rel=1e-3)
    assert of_norm.bias[...] @ along == pytest.approx(slope(bias=along), rel=1e-3)


def test_forward_mode_and_second_derivatives_are_right():
    with jax.enable_x64(True):
        norm, x, d = group_norm(4, jnp.float64), jnp.asarray(X, jnp.float64), jnp.asarray(DIRECTION)

        def loss(x):
            return jnp.sum(jnp.sin(norm(x, silu=True)) * WEIGHTS)

        def slope(x):
            return jax.jvp(loss, (x,), (d,))[1]

        grad, step = jax.jit(jax.grad(loss)), 1e-5
        gradient = grad(x)
        assert float(jax.jit(slope)(x)) == pytest.approx(float(jnp.vdot(gradient, d)), rel=1e-10)
        curvature = jax.jit(jax.grad(slope))(x)  # reverse over forward
        expected = (grad(x + step * d) - grad(x - step * d)) / (2 * step)
        np.testing.assert_allclose(curvature, expected, rtol=1e-5, atol=1e-7)


def test_a_large_mean_does_not_bury_a_small_variance():
    """Squares of 1000 leave float32 a hundredth of a variance of one."""
    x = jnp.asarray(1000 + X / 10)
    y = GroupNorm(C, 3, eps=0.0)(x)
    expected = reference(np.asarray(x), 3, False, np.ones(C), np.zeros(C))
    np.testing.assert_allclose(y, expected, atol=2e-3)


def test_moments_are_float32_whatever_the_activations_are():
    x = jnp.full((1, 2, 4, 1), 300.0, jnp.bfloat16).at[0, 0, 0].set(304.0)
    y = GroupNorm(1, 1, eps=0.0)(x)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == pytest.approx(7**0.5, rel=0.01)


def test_images_are_normalised_one_by_one():
    norm = group_norm(3)
    np.testing.assert_allclose(norm(jnp.asarray(X[1:2])), norm(jnp.asarray(X))[1:2], atol=1e-6)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"got 5 and 12\. Choose from 1, 2, 3, 4, 6, 12"):
        GroupNorm(12, 5, eps=EPS)
