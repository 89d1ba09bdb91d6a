"""Likelihood token by token, beside float64 and what must not matter."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.evaluation.scoring import (
    Query,
    _score_batch,
    _windows,
    score_texts,
    score_tokens,
)
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.objectives.token_log_probs import token_scores

V, LENGTH = 260, 48
CONFIG = TransformerConfig(
    vocab_size=V,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    max_length=LENGTH,
    init_std=0.5,
    final_softcap=20.0,
)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, jax.random.key(0))


def draw(count, seed=0):
    return np.random.default_rng(seed).integers(0, V, count).astype(np.int32)


LOGITS = jax.jit(lambda model, tokens: model(tokens))


def reference(model, ids):
    """Log-probabilities and ranks of all but the first id, in float64, from the logits."""
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(ids) - 1] = ids[:-1]
    logits = np.asarray(LOGITS(model, padded))[0, : len(ids) - 1].astype(np.float64)
    top = logits.max(-1)
    log_z = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    own = logits[np.arange(len(ids) - 1), ids[1:]]
    return own - log_z, 1 + (logits > own[:, None]).sum(-1)


def assert_same(found, log_probs, ranks):
    np.testing.assert_allclose(found.log_probs, log_probs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.ranks, ranks, atol=1)  # two may be as likely, but for rounding


def test_a_model_that_knows_nothing_finds_all_ids_as_likely(model):
    uniform = jax.tree.map(jnp.zeros_like, model)
    (found,) = score_tokens(uniform, [Query((3,), draw(20))])
    np.testing.assert_allclose(found.log_probs, -math.log(V), rtol=1e-6)
    assert found.ranks.tolist() == [1] * 20
    (score,) = score_texts(uniform, ByteTokenizer(), ["héllo"])
    assert score.num_bytes == len(score.tokens) == 6
    assert score.log_prob == pytest.approx(-6 * math.log(V), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(math.log2(V), rel=1e-6)
    assert score.perplexity == pytest.approx(V, rel=1e-5)


@pytest.mark.parametrize("count", [1, 15, 16, 17, LENGTH])
def test_scores_are_those_of_the_logits_in_float64(model, count):
    ids = draw(count + 1)
    expected = reference(model, ids)
    (found,) = score_tokens(model, [Query((int(ids[0]),), ids[1:])])
    assert_same(found, *expected)
    (found,) = score_tokens(model, [Query((), ids)])  # nothing predicts the first
    assert_same(found, *expected)
    if count > 5:
        (found,) = score_tokens(model, [Query((int(ids[0]),), ids[1:], first=5)])
        assert_same(found, *(x[5:] for x in expected))


def test_log_probabilities_sum_to_the_training_loss(model):
    ids = draw(4 * 33).reshape(4, 33)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "loss_mask": np.ones((4, 32))}
    terms = jax.jit(next_token)(model, batch)
    found = score_tokens(model, [Query((int(row[0]),), row[1:]) for row in ids])
    assert -sum(x.log_probs.sum() for x in found) == pytest.approx(
        float(terms["loss"].sum), rel=1e-6
    )
    assert sum((x.ranks == 1).sum() for x in found) == int(terms["accuracy"].sum)


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, None])
def test_chunks_change_nothing(chunk):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((3, 8, 5)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((7, 5)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 7, (3, 8)))
    log_probs, _, ranks = token_scores(hidden, head, targets, chunk=chunk)
    logits = np.einsum("btd,vd->btv", hidden, head).astype(np.float64)
    own = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)
    np.testing.assert_allclose(
        log_probs, own[..., 0] - np.log(np.exp(logits).sum(-1)), rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(ranks, 1 + (logits > own).sum(-1))


def test_neighbours_and_padding_change_nothing(model):
    queries = [Query((1,), draw(count, seed=count), first=count // 3) for count in range(1, 70, 4)]
    together = score_tokens(model, queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = score_tokens(model, [query])
        assert len(found.ranks) == len(query.tokens) - query.first
        assert_same(found, alone.log_probs, alone.ranks)


@pytest.mark.parametrize("stride", [1, 7, 24, 47, None])
def test_windows_give_each_token_what_came_before_it(model, stride):
    """Each token from the window that ends first behind it, computed here one by one."""
    lead, tokens = 3, draw(130)
    (found,) = score_tokens(model, [Query((lead,), tokens)], stride=stride)
    room = LENGTH - 1
    ends = range(room + 1, len(tokens) + LENGTH, stride or room // 2)
    log_probs, ranks = [], []
    for place in range(len(tokens)):
        end = min(len(tokens), next(end for end in ends if end > place))
        window = np.concatenate([[lead], tokens[max(0, end - 1 - room) : end]])
        expected = reference(model, window)
        log_probs.append(expected[0][place - end])
        ranks.append(expected[1][place - end])
    assert_same(found, log_probs, ranks)


def test_windows_of_a_text_that_fits_are_the_text(model):
    query = Query((3,), draw(LENGTH))
    (full,) = score_tokens(model, [query])
    for stride in (1, 10):
        (found,) = score_tokens(model, [query], stride=stride)
        np.testing.assert_array_equal(found.log_probs, full.log_probs)
    (short,) = score_tokens(model, [query], length=16, stride=4)
    np.testing.assert_allclose(short.log_probs[:16], full.log_probs[:16], atol=1e-4)
    assert np.abs(short.log_probs[16:] - full.log_probs[16:]).max() > 1e-3


@settings(max_examples=200)
@given(st.data())
def test_every_token_is_scored_once_and_given_enough(data):
    lead = tuple(range(data.draw(st.integers(0, 3), "lead")))
    length = data.draw(st.integers(len(lead) + 1, 40), "length")
    stride = data.draw(st.integers(1, length - len(lead)), "stride")
    tokens = 100 + np.arange(data.draw(st.integers(0, 150), "tokens"), dtype=np.int32)
    query = Query(lead, tokens, data.draw(st.integers(0, len(tokens)), "first"))
    scored = []
    for window in _windows(0, query, length, stride):
        assert len(window.ids) - 1 <= length
        assert tuple(window.ids[: len(lead)]) == lead
        assert len(window.ids) > window.scored  # something predicts each
        new = window.ids[-window.scored :].tolist()
        scored += new
        context = len(window.ids) - window.scored
        assert context >= min(length - stride, len(lead) + new[0] - 100)
    assert scored == tokens[query.given :].tolist()


def test_few_programs_are_compiled(model):
    rng = np.random.default_rng(0)
    queries = [Query((1,), draw(n)) for n in rng.integers(1, 200, 150)]
    _score_batch.clear_cache()
    score_tokens(model, queries)
    # Rows of 16, 32 and 48 tokens, whole batches of each and a last one.
    assert _score_batch._cache_size() <= 6


def test_a_prompt_is_given_and_not_scored(model):
    tokenizer = ByteTokenizer()
    prompt, text = "To be", " or not"
    (whole,) = score_texts(model, tokenizer, [prompt + text])
    (found,) = score_texts(model, tokenizer, [text], prompt=prompt)
    assert found.tokens.tolist() == list(text.encode()) and found.num_bytes == len(text)
    assert_same(found, whole.log_probs[5:], whole.ranks[5:])


def test_prompt_and_text_are_encoded_as_one(model):
    tokenizer = train_tokenizer("bpe", ["the theme of these themes"] * 9, 259 + 12)
    assert len(tokenizer.encode("the")) == 1 < len(tokenizer.encode("t")) + 1
    sized = LanguageModel(
        TransformerConfig(**vars(CONFIG) | {"vocab_size": tokenizer.vocab_size}), jax.random.key(0)
    )
    (straddling,) = score_texts(sized, tokenizer, ["he"], prompt="t")
    (whole,) = score_texts(sized, tokenizer, ["the"])
    assert straddling.tokens.tolist() == whole.tokens.tolist()
    assert (straddling.num_bytes, whole.num_bytes) == (2, 3)


def test_without_documents_nothing_predicts_the_first_token(model):
    tokenizer = ByteTokenizer(end_of_text=False)
    (found,) = score_texts(model, tokenizer, ["héllo"])
    assert len(found.tokens) == found.num_bytes == 5
    assert_same(found, *reference(model, tokenizer.encode("héllo")))
    with pytest.raises(ValueError, match="that something predicts; got 'h'"):
        score_texts(model, tokenizer, ["h"])


def test_what_cannot_be_is_refused(model):
    with pytest.raises(ValueError, match="that something predicts; got ''"):
        score_texts(model, ByteTokenizer(), ["x", ""])
    with pytest.raises(ValueError, match="from 0 to 259; got 5 to 300"):
        score_tokens(model, [Query((), np.array([5, 300], np.int32))])
    with pytest.raises(ValueError, match="from 2 to the model's context, 48; got 49"):
        score_tokens(model, [], length=49)
    with pytest.raises(ValueError, match="`stride` must be from 1 to 47; got 48"):
        score_tokens(model, [Query((1,), draw(60))], stride=48)
    with pytest.raises(ValueError, match="got 2 and 2 ids that begin it"):
        score_tokens(model, [Query((1, 2), draw(60))], length=2)
    assert score_tokens(model, []) == []
    assert score_texts(model, ByteTokenizer(), []) == []
