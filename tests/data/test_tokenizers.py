"""Tokenizers: lossless on every text, the same every time, and plain about what they refuse."""

import re
import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genai_jax.data.corpora import read_documents
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    SubwordTokenizer,
    Tokenizer,
)

CODE = [
    document.text.decode()
    for document in read_documents("stdlib")
    if document.name in ("argparse.py", "dataclasses.py", "heapq.py", "enum.py")
]
KINDS = ("bytes", "characters", "bpe", "unigram")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(kind, [*CODE, string.printable], 700) for kind in KINDS}


AWKWARD = (
    "  leading and trailing   ",
    "\n\n\ttabs\t\tand\r\nlines\r",
    "▁ the sign \u2581\u2581 of ▁spaces▁",
    "nul \0 and \ufeff bom, \u2028 separators \x85 \x0b \x0c \u00a0 \u3000",
    "▅ unknown, <unk> <0x41> </s> <s> <|endoftext|>",
    "日本語 🙂 e\u0301 é ﬁ Å \ufffd \U0010ffff",
    " ",
    "\u2581",
    "",
)


def awkward(test):
    for text in AWKWARD:
        test = example(text)(test)
    return test


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_every_text_comes_back(tokenizers, kind):
    tokenizer = tokenizers[kind]

    @awkward
    @given(st.text(max_size=60))
    def comes_back(text):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.eot_id not in ids
        assert ids.size == 0 or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)

    comes_back()


@pytest.mark.parametrize("kind", KINDS)
def test_code_comes_back_alone_and_in_a_batch(tokenizers, kind):
    tokenizer = tokenizers[kind]
    texts = [*CODE, "", "x" * 40_000]
    batch = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        assert tokenizer.decode(ids) == text
        np.testing.assert_array_equal(tokenizer.encode(text), ids)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_is_the_same(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    assert isinstance(tokenizer, Tokenizer) and tokenizer.kind == kind
    tokenizer.save(tmp_path / "inner")
    loaded = load_tokenizer(tmp_path / "inner")
    assert loaded.digest == tokenizer.digest and re.fullmatch("[0-9a-f]{64}", loaded.digest)
    assert (loaded.vocab_size, loaded.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)
    np.testing.assert_array_equal(loaded.encode(CODE[0]), tokenizer.encode(CODE[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable_and_depends_on_the_text(tokenizers, kind):
    again = train_tokenizer(kind, iter([*CODE, string.printable]), 700)
    assert again.digest == tokenizers[kind].digest
    other = train_tokenizer(kind, [*CODE, string.printable, "Ω" * 5000], 700)
    assert (other.digest == again.digest) == (kind == "bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_text_is_an_id_without_text_or_absent(tokenizers, kind):
    tokenizer = tokenizers[kind]
    assert tokenizer.decode_bytes([tokenizer.eot_id]) == b""
    a = tokenizer.encode("a").tolist()
    assert tokenizer.decode([*a, tokenizer.eot_id, *a]) == "aa"
    assert train_tokenizer(kind, CODE, 700, end_of_text=False).eot_id is None


def test_subwords_have_the_size_asked_for_and_shorten_code(tokenizers):
    for kind, least in (("bpe", 2.0), ("unigram", 2.0)):
        tokenizer = tokenizers[kind]
        assert tokenizer.vocab_size == 700
        text = CODE[0]
        assert len(text) / len(tokenizer.encode(text)) > least
        # Indentation is a piece.
        assert len(tokenizer.encode(" " * 8)) <= 2


def test_known_answers():
    characters = train_tokenizer("characters", ["hello\n", "world"], 0, end_of_text=False)
    assert isinstance(characters, CharacterTokenizer)
    assert characters.characters == "\ndehlorw"
    assert characters.encode("hello").tolist() == [3, 2, 4, 4, 5]
    assert characters.vocab_size == 8
    assert train_tokenizer("characters", ["hello\n", "world"], 0).eot_id == 8
    assert ByteTokenizer().encode("aé").tolist() == [97, 195, 169]
    assert (ByteTokenizer().vocab_size, ByteTokenizer().eot_id) == (257, 256)
    assert ByteTokenizer(end_of_text=False).vocab_size == 256
    # Half of a character has no text of its own.
    assert ByteTokenizer().decode([195]) == "\ufffd"
    assert ByteTokenizer().decode_bytes(np.array([195, 169])) == "é".encode()


def test_unknown_characters_are_named():
    characters = train_tokenizer("characters", ["abc"], 0)
    for unknown in ("é", "\U0010ffff", "`"):
        with pytest.raises(ValueError, match="one of the 3 .* got " + re.escape(repr(unknown))):
            characters.encode("ab" + unknown)


def test_long_texts_are_sampled_by_their_content(monkeypatch):
    """Only the sample is trained on, and it does not depend on the order of the documents."""
    monkeypatch.setattr(
        "genai_jax.data.tokenizer_training._TRAINING_CHARACTERS", {"bpe": 40, "unigram": 40}
    )
    monkeypatch.setattr("genai_jax.data.tokenizer_training._SENTENCE_CHARACTERS", 100)
    forward = train_tokenizer("bpe", CODE, 400)
    backward = train_tokenizer("bpe", CODE[::-1], 400)
    assert isinstance(forward, SubwordTokenizer)
    assert forward.digest == backward.digest
    assert forward.digest != train_tokenizer("bpe", CODE[:1], 400).digest


def test_refusals_say_what_would_do(tmp_path):
    with pytest.raises(ValueError, match=r"got 5000\. Choose at most (\d+)") as error:
        train_tokenizer("bpe", ["a short text"], 5000)
    most = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert train_tokenizer("bpe", ["a short text"], most).vocab_size == most
    with pytest.raises(ValueError, match=r"got 10\. Choose at least (\d+)") as error:
        train_tokenizer("unigram", CODE, 10)
    assert int(re.search(r"at least (\d+)", str(error.value))[1]) > 256
    for kind in ("characters", "bpe"):
        with pytest.raises(ValueError, match=r"[Tt]rain.* text"):
            train_tokenizer(kind, [], 300)
    with pytest.raises(FileNotFoundError, match=r"must hold tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"kind": "words"}')
    with pytest.raises(ValueError, match="got 'words'"):
        load_tokenizer(tmp_path)
