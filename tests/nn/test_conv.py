import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn import conv as conv_module
from genai_jax.nn.conv import Conv, resize_nearest
from genai_jax.nn.linear import ALMOST_ZERO

B, C_IN, C_OUT = 2, 3, 5
PLAIN = ("_convolve", "_convolve")
COLUMNS = ("_convolve_columns", "_convolve_columns")
THREE_PRODUCTS = ("_convolve", "_convolve_with_kernel")


def reference(x, kernel, stride):
    """Pad as TensorFlow's SAME, then add up shifted copies: float64."""
    size = kernel.shape[0]
    x = np.asarray(x, np.float64)
    out = -(-x.shape[1] // stride)
    padding = max((out - 1) * stride + size - x.shape[1], 0)
    before = padding // 2
    x = np.pad(x, ((0, 0), (before, padding - before), (before, padding - before), (0, 0)))
    y = np.zeros((len(x), out, out, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + stride * (out - 1) + 1, stride)
            columns = slice(j, j + stride * (out - 1) + 1, stride)
            y += x[:, rows, columns] @ kernel[i, j].astype(np.float64)
    return y + np.linspace(-1, 1, kernel.shape[-1])


# Size of the image, of the kernel, stride, channels in and out.
CASES = [
    (8, 3, 1, C_IN, C_OUT),
    (7, 3, 1, C_IN, C_OUT),
    (8, 3, 2, C_IN, C_OUT),
    (7, 3, 2, C_IN, C_OUT),
    (6, 1, 1, C_IN, C_OUT),
    (3, 3, 1, C_IN, 9),
    (3, 5, 1, C_IN, 10),
    (16, 3, 1, 160, 128),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request):
    image_size, size, stride, inputs, outputs = request.param
    conv = Conv(inputs, outputs, jax.random.key(0), size=size, stride=stride)
    conv.bias[...] = np.linspace(-1, 1, outputs)
    x = jax.random.normal(jax.random.key(1), (B, image_size, image_size, inputs))
    return conv, x


@pytest.mark.parametrize(
    ("case", "forms"),
    [(CASES[0], PLAIN), (CASES[5], COLUMNS), (CASES[6], COLUMNS), (CASES[7], THREE_PRODUCTS)],
    indirect=["case"],
)
def test_every_form_is_among_the_cases(case, forms):
    conv, x = case
    chosen = conv_module._fastest_forms(x.shape, conv.kernel[...].shape)
    assert tuple(form.__name__ for form in chosen) == forms


def test_convolutions_are_their_definition(case):
    conv, x = case
    expected = reference(x, np.asarray(conv.kernel[...]), conv.stride)
    np.testing.assert_allclose(conv(x), expected, atol=2e-5)
    value, _ = jax.jvp(conv, (x,), (x,))
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_gradients_are_those_of_the_definition(case):
    conv, x = case
    weights = np.asarray(jax.random.normal(jax.random.key(2), conv(x).shape), np.float64)

    def loss(conv, x):
        return jnp.sum(conv(x) * weights.astype(np.float32))

    by_conv, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(conv, x)
    np.testing.assert_allclose(by_conv.bias[...], weights.sum((0, 1, 2)), atol=1e-4)
    kernel = np.asarray(conv.kernel[...])
    for gradient, of in ((by_conv.kernel[...], "kernel"), (by_x, "x")):
        direction = np.asarray(jax.random.normal(jax.random.key(3), gradient.shape))
        # Linear in each: a difference is a derivative.
        if of == "kernel":
            moved = reference(x, kernel + direction, conv.stride)
        else:
            moved = reference(x + direction, kernel, conv.stride)
        expected = np.sum((moved - reference(x, kernel, conv.stride)) * weights)
        assert np.vdot(gradient, direction) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_derivatives_forwards_are_those_backwards_and_can_be_batched(case):
    """What is linear in an image is its own derivative: also of many directions at once."""
    conv, x = case
    bias = conv.bias[...]
    directions = jax.random.normal(jax.random.key(4), (3, *x.shape))
    y, push = jax.linearize(conv, x)
    expected = jnp.stack([conv(d) - bias for d in directions])
    np.testing.assert_allclose(jax.vmap(push)(directions), expected, atol=2e-5)
    _, pull = jax.vjp(conv, x)
    weights = jax.random.normal(jax.random.key(5), (3, *y.shape))
    by_weights = jax.vmap(pull)(weights)[0]
    for d, w, g in zip(directions, weights, by_weights, strict=True):
        assert np.vdot(g, d) == pytest.approx(np.vdot(w, push(d)), rel=1e-4, abs=1e-2)


def test_stride_two_pads_at_the_end():
    """An impulse in the first pixel is seen by no tap but the first, as in TensorFlow."""
    conv = Conv(1, 1, jax.random.key(0), stride=2)
    corner = conv(jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(1.0))
    assert corner[0, 0, 0, 0] == conv.kernel[...][0, 0, 0, 0]
    assert not corner[0, 1:].any() and not corner[0, :, 1:].any()


@pytest.mark.parametrize("scale", [1.0, ALMOST_ZERO])
def test_kernels_begin_uniform_with_the_variance_of_the_mean_fan(scale):
    kernel = Conv(64, 192, jax.random.key(0), init_scale=scale).kernel[...]
    variance = scale / (9 * (64 + 192) / 2)
    assert float(jnp.abs(kernel).max()) == pytest.approx((3 * variance) ** 0.5, rel=1e-3)
    assert float(kernel.var()) == pytest.approx(variance, rel=0.01)


def test_resizing_repeats_every_pixel():
    x = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(resize_nearest(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


def test_results_have_the_dtype_of_the_image():
    conv = Conv(C_IN, C_OUT, jax.random.key(0))
    assert conv.kernel[...].dtype == jnp.float32
    assert conv(jnp.ones((1, 4, 4, C_IN), jnp.bfloat16)).dtype == jnp.bfloat16
