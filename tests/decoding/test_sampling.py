import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.sampling import SamplingConfig, draw_tokens, settings_of


def draw(logits, keys, configs):
    settings = settings_of(configs, logits.shape[-1])
    return jitted(logits, keys, settings.temperature, settings.filters)


jitted = jax.jit(draw_tokens)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), [0.5, 0.25, 0.15, 0.1, 0.0]),
        # Probabilities to the power 1 / 0.5, normalised.
        (SamplingConfig(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.01, 0.0]) / 0.345),
        (SamplingConfig(top_k=2), [2 / 3, 1 / 3, 0, 0, 0]),
        (SamplingConfig(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0, 0]),
        (SamplingConfig(temperature=0.0), [1, 0, 0, 0, 0]),
        (SamplingConfig(min_p=0.4), [2 / 3, 1 / 3, 0, 0, 0]),
        (SamplingConfig(typical_p=0.2), [0, 1, 0, 0, 0]),
        # The temperature comes first: at 0.5 the likeliest has 0.72 already.
        (SamplingConfig(temperature=0.5, top_p=0.7), [1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(config, expected):
    draws = 20_000
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1, 0.0])), (draws, 1))
    tokens, log_probs = draw(logits, jax.random.split(jax.random.key(1), draws), [config] * draws)
    np.testing.assert_allclose(log_probs, np.log(np.array(expected)[tokens]), atol=1e-5)
    frequency = np.bincount(tokens, minlength=5) / draws
    deviation = np.sqrt(np.array(expected) * (1 - np.array(expected)) / draws)
    assert np.all(np.abs(frequency - expected) <= 4.5 * deviation + 1e-12)


def test_greedy_takes_the_likeliest_of_many_and_never_minus_infinity():
    logits = jax.random.normal(jax.random.key(0), (3, 1000)).at[:, 17].set(-jnp.inf)
    keys = jax.random.split(jax.random.key(1), 3)
    greedy = draw(logits, keys, [SamplingConfig(0.0)] * 3).tokens
    np.testing.assert_array_equal(greedy, np.argmax(logits, -1))


def test_extreme_uniform_numbers_stay_inside_of_the_vocabulary():
    # All mass on the first token: no rounding of the cumulative sum may reach past the last one.
    logits = jnp.full((64, 50_000), -30.0).at[:, 0].set(0.0)
    tokens, _ = draw(logits, jax.random.split(jax.random.key(3), 64), [SamplingConfig()] * 64)
    assert int(tokens.max()) < 50_000 and int(jnp.sum(tokens == 0)) >= 63


def test_what_is_excluded_is_not_drawn_where_sums_are_rounded(monkeypatch):
    """At real sizes of vocabularies a cumulative sum rises where nothing is added, and falls."""
    numbers = np.random.default_rng(0)
    logits = (3 * numbers.normal(size=(1, 50_257))).astype(np.float32)
    logits[:, numbers.permutation(50_257)[:25_000]] = -np.inf
    p = jax.nn.softmax(logits)
    cumulative = np.asarray(jax.jit(lambda p: jnp.cumsum(p, axis=-1))(p))[0]
    highest = np.maximum.accumulate(cumulative)
    rises = np.flatnonzero((np.diff(highest) > 0) & (np.asarray(p)[0, 1:] == 0)) + 1
    assert len(rises) > 3  # each of them is drawn by a number just below it
    for place in rises[:50]:
        uniform = np.nextafter(cumulative[place], 0, dtype=np.float32) / cumulative[-1]
        monkeypatch.setattr(jax.random, "uniform", lambda key, u=uniform: jnp.float32(u))
        settings = settings_of([SamplingConfig()], 50_257)
        key = jax.random.split(jax.random.key(0), 1)
        token, log_prob = draw_tokens(
            jnp.asarray(logits), key, settings.temperature, settings.filters
        )
        assert np.isfinite(log_prob[0]) and np.isfinite(logits[0, int(token[0])])


def test_no_setting_is_too_small_to_leave_a_token():
    logits = jnp.array([[1.0, 40.0, 3.0, -jnp.inf]])
    keys = jax.random.split(jax.random.key(0), 1)
    for config in (
        SamplingConfig(temperature=1e-37),
        SamplingConfig(temperature=1e-45),
        SamplingConfig(top_p=1e-50),
        SamplingConfig(typical_p=1e-50),
        SamplingConfig(min_p=1.0),
        SamplingConfig(top_k=2**31 - 1, temperature=1e-20),
        SamplingConfig(temperature=1e-37, logit_bias={2: 1e6}),
    ):
        bias = settings_of([config], 4).adjustments.bias
        token, log_prob = draw(logits + bias, keys, [config])
        assert int(token[0]) == (2 if config.logit_bias else 1) and float(log_prob[0]) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e7},
        {"temperature": 1e300},
        {"repetition_penalty": 1e-46},
        {"presence_penalty": 3e38},
        {"logit_bias": {0: -1e39}},
        {"top_k": 2**31},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"min_tokens": -1},
        {"logit_bias": {3: float("nan")}},
        {"logit_bias": {3: float("inf")}},
        {"forced": (1,) * 65},
    ],
)
def test_meaningless_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must"):
        SamplingConfig(**options)


def test_ids_must_be_of_the_vocabulary_and_not_contradict_each_other():
    with pytest.raises(ValueError, match=r"both `forced` and `forbidden`; got \[2\]"):
        SamplingConfig(forced=(1, 2), forbidden=(2, 3))
    for options in ({"forced": (9,)}, {"forbidden": (-1,)}, {"logit_bias": {9: 1.0}}):
        with pytest.raises(ValueError, match="from 0 to 8"):
            settings_of([SamplingConfig(**options)], 9)
