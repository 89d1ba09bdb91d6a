import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from genai_jax.decoding.sampling import SamplingConfig, kept_tokens, sample_tokens, settings_of

VOCABULARY = 16


def reference_kept(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """By sorting, in float64: top-k with its ties, then the smallest nucleus with its ties."""
    logits = logits.astype(np.float64)
    kept = np.ones(len(logits), bool)
    if top_k:
        kept = logits >= np.sort(logits)[-min(top_k, len(logits))]
    if top_p < 1:
        p = np.where(kept, np.exp(logits - logits.max()), 0)
        p /= p.sum()
        mass = {x: p[logits >= x].sum() for x in logits}
        threshold = max(x for x in logits if mass[x] >= top_p - 1e-12)
        kept &= logits >= threshold
    return kept


kept = jax.jit(kept_tokens)
draw = jax.jit(sample_tokens)


@given(
    hnp.arrays(np.int8, VOCABULARY, elements=st.integers(-20, 20)),
    st.integers(0, VOCABULARY + 2),
    st.sampled_from([0.05, 0.3, 0.62, 0.9, 1.0]),
)
def test_filters_keep_what_sorting_keeps(levels, top_k, top_p):
    logits = levels.astype(np.float32) / 4
    settings = settings_of([SamplingConfig(1.0, top_k, top_p)])
    actual = np.asarray(kept(jnp.asarray(logits)[None], settings))[0]
    np.testing.assert_array_equal(actual, reference_kept(logits, top_k, top_p))


def test_rows_have_settings_of_their_own():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1])), (4, 1))
    configs = [
        SamplingConfig(),
        SamplingConfig(top_k=1),
        SamplingConfig(top_p=0.7),
        SamplingConfig(top_k=3, top_p=0.9),
    ]
    # After top-k 3 the probabilities are 5/9, 2.5/9, 1.5/9: 0.9 needs all three.
    expected = [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(kept(logits, settings_of(configs)), np.array(expected, bool))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), [0.5, 0.25, 0.15, 0.1, 0.0]),
        # Probabilities to the power 1 / 0.5, normalised.
        (SamplingConfig(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.01, 0.0]) / 0.345),
        (SamplingConfig(top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (SamplingConfig(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0, 0]),
        (SamplingConfig(temperature=0.0), [1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(config, expected):
    draws = 20_000
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1, 0.0])), (draws, 1))
    tokens = draw(logits, jax.random.split(jax.random.key(1), draws), settings_of([config] * draws))
    frequency = np.bincount(tokens, minlength=5) / draws
    deviation = np.sqrt(np.array(expected) * (1 - np.array(expected)) / draws)
    assert np.all(np.abs(frequency - expected) <= 4.5 * deviation + 1e-12)


def test_greedy_takes_the_likeliest_of_many_and_never_minus_infinity():
    logits = jax.random.normal(jax.random.key(0), (3, 1000)).at[:, 17].set(-jnp.inf)
    keys = jax.random.split(jax.random.key(1), 3)
    greedy = draw(logits, keys, settings_of([SamplingConfig(0.0)] * 3))
    np.testing.assert_array_equal(greedy, np.argmax(logits, -1))


def test_extreme_uniform_numbers_stay_inside_of_the_vocabulary():
    # All mass on the first token: no rounding of the cumulative sum may reach past the last one.
    logits = jnp.full((64, 50_000), -30.0).at[:, 0].set(0.0)
    tokens = draw(
        logits, jax.random.split(jax.random.key(3), 64), settings_of([SamplingConfig()] * 64)
    )
    assert int(tokens.max()) < 50_000 and int(jnp.sum(tokens == 0)) >= 63


@pytest.mark.parametrize(
    "options", [{"temperature": -0.1}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_meaningless_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        SamplingConfig(**options)
