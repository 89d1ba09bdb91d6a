"""SentencePiece's files of other projects, made here as Llama 2's and Gemma's were."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from genai_jax.data.corpora import read_documents
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer, load_pretrained_tokenizer
from genai_jax.data.saved_tokenizers import load_tokenizer

TEXT = next(d.text.decode() for d in read_documents("stdlib") if d.name == "argparse.py")
SAMPLES = ("x", " x", "def f(x):\n    return 3.14", "  Größe 你好 🙂  ", "<s> </s> <unk>", "")


def train(**options):
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=model, **defaults | options
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def llama_file():
    return train()


@pytest.fixture
def folder(tmp_path, llama_file):
    (tmp_path / "tokenizer.model").write_bytes(llama_file)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    return tmp_path


def test_it_gives_sentencepiece_s_ids_and_the_text_back(folder, llama_file):
    reference = sentencepiece.SentencePieceProcessor(model_proto=llama_file)
    tokenizer = load_pretrained_tokenizer(folder)
    assert (tokenizer.begin_ids, tokenizer.end_ids, tokenizer.eot_id) == ((1,), (2,), 2)
    assert tokenizer.adds_space and tokenizer.vocab_size == 600
    for text, ids in zip(SAMPLES, tokenizer.encode_batch(SAMPLES), strict=True):
        assert ids.tolist() == reference.encode(text) == tokenizer.encode(text).tolist()
        assert tokenizer.decode(ids) == text
        assert not {1, 2} & set(ids.tolist())  # what a text says is never a control
    # In the middle of a text the space is the text's own.
    assert tokenizer.decode_bytes(tokenizer.encode("x")) == b" x"
    assert tokenizer.decode_bytes([1, 2]) == b""


def test_without_a_space_of_its_own(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train(add_dummy_prefix=False, bos_id=-1))
    tokenizer = load_pretrained_tokenizer(tmp_path)
    assert not tokenizer.adds_space and tokenizer.begin_ids == () == tokenizer.end_ids
    assert tokenizer.decode_bytes(tokenizer.encode(" x")) == b" x"


@pytest.mark.parametrize(
    ("files", "begins", "ends"),
    [
        ({"generation_config.json": {"eos_token_id": [2, 5]}}, (1,), (2, 5)),
        ({"tokenizer_config.json": {"add_bos_token": False}}, (), (2,)),
        ({"tokenizer_config.json": {"add_bos_token": True}}, (1,), (2,)),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": None}}, (1,), ()),
    ],
)
def test_what_texts_begin_and_end_with(folder, files, begins, ends):
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said))
    tokenizer = load_pretrained_tokenizer(folder)
    assert (tokenizer.begin_ids, tokenizer.end_ids) == (begins, ends)


def test_what_was_saved_is_loaded(folder, tmp_path):
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    tokenizer = load_pretrained_tokenizer(folder)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert isinstance(again, PretrainedTokenizer)
    for name in ("kind", "vocab_size", "eot_id", "begin_ids", "end_ids", "digest"):
        assert getattr(again, name) == getattr(tokenizer, name)
    np.testing.assert_array_equal(again.encode(TEXT[:500]), tokenizer.encode(TEXT[:500]))


def test_digests_differ_where_ids_do(llama_file):
    def digest(**options):
        return PretrainedTokenizer(llama_file, "sentencepiece", **options).digest

    digests = {
        digest(eot_id=2, end_ids=[2]),
        digest(eot_id=2, end_ids=[2, 3]),
        digest(eot_id=None, end_ids=[2]),
        digest(eot_id=2, end_ids=[2], begin_ids=[]),
    }
    assert len(digests) == 4


def test_what_loses_text_is_refused():
    to_lower_case = train(normalization_rule_name="nmt_nfkc_cf")
    with pytest.raises(ValueError, match="must be lossless"):
        PretrainedTokenizer(to_lower_case, "sentencepiece", eot_id=2, end_ids=[2])


def test_bad_files_are_refused(tmp_path, llama_file):
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json or tokenizer.model"):
        load_pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="SentencePiece model cannot be read"):
        load_pretrained_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(llama_file)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_pretrained_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 600}')
    with pytest.raises(ValueError, match="from 0 to 599; got 600"):
        load_pretrained_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"one of tokenizer.json, sentencepiece; got 'x'"):
        PretrainedTokenizer(b"", "x", eot_id=None, end_ids=[])
