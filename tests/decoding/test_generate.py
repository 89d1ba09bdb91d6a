import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding import generate as generate_module
from genai_jax.decoding.generate import Generation, generate
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

GREEDY, WARM = SamplingConfig(0.0), SamplingConfig(1.5)
CONFIG = TransformerConfig(
    vocab_size=23,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    max_length=48,
    init_std=0.4,
    window=6,
    layer_pattern=("sliding", "global"),
)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def log_probs_of(model):
    """Log-probabilities of every next token, from the whole sequence and without a cache."""
    forward = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))

    def compute(tokens):
        padded = np.zeros((1, CONFIG.max_length), np.int32)  # causal: what follows is not seen
        padded[0, : len(tokens)] = tokens
        return np.asarray(forward(model, padded))[0, : len(tokens)]

    return compute


def test_greedy_generation_is_the_argmax_of_the_whole_forward_pass(model, log_probs_of):
    for prompt, result in zip(
        PROMPTS, generate(model, PROMPTS, GREEDY, max_tokens=12), strict=True
    ):
        sequence = list(prompt)
        for token, log_prob in zip(result.tokens, result.log_probs, strict=True):
            expected = log_probs_of(sequence)[-1]
            assert token == expected.argmax()
            assert log_prob == pytest.approx(expected[token], abs=1e-4)
            sequence.append(int(token))
        assert len(result.tokens) == 12 and result.reason == "length"


def test_log_probs_are_the_models_own_whatever_the_temperature(model, log_probs_of):
    (result,) = generate(model, PROMPTS[:1], SamplingConfig(3.0, top_k=9), max_tokens=20, seed=5)
    whole = log_probs_of([*PROMPTS[0], *result.tokens.tolist()])[len(PROMPTS[0]) - 1 : -1]
    expected = whole[np.arange(20), result.tokens]
    np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)


def test_a_row_depends_neither_on_other_rows_nor_on_the_calls(model):
    together = generate(model, PROMPTS, WARM, max_tokens=20, seed=[7, 8, 9])
    for prompt, seed, expected in zip(PROMPTS, [7, 8, 9], together, strict=True):
        (alone,) = generate(model, [prompt], WARM, max_tokens=20, seed=seed)
        np.testing.assert_array_equal(alone.tokens, expected.tokens)
    generation = Generation(model, PROMPTS, WARM, max_tokens=20, seed=[7, 8, 9])
    parts = []
    while not generation.ended.all():
        parts.append(generation.advance(3).tokens)
    for row, expected in enumerate(together):
        np.testing.assert_array_equal(np.concatenate([p[row] for p in parts]), expected.tokens)


def test_stop_ids_end_a_row_and_are_its_last_token(model):
    free = generate(model, PROMPTS, WARM, max_tokens=20, seed=3)
    stop = int(free[0].tokens[4])
    stopped = generate(model, PROMPTS, WARM, max_tokens=20, seed=3, stop_ids=[stop])
    for before, after in zip(free, stopped, strict=True):
        places = np.flatnonzero(before.tokens == stop)
        length = places[0] + 1 if len(places) else 20
        np.testing.assert_array_equal(after.tokens, before.tokens[:length])
        assert after.reason == ("stop" if len(places) else "length")


def test_halted_rows_draw_nothing_more(model):
    generation = Generation(model, PROMPTS, WARM, max_tokens=20)
    generation.advance(4)
    chunk = generation.advance(4, halt=np.array([True, False, False]))
    assert [len(tokens) for tokens in chunk.tokens] == [0, 4, 4]
    assert chunk.ended.tolist() == [True, False, False]


def test_the_context_bounds_a_row(model):
    prompt = list(range(1, 21)) * 2  # 40 of 48
    (result,) = generate(model, [prompt], GREEDY, max_tokens=100)
    assert (len(result.tokens), result.reason, result.cut) == (8, "context", 0)


def test_a_prompt_beyond_the_context_loses_its_oldest_tokens(model):
    prompt = np.random.default_rng(0).integers(0, 23, 100).tolist()
    (result,) = generate(model, [prompt], GREEDY, max_tokens=10)
    (short,) = generate(model, [prompt[-38:]], GREEDY, max_tokens=10)
    assert result.cut == 62 and result.reason == "length"
    np.testing.assert_array_equal(result.tokens, short.tokens)


def test_ids_beyond_the_tokenizer_are_never_drawn(model):
    results = generate(model, [[1]] * 8, SamplingConfig(50.0), max_tokens=30, vocab_size=5)
    assert max(int(result.tokens.max()) for result in results) == 4


def test_settings_seeds_and_limits_compile_nothing(model):
    generate(model, [[1], [2]], GREEDY, max_tokens=5)
    before = generate_module._advance._cache_size()
    generate(model, [[3, 4], [5]], [SamplingConfig(0.7, 3, 0.5), WARM], max_tokens=9, seed=11)
    generate(model, [[3], [5]], WARM, max_tokens=30, stop_ids=[2, 3], vocab_size=20)
    assert generate_module._advance._cache_size() == before


def test_scanned_layers_generate_the_same(model):
    scanned = TransformerConfig(**(vars(CONFIG) | {"layers": "scanned"}))
    other = LanguageModel(scanned, jax.random.key(0))
    for a, b in zip(
        generate(model, PROMPTS, WARM, max_tokens=10),
        generate(other, PROMPTS, WARM, max_tokens=10),
        strict=True,
    ):
        np.testing.assert_array_equal(a.tokens, b.tokens)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[]], "at least one token"), ([[1], [23]], "from 0 to 22"), ([[-1]], "from 0 to 22")],
)
def test_bad_prompts_are_refused(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, GREEDY, max_tokens=3)


def test_check_is_called_and_may_raise(model):
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, [[1]], GREEDY, max_tokens=3, check=check)


def test_models_of_replicated_parameters_run_on_one_device(model):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
    generation = Generation(everywhere, [[1]], GREEDY, max_tokens=3)
    assert len(jax.tree.leaves(generation._progress.cache)[0].devices()) == 1
    assert jnp.isfinite(generation.advance().log_probs[0]).all()
