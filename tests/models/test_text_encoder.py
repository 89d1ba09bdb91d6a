import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.text_encoder import TextEncoder
from genai_jax.nn.config import TransformerConfig
from genai_jax.paths import map_named, named_leaves

V, L, D = 11, 6, 8
CONFIG = TransformerConfig(
    vocab_size=V, num_layers=2, embed_dim=D, num_heads=2, max_length=L, causal=False
)
CAPTIONS = jnp.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [0] * L])


def filled(config):
    """Build an encoder with numbers in every parameter."""
    shapes = jax.eval_shape(lambda: TextEncoder(config, jax.random.key(0)))

    def fill(name, x):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32)

    return map_named(fill, shapes)


ENCODER = filled(CONFIG)


@jax.jit
def read(encoder, tokens):
    return encoder(tokens)


@jax.jit
def slopes(encoder, tokens):
    """Gradients of something that reads states and means."""

    def loss(encoder):
        said = encoder(tokens)
        return jnp.sum(jnp.sin(said.states)) + jnp.sum(jnp.cos(said.pooled))

    return jax.grad(loss)(encoder)


def test_masks_tell_tokens_from_padding_and_means_are_over_tokens():
    states, pooled, mask = read(ENCODER, CAPTIONS)
    np.testing.assert_array_equal(mask.sum(1), [6, 3, 1])
    for row, count in enumerate((6, 3, 1)):
        assert mask[row, :count].all()
        assert np.all(np.asarray(states[row, count:]) == 0)
        expected = np.asarray(states[row, :count], np.float64).mean(0)
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


def test_padding_is_invisible_in_values_and_gradients():
    short = CAPTIONS[1:, :3]
    states, pooled, _ = read(ENCODER, CAPTIONS[1:])
    expected = read(ENCODER, short)
    np.testing.assert_allclose(states[:, :3], expected.states, atol=1e-5)
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-5)
    for (name, a), (_, b) in zip(
        named_leaves(slopes(ENCODER, CAPTIONS[1:])),
        named_leaves(slopes(ENCODER, short)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_the_empty_caption_is_a_learned_token_that_no_other_caption_reads():
    said = read(ENCODER, CAPTIONS)
    assert all(np.isfinite(x).all() for x in said)
    np.testing.assert_allclose(said.pooled[2], said.states[2, 0], atol=1e-6)
    others = slopes(ENCODER, CAPTIONS[:2]).embedding.table[...]
    np.testing.assert_array_equal(others[0], 0)
    assert all(np.any(others[i] != 0) for i in (1, 2, 3, 4, 5, 6, 9))
    empty = slopes(ENCODER, CAPTIONS[2:])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(empty))
    np.testing.assert_array_equal(
        np.any(empty.embedding.table[...] != 0, axis=1), [True] + [False] * 10
    )


def test_every_state_hears_of_every_token_and_of_their_order():
    states = read(ENCODER, CAPTIONS[:1]).states
    for change in (CAPTIONS[:1].at[0, L - 1].set(8), CAPTIONS[:1, ::-1]):
        assert np.all(np.any(read(ENCODER, change).states != states, axis=2))


def test_learned_positions_tell_order_too():
    encoder = filled(dataclasses.replace(CONFIG, positions="learned"))
    assert encoder.position_embedding.table.shape == (L, D)
    a, b = (read(encoder, tokens).pooled for tokens in (CAPTIONS[:1], CAPTIONS[:1, ::-1]))
    assert np.max(np.abs(a - b)) > 0.01


def test_dropout_follows_the_key_of_the_row():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    encoder, keys = filled(config), jax.random.split(jax.random.key(0), 3)
    drop = jax.jit(lambda tokens, keys: encoder(tokens, keys).pooled)
    both, alone = drop(CAPTIONS[:2], keys[:2]), drop(CAPTIONS[1:2], keys[1:2])
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)
    assert np.max(np.abs(alone - drop(CAPTIONS[1:2], keys[2:]))) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "`vocab_size` must be known"),
        ({"causal": True}, "reads both ways and is not modulated; got `causal` True"),
        ({"modulated": True}, "`modulated` True"),
    ],
)
def test_what_is_no_encoder_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder(dataclasses.replace(CONFIG, **options), jax.random.key(0))


@pytest.mark.parametrize("length", [0, L + 1])
def test_captions_of_other_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"1 to `max_length` slots; got {length} and {L}"):
        ENCODER(jnp.ones((1, length), jnp.int32))
