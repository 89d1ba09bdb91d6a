import itertools

import jax
import numpy as np
import pytest

from genai_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import TextParts, prompt_tokens, stream_request, stream_text
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

TOKENIZER = ByteTokenizer()
CONFIG = TransformerConfig(
    vocab_size=257, num_layers=1, embed_dim=8, num_heads=1, max_length=128, init_std=0.3
)
TEXT = "naïve café, naïve tea: 茶 and more"


class Recital:
    """A model that recites a text, whatever it is asked: logits by position."""

    def __init__(self, text: str):
        self.config = CONFIG
        ids = [*TOKENIZER.encode(text), TOKENIZER.eot_id]
        self.table = np.full((CONFIG.max_length, CONFIG.vocab_size), -100.0, np.float32)
        self.table[np.arange(len(ids)), ids] = 100.0

    def init_cache(self, rows, slots, *, reach=1, quantized=False):
        return jax.numpy.zeros((rows, slots))

    def decode(self, tokens, cache, positions, lengths=None):
        return self.table[positions], cache

    def logits(self, hidden):
        return hidden


jax.tree_util.register_pytree_node(
    Recital,
    lambda recital: ((jax.numpy.asarray(recital.table),), None),
    lambda _, leaves: _rebuild(leaves),
)


def _rebuild(leaves):
    recital = object.__new__(Recital)
    recital.config, (recital.table,) = CONFIG, leaves
    return recital


def recite(**options) -> list[str]:
    options = {"max_tokens": 100} | options
    return list(stream_text(Recital(TEXT), TOKENIZER, "", SamplingConfig(0.0), **options))


def test_text_comes_in_parts_and_ends_with_the_document():
    parts = recite()
    assert "".join(parts) == TEXT  # characters of several bytes are never broken
    assert len(parts) > 3


@pytest.mark.parametrize("stop", [["tea"], ["é, naïve t"], ["missing", "茶"], ["n"], [TEXT[9:30]]])
def test_stop_texts_end_it_wherever_parts_are_cut(stop):
    expected = min((TEXT.split(word)[0] for word in stop), key=len)
    assert "".join(recite(stop=stop)) == expected


def test_stop_texts_do_not_depend_on_how_tokens_come():
    """The one that is whole first ends the text, whatever comes at a time."""
    text = TOKENIZER.encode("0abcdef")
    for stop, expected in ((["bcd", "c"], "0ab"), (["cd", "bcd"], "0a"), (["f", "abcde"], "0")):
        for size in range(1, 8):
            parts = TextParts(TOKENIZER, stop)
            found = "".join(
                parts.take(text[i : i + size], last=i + size >= len(text))
                for i in range(0, len(text), size)
            )
            assert found == expected and parts.ended


def test_streams_may_share_an_engine():
    engine = Engine(Recital(TEXT), vocab_size=257)
    requests = [
        Request(prompt_tokens(TOKENIZER, ""), SamplingConfig(0.0), 100, stop_ids=TOKENIZER.end_ids)
    ] * 3
    streams = [stream_request(engine, TOKENIZER, request) for request in requests]
    texts = ["", "", ""]
    for parts in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + part for text, part in zip(texts, parts, strict=True)]
    assert texts == [TEXT] * 3


def test_what_only_begins_like_a_stop_text_is_not_lost():
    assert "".join(recite(stop=["more than that"])) == TEXT


def test_a_character_that_is_cut_off_by_the_limit_is_marked():
    assert "".join(recite(max_tokens=3)) == "na\ufffd"


def test_the_same_seed_writes_the_same_text():
    model = LanguageModel(CONFIG, jax.random.key(0))

    def write(seed):
        return "".join(
            stream_text(model, TOKENIZER, "a", SamplingConfig(), max_tokens=40, seed=seed)
        )

    assert write(1) == write(1) != write(2)


def test_prompts_begin_a_document_where_there_are_documents():
    assert prompt_tokens(TOKENIZER, "ab").tolist() == [256, 97, 98]
    plain = CharacterTokenizer("\nab", end_of_text=False)
    np.testing.assert_array_equal(prompt_tokens(plain, "ab"), plain.encode("ab"))
    np.testing.assert_array_equal(prompt_tokens(plain, ""), plain.encode("\n"))


def test_empty_stop_texts_are_refused():
    with pytest.raises(ValueError, match="must not be empty"):
        recite(stop=[""])
