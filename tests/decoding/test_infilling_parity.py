"""Prompts to fill in the middle beside the package that reads Qwen 2.5 Coder's and CodeGemma's."""

import os

import numpy as np
import pytest

from genai_jax.data.corpora import read_documents
from genai_jax.data.fill_in_the_middle import SENTINELS, find_sentinels, make_rearrange, restore
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer
from genai_jax.decoding.infilling import infill_prompt

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("tokenizers", reason="parity needs the extra [parity]")
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

TEXT = next(d.text.decode() for d in read_documents("stdlib") if d.name == "argparse.py")
PRE, SUF, MID = SENTINELS


@pytest.fixture(scope="module", params=[True, False], ids=["special", "not special"])
def pair(request):
    """Theirs and ours; Qwen's file does not call its signs special, CodeGemma's does."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs.add_tokens(
        [AddedToken(name, special=request.param, normalized=False) for name in SENTINELS]
    )
    end = theirs.token_to_id("<|endoftext|>")
    content = theirs.to_str().encode()
    ours = PretrainedTokenizer(content, "tokenizer.json", eot_id=end, end_ids=[end])
    return request.param, theirs, ours


def test_prompts_are_their_ids(pair):
    _, theirs, ours = pair
    for prefix, suffix in (("def f(x):\n    ret", "\n\nf(3)"), ("", " x"), ("Größe 你", "")):
        expected = theirs.encode(f"{PRE}{prefix}{SUF}{suffix}{MID}").ids
        assert infill_prompt(ours, prefix, suffix).tolist() == expected
        expected = theirs.encode(f"{PRE}{SUF}{suffix}{MID}{prefix}").ids
        assert infill_prompt(ours, prefix, suffix, suffix_first=True).tolist() == expected


def test_documents_come_back(pair):
    _, theirs, ours = pair
    assert find_sentinels(ours) == tuple(map(theirs.token_to_id, SENTINELS))
    for spm_rate in (0.0, 1.0):
        ids = make_rearrange(ours, rate=1.0, spm_rate=spm_rate)(TEXT)
        assert np.isin(ids, find_sentinels(ours)).sum() == 3
        assert ours.decode(restore(ids, find_sentinels(ours))) == TEXT


def test_signs_in_a_text_are_text_or_refused(pair):
    special, _, ours = pair
    text = f"x {SUF} y"
    rearranged = make_rearrange(ours, rate=1.0, spm_rate=0.0)(text)
    if special:
        assert ours.decode(restore(rearranged, find_sentinels(ours))) == text
        assert infill_prompt(ours, text, "").tolist().count(ours.find_id(SUF)) == 1
    else:
        cut_apart = rearranged is not None and ours.decode(
            restore(rearranged, find_sentinels(ours))
        )
        assert rearranged is None or cut_apart == text
        with pytest.raises(ValueError, match="must not hold the tokenizer's own signs"):
            infill_prompt(ours, text, "")
