"""Heads of one number: what a reward model says of a text, and what a critic begins with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.heads import ScalarModel, rescaled
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=50, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, max_length=16, init_std=0.3
)


@pytest.fixture(scope="module")
def model():
    return ScalarModel(LanguageModel(CONFIG, jax.random.key(0)), jax.random.key(1))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    lengths = np.array([1, 5, 16, 9], np.int32)
    return jnp.asarray(rng.integers(0, 50, (4, 16)), jnp.int32), jnp.asarray(lengths)


def test_a_text_is_read_at_its_last_token_whatever_stands_behind_it(model, rows):
    tokens, lengths = rows
    read = jax.jit(lambda model, tokens, lengths: model.at_end(tokens, lengths))
    found = read(model, tokens, lengths)
    padded = jnp.where(jnp.arange(16) < lengths[:, None], tokens, 0)
    # To the last bit: causal attention gives what is behind a weight of zero.
    np.testing.assert_array_equal(found, read(model, padded, lengths))
    for row, length in enumerate(lengths.tolist()):
        alone = model(tokens[row : row + 1, :length])
        np.testing.assert_allclose(found[row], alone[0, -1], rtol=1e-5, atol=1e-6)
    earlier = read(model, tokens, jnp.maximum(lengths - 1, 1))
    assert ((found != earlier) == (lengths > 1)).all()


def test_padding_of_any_number_changes_nothing(model, rows):
    tokens, lengths = rows
    wide = jnp.concatenate([tokens[:2, :9], jnp.full((2, 3), 7)], axis=1)
    found = model.at_end(wide, lengths[:2])
    np.testing.assert_allclose(found, model.at_end(tokens[:2], lengths[:2]), rtol=1e-5, atol=1e-6)


def test_numbers_are_the_head_on_what_the_language_model_has_understood(model, rows):
    hidden = np.asarray(model.trunk.hidden(rows[0]), np.float64)
    kernel, bias = (np.asarray(x[...], np.float64) for x in (model.score.kernel, model.score.bias))
    wanted = hidden @ kernel.reshape(16, 1) + bias
    np.testing.assert_allclose(model(rows[0]), wanted[..., 0], rtol=1e-4, atol=1e-5)


def test_a_reward_model_s_head_is_as_wide_as_it_should_be_and_a_critic_s_says_zero(rows):
    trunk = LanguageModel(CONFIG, jax.random.key(0))
    drawn = jax.vmap(lambda key: ScalarModel(trunk, key).score.kernel[...])(
        jax.random.split(jax.random.key(2), 400)
    )
    assert np.std(drawn) == pytest.approx(17**-0.5, rel=0.03)
    critic = ScalarModel(trunk, jax.random.key(1), init_std=0.0)
    assert not critic(rows[0]).any()


def test_a_running_total_adds_what_each_token_is_worth(model, rows):
    tokens, lengths = rows
    running = ScalarModel(model.trunk, jax.random.key(1), reading="running")
    running = rescaled(running, 1.0, 0.5)  # a bias counts once
    worth = np.asarray(rescaled(model, 1.0, 0.0)(tokens), np.float64)  # the same head, no bias
    wanted = worth.cumsum(1) / 8 + 0.5
    np.testing.assert_allclose(running(tokens), wanted, rtol=1e-4, atol=1e-5)
    at_end = wanted[np.arange(4), np.asarray(lengths) - 1]
    np.testing.assert_allclose(running.at_end(tokens, lengths), at_end, rtol=1e-4, atol=1e-5)
    twice = rescaled(running, 2.0, -1.0)
    np.testing.assert_allclose(twice(tokens), 2 * wanted - 1, rtol=1e-4, atol=1e-5)


def test_answers_to_one_prompt_begin_their_running_totals_alike(model, rows):
    """So that a difference of rewards is one of the answers' own tokens."""
    running = ScalarModel(model.trunk, jax.random.key(1), reading="running")
    pair = jnp.concatenate([rows[0][2:3], rows[0][2:3].at[:, 6:].set(3)])
    one, other = np.asarray(running(pair))
    np.testing.assert_array_equal(one[:6], other[:6])
    assert (one[6:] != other[6:]).all()


def test_a_running_total_of_packed_texts_is_refused(model, rows):
    running = ScalarModel(model.trunk, jax.random.key(1), reading="running")
    with pytest.raises(ValueError, match="must be of one text a row; got packed rows"):
        running(rows[0], segment_ids=jnp.ones_like(rows[0]))


def test_a_rescaled_model_says_other_numbers_and_leaves_the_first_as_it_was(model, rows):
    before = np.asarray(model(rows[0]))
    found = rescaled(rescaled(model, 2.0, -1.0), 0.5, 3.0)
    np.testing.assert_allclose(found(rows[0]), before + 2.5, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(model(rows[0]), before)
    assert jnp.isfinite(found(rows[0])).all()
