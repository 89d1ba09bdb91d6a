import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.engine import Engine
from genai_jax.decoding.generate import generate
from genai_jax.decoding.loop import advance
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import SHARDING_RULES, LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import shardings_for

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


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_long_prompts_of_several_lengths_are_read_in_parts(layers, log_probs_of):
    """Chunks of four tokens, a window of six: each row as if it were alone and read at once."""
    config = dataclasses.replace(CONFIG, layers=layers)
    numbers = np.random.default_rng(1)
    prompts = [numbers.integers(0, 23, n).tolist() for n in (3, 1, 17, 30, 9)]
    engine = Engine(LanguageModel(config, jax.random.key(0)), rows=5, chunk=4)
    results = engine.run([Request(prompt, GREEDY, max_tokens=12) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        whole = log_probs_of([*prompt, *result.tokens.tolist()])[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(result.tokens, whole.argmax(-1))
        np.testing.assert_allclose(result.log_probs, whole.max(-1), atol=1e-4)


def test_sliding_layers_have_no_more_slots_than_their_window():
    shapes = {}
    for layers in ("unrolled", "scanned"):
        three = dataclasses.replace(CONFIG, layers=layers, num_layers=3)
        cache = LanguageModel(three, jax.random.key(0)).init_cache(5, 64)
        shapes[layers] = [leaf.shape for leaf in jax.tree.leaves(cache)]
    assert shapes["unrolled"] == [(5, 1, n, 8) for n in (6, 6, 64, 64, 6, 6)]
    stacked = [(1, 5, 1, 6, 8)] * 2 + [(1, 5, 1, 64, 8)] * 2 + [(5, 1, 6, 8)] * 2
    assert shapes["scanned"] == stacked


def test_log_probs_are_the_models_own_whatever_the_temperature(model, log_probs_of):
    (result,) = generate(model, PROMPTS[:1], SamplingConfig(3.0, top_k=9), max_tokens=20, seed=5)
    whole = log_probs_of([*PROMPTS[0], *result.tokens.tolist()])[len(PROMPTS[0]) - 1 : -1]
    expected = whole[np.arange(20), result.tokens]
    np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)


def test_a_row_does_not_depend_on_other_rows(model):
    together = generate(model, PROMPTS, WARM, max_tokens=20, seed=[7, 8, 9])
    for prompt, seed, expected in zip(PROMPTS, [7, 8, 9], together, strict=True):
        (alone,) = generate(model, [prompt], WARM, max_tokens=20, seed=seed)
        np.testing.assert_array_equal(alone.tokens, expected.tokens)


def test_stop_ids_end_a_row_and_are_its_last_token(model):
    free = generate(model, PROMPTS, WARM, max_tokens=20, seed=3)
    stop = int(free[0].tokens[4])
    stopped = generate(model, PROMPTS, WARM, max_tokens=20, seed=3, stop_ids=[stop])
    for before, after in zip(free, stopped, strict=True):
        places = np.flatnonzero(before.tokens == stop)
        length = places[0] + 1 if len(places) else 20
        np.testing.assert_array_equal(after.tokens, before.tokens[:length])
        assert after.reason == ("stop" if len(places) else "length")


def test_the_context_bounds_a_row(model):
    prompt = list(range(1, 21)) * 2  # 40 of 48
    (result,) = generate(model, [prompt], GREEDY, max_tokens=100)
    assert (len(result.tokens), result.reason, result.cut) == (8, "context", 0)


def test_a_prompt_beyond_the_context_loses_its_oldest_tokens(model):
    prompt = np.random.default_rng(0).integers(0, 23, 100).tolist()
    (result,) = generate(model, [prompt], GREEDY, max_tokens=10)
    (short,) = generate(model, [prompt[-38:]], GREEDY, max_tokens=10)
    assert result.cut == 62 and result.reason == "truncated"
    np.testing.assert_array_equal(result.tokens, short.tokens)


def test_ids_beyond_the_tokenizer_are_never_drawn(model):
    results = generate(model, [[1]] * 8, SamplingConfig(50.0), max_tokens=30, vocab_size=5)
    assert max(int(result.tokens.max()) for result in results) == 4


def test_settings_seeds_and_limits_compile_nothing(model):
    generate(model, [[1], [2]], GREEDY, max_tokens=5)
    before = advance._cache_size()
    generate(model, [[3]], WARM, max_tokens=2)  # a row of its own is two
    generate(model, [[3, 4], [5]], [SamplingConfig(0.7, 3, 0.5), WARM], max_tokens=9, seed=11)
    generate(model, [[3], [5]], WARM, max_tokens=30, stop_ids=[2, 3], vocab_size=20)
    assert advance._cache_size() == before


def test_every_control_is_traced(model):
    """Whatever is asked for: not one compilation more."""
    generate(model, [[1], [2]], GREEDY, max_tokens=5)
    before = advance._cache_size()
    full = SamplingConfig(
        0.9,
        top_k=7,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.95,
        repetition_penalty=1.3,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        logit_bias={3: 2.0},
        forbidden=(4, 5),
        forced=(6, 7),
        min_tokens=3,
    )
    options = {"max_tokens": [4, 9], "seed": [5, 2], "stop_ids": [[1, 2, 3], []], "vocab_size": 21}
    first, second = generate(model, [[1], [2]], [full, WARM], **options)
    assert advance._cache_size() == before
    assert first.tokens[:2].tolist() == [6, 7] and len(first.tokens) >= 3
    assert not {4, 5} & set(first.tokens.tolist())
    assert first.drawn_log_probs[:2].tolist() == [0, 0] and len(second.tokens) == 9
    np.testing.assert_array_equal(
        second.tokens, generate(model, [[2]], WARM, max_tokens=9, seed=2, vocab_size=21)[0].tokens
    )


def test_both_log_probs_are_those_of_their_distributions(model, log_probs_of):
    """Of the model, and of what the token was drawn from, computed again from the whole row."""
    config = SamplingConfig(1.7, top_k=6, repetition_penalty=1.4, frequency_penalty=0.3)
    (result,) = generate(model, PROMPTS[:1], config, max_tokens=20, seed=5)
    sequence = list(PROMPTS[0])
    for token, raw, drawn in zip(*result[:3], strict=True):
        expected = log_probs_of(sequence)[-1].astype(np.float64)
        assert raw == pytest.approx(expected[token], abs=1e-4)
        # A constant does not matter to the temperature, but the penalty looks at signs.
        logits = logits_of(model, sequence)
        standing = np.isin(np.arange(23), sequence)
        logits = np.where(standing, np.where(logits > 0, logits / 1.4, logits * 1.4), logits)
        logits -= 0.3 * np.bincount(sequence[3:], minlength=23)
        logits /= 1.7
        kept = logits >= np.sort(logits)[-6]
        expected = logits[token] - np.log(np.exp(logits[kept]).sum())
        assert kept[token] and drawn == pytest.approx(expected, abs=1e-3)
        sequence.append(int(token))


def logits_of(model, tokens):
    padded = np.zeros((1, CONFIG.max_length), np.int32)  # causal: what follows is not seen
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(model, padded))[0, len(tokens) - 1].astype(np.float64)


_forward = jax.jit(lambda model, tokens: model(tokens))


def test_a_penalty_of_what_was_drawn_ends_repetition(model):
    (free,) = generate(model, [[4]], GREEDY, max_tokens=20)
    (fresh,) = generate(model, [[4]], SamplingConfig(0.0, frequency_penalty=100.0), max_tokens=20)
    assert len(set(free.tokens.tolist())) < 20 == len(set(fresh.tokens.tolist()))


def test_nothing_ends_a_row_before_its_least_length(model):
    (free,) = generate(model, [[4]], WARM, max_tokens=20, seed=3)
    stop = int(free.tokens[2])
    options = {"max_tokens": 20, "seed": 3, "stop_ids": [stop]}
    (short,) = generate(model, [[4]], WARM, **options)
    (long,) = generate(model, [[4]], SamplingConfig(1.5, min_tokens=10), **options)
    assert len(short.tokens) <= 3 and len(long.tokens) >= 10
    assert stop not in long.tokens[:9].tolist()


def test_logits_that_are_no_numbers_end_their_row_and_no_other():
    """A model whose second token breaks it, in one row of three."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Broken:
        table: jax.Array

        @property
        def config(self):
            return CONFIG

        def init_cache(self, rows, slots, *, reach=1, quantized=False):
            return jnp.zeros((rows, slots))

        def decode(self, tokens, cache, positions, lengths=None):
            return self.table[tokens], cache

        def logits(self, hidden):
            return hidden

    table = np.zeros((23, 23), np.float32)
    table[1, 2] = table[2, 3] = table[5, 5] = 50.0
    table[3] = np.nan
    table[7] = -np.inf
    results = generate(Broken(jnp.asarray(table)), [[1], [5], [7]], GREEDY, max_tokens=4)
    assert [result.reason for result in results] == ["broken", "length", "broken"]
    assert [result.tokens.tolist() for result in results] == [[2, 3], [5] * 4, []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"max_tokens": [3, 3]}, "`max_tokens` must be one, or one for each prompt; got 2 for 1"),
        ({"seed": [1, 2]}, "`seed` must be one"),
        ({"stop_ids": [[1], [2]]}, "`stop_ids` must be one"),
        ({"stop_ids": [1] * 65}, "at most 64"),
        ({"sampling": SamplingConfig(min_tokens=9)}, "`min_tokens` must not exceed `max_tokens`"),
        ({"sampling": SamplingConfig(forbidden=tuple(range(23)))}, "some id must be left"),
        ({"sampling": SamplingConfig(forced=(23,))}, "from 0 to 22"),
        ({"sampling": [GREEDY, GREEDY]}, "`sampling` must be one"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, [[1]], **{"sampling": GREEDY, "max_tokens": 3} | options)


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


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_models_that_are_cut_over_devices_write_the_same(layers):
    model = LanguageModel(dataclasses.replace(CONFIG, layers=layers), jax.random.key(0))
    mesh = make_mesh(fsdp=8)
    cut = jax.device_put(model, shardings_for(model, mesh, SHARDING_RULES))
    assert len(cut.embedding.table[...].sharding.device_set) == 8
    expected = generate(model, PROMPTS, WARM, max_tokens=12, seed=2)
    for found, alone in zip(
        generate(cut, PROMPTS, WARM, max_tokens=12, seed=2), expected, strict=True
    ):
        np.testing.assert_array_equal(found.tokens, alone.tokens)
        np.testing.assert_allclose(found.log_probs, alone.log_probs, atol=1e-4)


def test_models_of_replicated_parameters_run_on_one_device(model):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
    engine = Engine(everywhere)
    engine.submit(Request([1], GREEDY, max_tokens=3))
    (result,) = engine.step().values()
    assert len(jax.tree.leaves(engine._rows.cache)[0].devices()) == 1
    assert jnp.isfinite(result.log_probs).all()
