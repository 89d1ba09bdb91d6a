import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.image_attention import ImageAttention, Text

B, H, W, C, S, E = 2, 3, 4, 12, 5, 7
X = jax.random.normal(jax.random.key(0), (B, H, W, C))
MASK = jnp.arange(S) < jnp.array([[5], [2]])
TEXT = Text(jax.random.normal(jax.random.key(1), (B, S, E)), MASK)


def attention(heads=3, text_dim=0):
    made = ImageAttention(C, heads, jax.random.key(2), groups=4, eps=1e-6, text_dim=text_dim)
    # As drawn, it is nearly the identity, and its biases are zero.
    made.output.kernel[...] = jax.random.normal(jax.random.key(3), (heads, C // heads, C))
    layers = (made.query, made.key, made.value)
    for layer, bias in zip(layers, jax.random.normal(jax.random.key(4), (3, C)), strict=True):
        layer.bias[...] = bias.reshape(heads, C // heads)
    made.output.bias[...] = jnp.linspace(-1, 1, C)
    return made


def run(made, x, text=None):
    return jax.jit(lambda made, x, text: made(x, text))(made, x, text)


def reference(made, x, text=None):
    def linear(layer, rows):
        kernel, bias = (np.asarray(a[...], np.float64) for a in (layer.kernel, layer.bias))
        return np.tensordot(rows, kernel, len(layer.in_shape)) + bias

    pixels = np.asarray(made.norm(x), np.float64).reshape(B, H * W, C)
    query, key, value = (linear(m, pixels) for m in (made.query, made.key, made.value))
    seen = np.ones((B, H * W), bool)
    if text is not None:
        states = np.asarray(text.states, np.float64)
        key = np.concatenate([key, linear(made.text_key, states)], 1)
        value = np.concatenate([value, linear(made.text_value, states)], 1)
        seen = np.concatenate([seen, text.mask], 1)
    logits = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    weights = np.where(seen[:, None, None], np.exp(logits), 0)
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bnts,bsnh->btnh", weights, value)
    return np.asarray(x) + linear(made.output, mixed).reshape(x.shape)


@pytest.mark.parametrize(("heads", "text"), [(1, None), (3, None), (1, TEXT), (3, TEXT)])
def test_attention_is_its_definition(heads, text):
    made = attention(heads, E if text is not None else 0)
    np.testing.assert_allclose(run(made, X, text), reference(made, X, text), atol=1e-4)


def test_one_head_differentiates_as_any_number_of_heads():
    """Merged products have the gradients of the four projections; the keys' bias has none."""
    made = attention(1)
    weights = jax.random.normal(jax.random.key(8), X.shape)

    def longer(made, x):
        pixels = made.norm(x).reshape(B, H * W, C)
        return x + made.output(made._by_heads(pixels, None)).reshape(x.shape)

    def gradient(function):
        return jax.jit(jax.grad(lambda made, x: jnp.vdot(function(made, x), weights), (0, 1)))

    actual = gradient(lambda made, x: made(x))(made, X)
    expected = gradient(longer)(made, X)
    assert not actual[0].key.bias[...].any()
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_padding_of_a_text_is_not_read():
    made = attention(text_dim=E)
    noise = jax.random.normal(jax.random.key(5), TEXT.states.shape)
    changed = Text(jnp.where(MASK[:, :, None], TEXT.states, 100 * noise), MASK)
    np.testing.assert_allclose(run(made, X, changed), run(made, X, TEXT), atol=1e-6)


@pytest.mark.parametrize("heads", [1, 3])
def test_pixels_have_no_place(heads):
    """Attention commutes with every permutation of the pixels."""
    made, order = attention(heads), jax.random.permutation(jax.random.key(6), H * W)

    def permute(x):
        return x.reshape(B, H * W, C)[:, order].reshape(x.shape)

    np.testing.assert_allclose(run(made, permute(X)), permute(run(made, X)), atol=1e-5)


def test_it_begins_as_the_identity():
    made = ImageAttention(C, 1, jax.random.key(2), groups=4, eps=1e-6)
    np.testing.assert_allclose(run(made, X), X, atol=1e-3)


@pytest.mark.parametrize("heads", [1, 3])
def test_forward_and_reverse_mode_agree(heads):
    made, d = attention(heads), jax.random.normal(jax.random.key(7), X.shape)

    @jax.jit
    def both(made):
        y, forward = jax.jvp(made, (X,), (d,))
        reverse = jax.grad(lambda x: jnp.vdot(made(x), y))(X)
        return jnp.vdot(forward, y), jnp.vdot(reverse, d)

    forward, reverse = both(made)
    assert float(forward) == pytest.approx(float(reverse), rel=1e-3)


def test_heads_must_divide_and_a_text_needs_its_layers():
    with pytest.raises(ValueError, match="got 5 and 12"):
        ImageAttention(C, 5, jax.random.key(0), groups=4, eps=1e-6)
    with pytest.raises(ValueError, match="Build it with `text_dim`"):
        attention()(X, TEXT)
