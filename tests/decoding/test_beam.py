import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.beam import beam_search
from genai_jax.decoding.generate import generate
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

V, N = 8, 4
CONFIG = TransformerConfig(
    vocab_size=V, num_layers=2, embed_dim=16, num_heads=2, max_length=128, init_std=0.5
)
PROMPT = [1, 5, 2]


@pytest.fixture(scope="module", params=["unrolled", "scanned"])
def model(request):
    config = dataclasses.replace(CONFIG, layers=request.param, window=3)
    config = dataclasses.replace(config, layer_pattern=("global", "sliding"))
    return LanguageModel(config, jax.random.key(1))


def score_all(model, stop, length_penalty):
    """Every text of at most N tokens that ends as it may, and its score, from the whole rows."""
    texts = np.array(list(itertools.product(range(V), repeat=N)))
    rows = jnp.asarray(np.concatenate([np.tile(PROMPT, (len(texts), 1)), texts], axis=1))
    log_probs = np.asarray(jax.jit(lambda m, t: jax.nn.log_softmax(m(t)))(model, rows), np.float64)
    scores = {}
    for row, text in zip(log_probs, texts, strict=True):
        places = np.flatnonzero(text == stop)
        length = places[0] + 1 if len(places) else N
        steps = row[np.arange(length) + len(PROMPT) - 1, text[:length]]
        scores[tuple(text[:length].tolist())] = steps.sum() / length**length_penalty
    return sorted(scores.items(), key=lambda item: -item[1])


def test_enough_beams_find_the_best_of_all_texts(model):
    """Four beams of eight ids keep what an exhaustive search of 4,096 texts puts first."""
    for penalty in (0.0, 1.0):
        best = score_all(model, 3, penalty)[0]
        found = beam_search(
            model, PROMPT, beams=4, max_tokens=N, stop_ids=[3], length_penalty=penalty
        )
        assert tuple(found[0].tokens.tolist()) == best[0]
        assert found[0].score == pytest.approx(best[1], abs=1e-5)
        assert [x.score for x in found] == sorted((x.score for x in found), reverse=True)


def test_beams_that_go_on_are_found_behind_all_that_end():
    """Three ways to end are likelier than the second beam that goes on."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Table:
        logits_of: jax.Array

        @property
        def config(self):
            return dataclasses.replace(CONFIG, vocab_size=5)

        def init_cache(self, rows, slots, *, reach=1, quantized=False):
            return jnp.zeros((rows, slots))

        def decode(self, tokens, cache, positions, lengths=None):
            return self.logits_of[tokens], cache

        def logits(self, hidden):
            return hidden

    tiny = 1e-6
    table = np.full((5, 5), tiny, np.float32)
    table[1] = [0.4, 0.3, 0.15, 0.1, 0.05]  # of what follows the prompt
    table[0, 0] = table[4, 1] = 1.0
    found = beam_search(
        Table(jnp.log(jnp.asarray(table))),
        [1],
        beams=2,
        max_tokens=3,
        stop_ids=[1, 2, 3],
        length_penalty=3.0,
    )
    assert [text.tokens.tolist() for text in found] == [[0, 0, 0], [4, 1]]
    expected = [np.log(0.4) / 27, np.log(0.05) / 8]
    np.testing.assert_allclose([text.score for text in found], expected, atol=1e-4)


def test_every_score_is_that_of_its_text(model):
    every = dict(score_all(model, 3, 1.0))
    for text in beam_search(model, PROMPT, beams=4, max_tokens=N, stop_ids=[3]):
        assert text.score == pytest.approx(every[tuple(text.tokens.tolist())], abs=1e-5)


def test_a_long_prompt_is_read_in_parts(model):
    """No beam search is worse than greedy decoding, which is the search of one beam."""
    prompt = np.random.default_rng(0).integers(0, V, 90).tolist()
    (greedy,) = generate(model, [prompt], SamplingConfig(0.0), max_tokens=6)
    best = beam_search(model, prompt, beams=4, max_tokens=6, length_penalty=0.0)[0]
    row = jnp.asarray([[*prompt, *best.tokens.tolist()]])
    log_probs = np.asarray(jax.nn.log_softmax(model(row)))[0]
    expected = log_probs[np.arange(89, 95), best.tokens].sum()
    assert best.score == pytest.approx(expected, abs=1e-4)
    assert best.score >= greedy.log_probs.sum() - 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 1}, "`beams` must be from 2 to half of the 8 ids; got 1"),
        ({"beams": 5}, "got 5"),
        ({"max_tokens": 126}, "context of 128 tokens; got 3 and up to 126"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"prompt": []}, "at least one token"),
        ({"vocab_size": 9}, "`vocab_size` must be from 1 to 8; got 9"),
        ({"length_penalty": float("nan")}, "`length_penalty` must be a number"),
    ],
)
def test_searches_that_cannot_be_are_refused(options, message):
    model = LanguageModel(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        beam_search(model, **{"prompt": PROMPT, "beams": 2, "max_tokens": 3} | options)
