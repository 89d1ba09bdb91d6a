import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genai_jax.decoding.filters import Filters, kept_tokens

VOCABULARY = 16
PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def filters(*rows):
    def each(name, dtype=np.float32):
        return np.array([(PLAIN | row)[name] for row in rows], dtype)

    return Filters(each("top_k", np.int32), each("top_p"), each("min_p"), each("typical_p"))


def softmax(logits, kept):
    p = np.where(kept, np.exp(logits - logits[kept].max()), 0)
    return p / p.sum()


def fewest(scores, mass, enough):
    """By trying every threshold: the highest that leaves enough, with its ties."""
    levels = [x for x in scores if np.sum(mass[scores >= x]) >= enough - 1e-12]
    return scores >= max(levels)


def reference_kept(logits, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0):
    """By sorting, in float64, filter after filter."""
    logits = logits.astype(np.float64)
    kept = np.ones(len(logits), bool)
    if top_k:
        kept &= logits >= np.sort(logits)[-min(top_k, len(logits))]
    if top_p < 1:
        kept &= fewest(logits, softmax(logits, kept), top_p)
    if min_p > 0:
        p = softmax(logits, kept)
        kept &= p >= min_p * p.max() * (1 - 1e-9)
    if typical_p < 1:
        p = softmax(logits, kept)
        surprise = -np.log(np.where(kept, p, 1))
        nearness = np.where(kept, -np.abs(surprise - np.sum(p * surprise)), -np.inf)
        kept &= fewest(nearness, p, typical_p)
    return kept


keep = jax.jit(kept_tokens)
# Quarters are exact in float32, and so are ties.
LEVELS = hnp.arrays(np.int8, VOCABULARY, elements=st.integers(-20, 20))


@given(
    LEVELS,
    st.integers(0, VOCABULARY + 2),
    st.sampled_from([0.05, 0.3, 0.62, 0.9, 1.0]),
    st.sampled_from([0.0, 0.03, 0.21, 0.77]),
)
def test_filters_keep_what_sorting_keeps(levels, top_k, top_p, min_p):
    logits = levels.astype(np.float32) / 4
    row = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    actual = np.asarray(keep(jnp.asarray(logits)[None], filters(row)))[0]
    np.testing.assert_array_equal(actual, reference_kept(logits, **row))
    assert actual[logits.argmax()]


@given(hnp.arrays(np.float32, VOCABULARY, elements=st.floats(-5, 5, width=32)), st.integers(0, 9))
def test_typical_tokens_are_those_nearest_to_what_is_expected(logits, seed):
    logits = logits + np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32)
    for row in ({"typical_p": 0.3}, {"typical_p": 0.8}, {"typical_p": 0.6, "top_k": 9}):
        actual = np.asarray(keep(jnp.asarray(logits)[None], filters(row)))[0]
        np.testing.assert_array_equal(actual, reference_kept(logits, **row))
        assert actual.any()


def test_rows_have_filters_of_their_own():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1])), (6, 1))
    rows = [
        {},
        {"top_k": 1},
        {"top_p": 0.7},
        {"top_k": 3, "top_p": 0.9},
        {"min_p": 0.29},
        {"typical_p": 0.2},
    ]
    # After top-k 3 the probabilities are 5/9, 2.5/9, 1.5/9: 0.9 needs all three. Surprises are
    # 0.69, 1.39, 1.90, 2.30 nats where 1.21 are expected: the second is the most typical.
    expected = [
        [1, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 1, 0, 0],
    ]
    np.testing.assert_array_equal(keep(logits, filters(*rows)), np.array(expected, bool))


def test_what_cannot_be_drawn_is_never_kept_by_a_filter():
    logits = jnp.array([[0.0, -jnp.inf, 1.0, -jnp.inf]] * 4)
    rows = [{"top_k": 4}, {"top_p": 0.999999}, {"min_p": 1e-6}, {"typical_p": 0.999999}]
    kept = np.asarray(keep(logits, filters(*rows)))
    assert not kept[1:, [1, 3]].any() and kept[:, 2].all()
