"""Prompts to fill in the middle: training documents without their middles."""

import numpy as np
import pytest

from genai_jax.data.fill_in_the_middle import SENTINELS, Parts, arrange, find_sentinels
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.infilling import infill_end_ids, infill_prompt

TOKENIZER = ByteTokenizer(specials=SENTINELS)
EOT, PRE, SUF, MID = 256, 257, 258, 259


def test_it_asks_in_either_way():
    ids = infill_prompt(TOKENIZER, "ab", "yz")
    assert ids.dtype == np.int32 and ids.tolist() == [EOT, PRE, *b"ab", SUF, *b"yz", MID]
    ids = infill_prompt(TOKENIZER, "ab", "yz", suffix_first=True)
    assert ids.tolist() == [EOT, PRE, SUF, *b"yz", MID, *b"ab"]
    assert infill_prompt(TOKENIZER, "", "").tolist() == [EOT, PRE, SUF, MID]


@pytest.mark.parametrize("suffix_first", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_prompt_is_how_a_document_of_the_training_begins(kind, suffix_first):
    text = "def area(width, height):\n    return width * height\n"
    tokenizer = train_tokenizer(kind, [text] * 20, 300, specials=SENTINELS)
    prefix, middle, suffix = text[:11], text[11:30], text[30:]
    parts = Parts(prefix, middle, suffix, suffix_first)
    document = [
        *tokenizer.begin_ids,
        *arrange(tokenizer, find_sentinels(tokenizer), parts).tolist(),
    ]
    prompt = infill_prompt(tokenizer, prefix, suffix, suffix_first=suffix_first)
    assert document[: len(prompt)] == prompt.tolist()
    assert tokenizer.decode(document[len(prompt) :]) == middle


@pytest.mark.parametrize(
    ("prefix", "suffix", "most", "kept"),
    [
        ("abcdef", "uvwxyz", 14, ("bcdef", "uvwxy")),
        ("abcdef", "uvwxyz", 16, ("abcdef", "uvwxyz")),
        ("abcdef", "uvwxyz", 13, ("bcdef", "uvwx")),
        ("abcdef", "z", 9, ("cdef", "z")),
        ("a", "uvwxyz", 9, ("a", "uvwx")),
        ("", "uvwxyz", 9, ("", "uvwxy")),
        ("abc", "", 5, ("c", "")),
        ("abc", "xyz", 5, ("c", "")),
    ],
)
def test_what_is_nearest_to_the_middle_is_kept(prefix, suffix, most, kept):
    ids = infill_prompt(TOKENIZER, prefix, suffix, most_tokens=most)
    assert ids.tolist() == infill_prompt(TOKENIZER, *kept).tolist()
    assert len(ids) <= most


def test_a_middle_ends_with_the_document_or_a_sign():
    assert infill_end_ids(TOKENIZER) == (EOT, PRE, SUF, MID)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="this bytes tokenizer lacks"):
        infill_prompt(ByteTokenizer(), "a", "b")
    with pytest.raises(ValueError, match="got 4, of which 4 are needed"):
        infill_prompt(TOKENIZER, "a", "b", most_tokens=4)
