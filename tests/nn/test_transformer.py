"""The block as an encoder's and as DiT's; what it is as a language model's, tests/models says."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.transformer import Block, Surroundings, apply_layers, make_layers
from genai_jax.paths import map_named, named_leaves

B, T, D, N = 2, 7, 8, 2
DIT = TransformerConfig(
    num_layers=2,
    embed_dim=D,
    num_heads=N,
    mlp_dim=12,
    causal=False,
    modulated=True,
    norm="layer",
    positions="none",
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
)
ENCODER = dataclasses.replace(DIT, modulated=False, norm_bias=True)
# The first row is full; the second ends with two tokens of padding.
SEGMENTS = jnp.array([[1] * T, [1] * (T - 2) + [0] * 2])


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, VECTOR, WEIGHTS = normal(0, (B, T, D)), normal(1, (B, D)), normal(2, (B, T, D))


def filled(make):
    """Build what `make` makes of a key, with numbers in every parameter, zeros and ones too."""
    shapes = jax.eval_shape(make, jax.random.key(0))
    return map_named(lambda name, x: 0.4 * normal(zlib.crc32(name.encode()), x.shape), shapes)


def some_layers(config):
    return filled(lambda key: make_layers(config, key))


@functools.partial(jax.jit, static_argnums=0)
def run(config, stack, x, segments, vector):
    return apply_layers(config, stack, x, Surroundings({}, segments, vector=vector))[0]


def reference(numbers, segments):
    """The definition of a modulated block (DiT, figure 3), in float64, one head at a time."""

    def linear(name, x):
        return np.tensordot(x, numbers[f"{name}/kernel"], 1) + numbers[f"{name}/bias"]

    def norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + DIT.norm_eps)

    x, vector = numbers["x"], numbers["vector"]
    said = linear("modulation/linear", vector / (1 + np.exp(-vector)))[:, :, :, None]
    (shift_a, scale_a, gate_a), (shift_m, scale_m, gate_m) = np.moveaxis(said, 0, 2)

    read = norm(x) * (1 + scale_a) + shift_a
    query, key, value = (linear(f"attention/{name}", read) for name in ("query", "key", "value"))
    out = np.zeros(x.shape)
    for b, n in np.ndindex(B, N):
        logits = query[b, :, n] @ key[b, :, n].T / np.sqrt(D // N)
        logits = np.where(segments[b][:, None] == segments[b], logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ value[b, :, n]
        out[b] += mixed @ numbers["attention/output/kernel"][n]
    x = x + gate_a * (out + numbers["attention/output/bias"])

    inner = linear("mlp/up", norm(x) * (1 + scale_m) + shift_m)
    inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return x + gate_m * linear("mlp/down", inner)


@pytest.mark.parametrize("attention", ["dense", "blocked"])
def test_a_modulated_block_is_its_definition_in_values_and_gradients(attention):
    config = dataclasses.replace(DIT, attention=attention)
    block = filled(lambda key: Block(config, key))

    def loss(block, x, vector):
        out, _ = block(x, "global", Surroundings({}, SEGMENTS, vector=vector), 0)
        return jnp.sum(out * WEIGHTS), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(block, X, VECTOR)
    numbers = dict(named_leaves(block)) | {"x": X, "vector": VECTOR}
    numbers = {name: np.asarray(x, np.float64) for name, x in numbers.items()}
    segments = np.asarray(SEGMENTS)
    np.testing.assert_allclose(out, reference(numbers, segments), atol=2e-5)

    slopes = dict(named_leaves(gradients[0])) | {"x": gradients[1], "vector": gradients[2]}
    assert slopes.keys() == numbers.keys()
    for seed, (name, slope) in enumerate(slopes.items()):
        direction, step = np.asarray(normal(10 + seed, slope.shape), np.float64), 1e-6
        high, low = (
            reference(numbers | {name: numbers[name] + sign * step * direction}, segments)
            for sign in (1, -1)
        )
        expected = np.sum((high - low) * np.asarray(WEIGHTS, np.float64)) / (2 * step)
        # The keys' bias moves all logits of a query alike: no slope at all.
        assert np.vdot(slope, direction) == pytest.approx(expected, rel=2e-4, abs=2e-4), name


def test_modulated_layers_begin_as_the_identity():
    config = dataclasses.replace(DIT, layers="scanned", post_norms=True)
    # Another generator than the usual one, since its program compiles three times as fast.
    stack = make_layers(config, jax.random.key(0, impl="unsafe_rbg"))
    assert not any("norm" in name for name, _ in named_leaves(stack))  # they have no parameters
    np.testing.assert_array_equal(run(config, stack, X, SEGMENTS, VECTOR), X)


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_layer_hides_the_future(causal):
    config = dataclasses.replace(ENCODER, causal=causal)
    stack = some_layers(config)
    gradient = jax.grad(lambda x: jnp.sum(run(config, stack, x, None, None)[:, 2] ** 2))(X)
    seen = np.any(np.asarray(gradient) != 0, axis=(0, 2))
    np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(3 if causal else T))


@pytest.mark.parametrize("attention", ["dense", "blocked"])
def test_padding_is_invisible_in_values_and_gradients(attention):
    config = dataclasses.replace(ENCODER, attention=attention)
    stack = some_layers(config)
    real = T - 2

    def loss(stack, x, segments):
        out = run(config, stack, x, segments, None)[:, :real]
        return jnp.sum(jnp.sin(out)), out

    slopes = jax.grad(loss, (0, 1), has_aux=True)
    (weights_with, tokens_with), with_padding = slopes(stack, X[1:], SEGMENTS[1:])
    (weights_without, tokens_without), without = slopes(stack, X[1:, :real], None)
    np.testing.assert_allclose(with_padding, without, atol=1e-5)
    np.testing.assert_array_equal(tokens_with[:, real:], 0)
    np.testing.assert_allclose(tokens_with[:, :real], tokens_without, atol=1e-5)
    for (name, a), (_, b) in zip(
        named_leaves(weights_with), named_leaves(weights_without), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_rows_are_steered_by_their_own_vector():
    stack = some_layers(DIT)
    changed = run(DIT, stack, X, None, VECTOR) != run(DIT, stack, X, None, VECTOR.at[1].add(1))
    np.testing.assert_array_equal(np.any(np.asarray(changed), axis=(1, 2)), [False, True])


def test_what_is_computed_again_is_not_kept_and_the_same():
    """Dropout and steering too; memory by the compiler's analysis, of wide layers."""
    slopes, held = {}, {}
    for remat in ("none", "full"):
        config = dataclasses.replace(DIT, remat=remat, dropout=0.3, mlp_dim=512, num_layers=4)
        stack = some_layers(config)

        def loss(stack, x, vector, config=config):
            keys = jax.random.split(jax.random.key(1), B)
            around = Surroundings({}, SEGMENTS, vector=vector, dropout_keys=keys)
            return jnp.sum(jnp.sin(apply_layers(config, stack, x, around)[0]))

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(stack, X, VECTOR).compile()
        slopes[remat] = compiled(stack, X, VECTOR)
        held[remat] = compiled.memory_analysis().temp_size_in_bytes
    for (name, a), b in zip(
        named_leaves(slopes["full"]), jax.tree.leaves(slopes["none"]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    assert held["full"] < 0.6 * held["none"]
