import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.linear import Linear, quantize_linears
from genai_jax.nn.quantized import multiply_quantized, quantize_kernel

CONFIG = TransformerConfig(
    vocab_size=61, num_layers=3, embed_dim=32, num_heads=4, max_length=16, init_std=0.2
)


def test_a_kernel_is_held_to_half_a_step_of_each_output():
    scales = 10.0 ** np.arange(-3, 3)
    kernel = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * scales
    kernel[:, 2] = 0
    whole, steps = quantize_kernel(jnp.asarray(kernel, jnp.float32), 1, 1)
    expected = np.abs(kernel).max(0) / 127
    np.testing.assert_allclose(steps, expected, rtol=1e-6)
    error = np.abs(np.asarray(whole) * np.asarray(steps) - kernel)
    assert (error <= expected * 0.5001).all() and error.max() > 0.4 * expected.max()
    assert np.abs(np.asarray(whole)).max(0).tolist() == [127, 127, 0, 127, 127, 127]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_loses_little_of_what_is_multiplied(dtype):
    """Beside float64 with the very kernel: a digit of 127 steps, and one of 254 in each."""
    numbers = np.random.default_rng(1)
    x = jnp.asarray(numbers.normal(size=(5, 300)), dtype).at[3].set(0)
    whole, steps = quantize_kernel(jnp.asarray(numbers.normal(size=(300, 7)), jnp.float32), 1, 1)
    found = multiply_quantized(x, whole, steps)
    assert found.dtype == x.dtype
    held = np.asarray(whole, np.float64) * np.asarray(steps, np.float64)
    exact = np.asarray(x, np.float64) @ held
    digit = np.abs(np.asarray(x, np.float64)).max(-1, keepdims=True) / 127 / 254
    bound = digit / 2 * np.abs(held).sum(0) * 1.01 + (
        0.004 * np.abs(exact) if dtype != "float32" else 1e-6
    )
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert (error <= bound).all() and not np.asarray(found)[3].any()


def test_axes_of_several_kinds_and_stacks_are_kept():
    linear = Linear((4, 6), (3, 5), jax.random.key(0), init_std=1.0, use_bias=True)
    x = jax.random.normal(jax.random.key(1), (2, 7, 4, 6))
    quantized = quantize_linears(linear)
    assert quantized.kernel[...].dtype == jnp.int8 and quantized.steps[...].shape == (3, 5)
    assert linear.kernel[...].dtype == jnp.float32  # a copy
    error = np.abs(np.asarray(quantized(x)) - np.asarray(linear(x)))
    assert 0 < error.max() < 0.2
    keys = jax.random.split(jax.random.key(2), 3)
    stack = jax.vmap(lambda key: Linear((8,), (5,), key, init_std=1.0))(keys)
    several = quantize_linears(stack)
    for i in range(3):
        one = quantize_linears(jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        for found, expected in zip(*map(jax.tree.leaves, (several, one)), strict=True):
            np.testing.assert_array_equal(found[i], expected)


def test_a_model_is_a_quarter_of_its_kernels_and_says_nearly_the_same():
    tokens = jax.random.randint(jax.random.key(3), (2, 16), 0, 61)
    compute = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    found = {}
    for layers in ("unrolled", "scanned"):
        model = LanguageModel(dataclasses.replace(CONFIG, layers=layers), jax.random.key(0))
        small = quantize_linears(model)
        kernels = CONFIG.num_layers * (4 * 32 * 32 + 3 * 32 * 128)
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(x)) for x in (model, small)]
        assert 3 * kernels - 4 * 1024 * 3 < sizes[0] - sizes[1] < 3 * kernels
        found[layers] = np.asarray(compute(small, tokens))
        error = np.abs(found[layers] - np.asarray(compute(model, tokens)))
        assert 1e-4 < error.max() < 0.2
        assert jax.tree.structure(quantize_linears(small)) == jax.tree.structure(small)
    np.testing.assert_allclose(found["scanned"], found["unrolled"], atol=1e-4)
