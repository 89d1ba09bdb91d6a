"""`tokenizer.json` beside the package that made it, for three ways in which families spell text."""

import json
import os

import numpy as np
import pytest

from genai_jax.data.corpora import read_documents
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer, load_pretrained_tokenizer
from genai_jax.data.saved_tokenizers import load_tokenizer

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("tokenizers", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = next(d.text.decode() for d in read_documents("stdlib") if d.name == "argparse.py")
SAMPLES = (
    "x",
    " x",
    "def f(x):\n    return 3.14  # ok",
    "  Größe 你好 🙂  ",
    "<|end|> <|begin|> <0x41>",
    "",
)
SPECIAL = ["<|begin|>", "<|end|>"]


def byte_level(*, begins):
    """GPT-2's and Qwen's; Llama 3's begins texts with a token of its own."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    return tokenizer.to_str()


def byte_fallback():
    """Llama 2's and Gemma's: spaces as a sign of their own, bytes for what has no piece."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.add_tokens([tokenizers.AddedToken("▁" * n, normalized=False) for n in (2, 3)])
    said = json.loads(tokenizer.to_str())
    vocabulary = said["model"]["vocab"]
    first = 1 + max(max(vocabulary.values()), *(x["id"] for x in said["added_tokens"]))
    vocabulary |= {f"<0x{byte:02X}>": first + byte for byte in range(256)}
    return json.dumps(said)


FILES = {
    "byte level": lambda: byte_level(begins=False),
    "byte level, begins": lambda: byte_level(begins=True),
    "byte fallback": byte_fallback,
}


@pytest.fixture(scope="module", params=FILES)
def pair(request, tmp_path_factory):
    """Their tokenizer, by transformers, and ours from the same file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(FILES[request.param](), encoding="utf-8")
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return theirs, load_pretrained_tokenizer(folder)


def test_ids_are_theirs(pair):
    theirs, ours = pair
    for text, ids in zip(SAMPLES, ours.encode_batch(SAMPLES), strict=True):
        assert ids.dtype == np.int32
        assert ours.decode(ids) == text
        if "<|" not in text:
            assert [*ours.begin_ids, *ids.tolist()] == theirs(text)["input_ids"]
            assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_text_holds_no_special_tokens(pair):
    theirs, ours = pair
    text = "<|begin|>x<|end|>"
    assert {0, 1} <= set(theirs(text)["input_ids"])  # theirs reads them out of it
    ids = ours.encode(text)
    assert not {0, 1} & set(ids.tolist()) and ours.decode(ids) == text
    assert ours.decode_bytes([0, 1]) == b""


def test_what_was_saved_is_loaded(pair, tmp_path):
    _, ours = pair
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for name in ("kind", "vocab_size", "eot_id", "begin_ids", "end_ids", "digest"):
        assert getattr(again, name) == getattr(ours, name)
    np.testing.assert_array_equal(again.encode(TEXT[:500]), ours.encode(TEXT[:500]))


def test_ids_that_the_model_lacks_are_cut_off(pair):
    """Gemma 3's smallest models have no row for the id of images, which no text encodes to."""
    _, ours = pair
    more = tokenizers.Tokenizer.from_str(ours.content.decode())
    more.add_special_tokens(["<image>"])
    more.add_tokens(["zebra"])
    options = {"eot_id": 1, "end_ids": [1], "most_ids": ours.vocab_size}
    cut = PretrainedTokenizer(more.to_str().encode(), "tokenizer.json", **options)
    assert cut.vocab_size == ours.vocab_size
    np.testing.assert_array_equal(cut.encode("a <image>"), ours.encode("a <image>"))
    with pytest.raises(ValueError, match=f"below {ours.vocab_size}, which the model has"):
        cut.encode("a zebra")


def refused(content, match):
    with pytest.raises(ValueError, match=match):
        PretrainedTokenizer(content.encode(), "tokenizer.json", eot_id=None, end_ids=[])


def test_what_does_not_stand_for_bytes_is_refused():
    refused("{", "cannot be read")
    said = json.loads(byte_level(begins=False))
    refused(json.dumps(said | {"decoder": {"type": "Fuse"}}), "must be ByteLevel.*got Fuse")
    lower = said | {"normalizer": {"type": "Lowercase"}}
    refused(json.dumps(lower), "must be lossless")
    said["model"]["vocab"]["two words"] = 600
    refused(json.dumps(said), "pieces of its 256 characters; got 'two words'")
    said["model"]["vocab"]["two words"] = 50_000_000
    refused(json.dumps(said), "from 1 to 10,000,000 ids")
    del said["model"]["vocab"]["two words"]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(said))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    refused(tokenizer.to_str(), "this one puts some behind it")
