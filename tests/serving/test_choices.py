"""Texts that come in pieces are the same however they are cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.engine import Piece
from genai_jax.serving.choices import Choice

TOKENIZER = ByteTokenizer()
END = TOKENIZER.eot_id


def piece(ids, begin=0):
    """Token i has log-probability -i, and its two likeliest are itself and 7."""
    ids = np.array(ids, np.int32)
    numbers = -np.arange(begin, begin + len(ids), dtype=np.float32)
    others = np.stack([ids, np.full_like(ids, 7)], axis=1).reshape(len(ids), 2)
    return Piece(ids, numbers, numbers, others, np.stack([numbers, numbers - 1], axis=1))


def write(ids, cuts=(), **options):
    """What is shown in the end, and what was shown at each step."""
    choice = Choice(TOKENIZER, tokens=True, **options)
    edges = [0, *cuts, len(ids)]
    deltas = []
    for begin, end in itertools.pairwise(edges):
        deltas.append(choice.take(piece(ids[begin:end], begin)))
    deltas.append(choice.finish())
    text = "".join(delta.text for delta in deltas)
    tokens = [token for delta in deltas for token in delta.tokens]
    return text, tokens, choice


def test_characters_and_stop_texts_are_never_broken():
    choice = Choice(TOKENIZER, stop=["stop"])
    shown = [choice.take(piece([byte])).text for byte in "é sto! stop more".encode()]
    assert "".join(shown) == "é sto! "
    assert shown[:2] == ["", "é"]
    assert shown[3:7] == ["", "", "", "sto!"]  # may have been the stop text
    assert choice.ended and choice.finish().text == ""


def test_tokens_are_counted_and_placed():
    text, tokens, choice = write([*"aé".encode(), *b"b", END], stop_ids=[END])
    assert text == "aéb"
    assert [token.token for token in tokens] == list(text.encode())  # what ended it is no part
    assert [token.offset for token in tokens] == [0, 1, 1, 2]
    assert [token.log_prob for token in tokens] == [0, -1, -2, -3]
    assert tokens[1].likeliest == ((0xC3, -1.0), (7, -2.0))
    assert choice.count == 5  # but was drawn


def test_broken_characters_do_not_shift_what_follows():
    _, tokens, _ = write([0xE7, ord("/"), 0xE0, 0x80, 0xE0, 0xBD, 0xA8, 0xFF, ord("x")])
    assert [token.offset for token in tokens] == [0, 1, 2, 3, 4, 4, 4, 5, 6]


def test_tokens_behind_a_stop_text_are_none_of_its():
    ids = list(b"ab--cd")
    for cuts in [(), (1,), (3,), (1, 2, 3, 4, 5)]:
        text, tokens, choice = write(ids, cuts, stop=["--"])
        assert (text, [token.token for token in tokens], choice.count) == ("ab", [97, 98], 4)


def test_an_ordinary_token_that_ends_a_text_is_no_part_of_it():
    text, tokens, choice = write(list(b"ab\n"), stop_ids=[10])
    assert (text, len(tokens), choice.count) == ("ab", 2, 3)


def test_tokens_are_not_kept_where_nobody_wants_them():
    choice = Choice(TOKENIZER)
    assert choice.take(piece(list(b"ab"))).tokens == ()
    assert choice.finish().tokens == ()


@pytest.mark.parametrize("stop", [(), ("é",), ("\ufffd",), ("ab", "b"), ("aaab",)])
@given(
    ids=st.lists(st.sampled_from([97, 98, 0xC3, 0xA9, 0xE0, 0xBD, 0xFF, 256]), max_size=12),
    cuts=st.sets(st.integers(0, 12)),
)
def test_cuts_change_nothing(stop, ids, cuts):
    cuts = sorted(cut for cut in cuts if cut <= len(ids))
    text, tokens, choice = write(ids, cuts, stop=stop)
    again, same, other = write(ids, range(1, len(ids)), stop=stop)
    assert (text, tokens, choice.count, choice.ended) == (again, same, other.count, other.ended)
    whole = TOKENIZER.decode(ids)
    found = [whole.index(word) for word in stop if word in whole]
    # The earliest stop text of those that are whole first.
    assert whole.startswith(text) and bool(found) == choice.ended
    assert text == whole or choice.ended
    for token in tokens:
        assert token.offset < len(text) or not TOKENIZER.decode_bytes([token.token])
