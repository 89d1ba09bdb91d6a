"""Every implementation against float64 NumPy, and what must not be seen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.attention import attend

B, N, K, H = 2, 4, 2, 8
IMPLEMENTATIONS = ("dense", "blocked")


def reference(q, k, v, *, scale, causal=True, window=None, softcap=None, segment_ids=None):
    """The definition, one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in itertools.product(range(q.shape[0]), range(q.shape[1]), range(q.shape[2])):
        seen = [
            s
            for s in range(k.shape[1])
            if (not causal or s <= t)
            and (window is None or t - s < window)
            and (segment_ids is None or segment_ids[b, s] == segment_ids[b, t])
        ]
        logits = scale * k[b, seen, n // group] @ q[b, t, n]
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max())
        out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
    return out


def inputs(length, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = ((B, length, N, H), (B, length, K, H), (B, length, K, H), (B, length, N, H))
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def segments(length):
    return jnp.cumsum(jax.random.bernoulli(jax.random.key(9), 0.1, (B, length)), 1, jnp.int32) + 1


CASES = {
    "causal": (70, {}),  # two blocks, the last one short
    "one_block": (9, {}),
    "everything": (70, {"causal": False}),
    "everything_of_a_segment": (70, {"causal": False, "segment_ids": segments(70)}),
    "window": (70, {"window": 5}),
    "window_of_one": (9, {"window": 1}),
    "softcap": (70, {"softcap": 1.5}),
    "packed": (70, {"segment_ids": segments(70)}),
    "all_at_once": (70, {"window": 20, "softcap": 2.0, "segment_ids": segments(70)}),
}


@pytest.mark.parametrize("case", CASES)
def test_implementations_agree_with_float64_and_their_gradients_with_each_other(case):
    length, options = CASES[case]
    *qkv, weights = inputs(length)
    expected = reference(*qkv, scale=0.3, **options)

    def value_and_gradients(implementation):
        def loss(q, k, v):
            out = attend(q, k, v, scale=0.3, implementation=implementation, **options)
            return jnp.sum(out * weights), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
        np.testing.assert_allclose(out, expected, atol=2e-5)
        return gradients

    dense, blocked = map(value_and_gradients, IMPLEMENTATIONS)
    for a, b in zip(dense, blocked, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_are_those_of_finite_differences(implementation):
    *qkv, weights = inputs(70)
    options = {"scale": 0.3, "softcap": 2.0, "window": 30}

    def loss(*qkv):
        return jnp.sum(attend(*qkv, implementation=implementation, **options) * weights)

    gradients = jax.grad(loss, argnums=(0, 1, 2))(*qkv)
    directions = inputs(70, seed=1)[:3]
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(gradients, directions, strict=True))
    step = 1e-6
    qkv64 = [np.asarray(x, np.float64) for x in qkv]
    ends = [
        reference(
            *(x + sign * step * np.asarray(d) for x, d in zip(qkv64, directions, strict=True)),
            **options,
        )
        for sign in (1, -1)
    ]
    expected = np.sum((ends[0] - ends[1]) * np.asarray(weights, np.float64)) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_flows_from_the_future_or_from_other_documents(implementation):
    length, t = 70, 40
    *qkv, _ = inputs(length)
    ids = jnp.broadcast_to((jnp.arange(length) >= 20).astype(jnp.int32) + 1, (B, length))

    def output_at_t(k, v):
        out = attend(qkv[0], k, v, scale=0.3, segment_ids=ids, implementation=implementation)
        return jnp.sum(out[:, t] ** 2)

    for gradient in jax.grad(output_at_t, argnums=(0, 1))(*qkv[1:]):
        seen = np.any(np.asarray(gradient) != 0, axis=(0, 2, 3))
        np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(20, t + 1))


def test_a_mask_replaces_the_rules():
    *qkv, _ = inputs(12)
    mask = jnp.tril(jnp.ones((12, 12), bool))[None]
    a = attend(*qkv, scale=0.3, attention_mask=jnp.broadcast_to(mask, (B, 12, 12)))
    np.testing.assert_allclose(a, attend(*qkv, scale=0.3), atol=1e-5)


def test_dropout_keeps_the_mean_and_follows_its_keys():
    q, k, v, _ = inputs(6)
    keys = jax.random.split(jax.random.key(0), 400)
    dropped = jax.jit(
        jax.vmap(
            lambda key: attend(
                q, k, v, scale=0.3, dropout_keys=jax.random.split(key, B), dropout_rate=0.25
            )
        )
    )(keys)
    expected = attend(q, k, v, scale=0.3)
    error = np.abs(dropped.mean(0) - expected)
    assert np.all(error <= 5 * np.asarray(dropped).std(0) / 20 + 1e-5)
    assert np.any(np.asarray(dropped[0] != dropped[1]))


def test_logits_of_long_rows_never_exist_at_once():
    q, k, v = (jax.ShapeDtypeStruct((1, 4096, heads, 8), jnp.float32) for heads in (N, K, K))

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, scale=1.0))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(q, k, v))
    assert "4096,4096" not in jaxpr
    assert "512,4096" in jaxpr  # the last block of queries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "blocked", "attention_mask": jnp.ones((B, 6, 6), bool)}, "`blocked`"),
        (
            {
                "implementation": "blocked",
                "dropout_keys": jax.random.split(jax.random.key(0), B),
                "dropout_rate": 0.1,
            },
            "does not do attention dropout",
        ),
        ({"window": 0}, "`window` is at least 1"),
        ({"window": 3, "causal": False}, "needs `causal`"),
        ({"window": 3, "attention_mask": jnp.ones((B, 6, 6), bool)}, "Fold them into the mask"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, message):
    *qkv, _ = inputs(6)
    with pytest.raises(ValueError, match=message):
        attend(*qkv, scale=1.0, **options)


def test_shapes_that_contradict_each_other_are_refused():
    q, k, v, _ = inputs(6)
    with pytest.raises(ValueError, match="multiple of the number of key heads"):
        attend(q[:, :, :3], k, v, scale=1.0)
    with pytest.raises(ValueError, match="same tokens"):
        attend(q[:, :4], k, v, scale=1.0)
