"""Policies: what becomes of malformed documents, and that it is counted."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.cleaning import Policies, clean_documents, limit_document, split_text
from genai_jax.data.corpora import Document

DOCUMENTS = [
    Document("good", "é\n".encode()),
    Document("latin", b"caf\xe9 noir"),
    Document("nul", b"a\0b\0"),
    Document("both", b"\0\xff"),
    Document("empty", b""),
    Document("nothing but nul", b"\0\0"),
]


def clean(policies):
    counts = Counter()
    return {d.name: d.text for d in clean_documents(DOCUMENTS, policies, counts)}, dict(counts)


def test_default_repairs_and_counts():
    texts, counts = clean(Policies())
    assert texts == {
        "good": "é\n".encode(),
        "latin": "caf\ufffd noir".encode(),
        "nul": b"ab",
        "both": "\ufffd".encode(),
    }
    assert counts == {
        "documents with invalid UTF-8 repaired": 2,
        "documents with NUL characters stripped": 3,
        "empty documents skipped": 2,
    }


def test_skip_leaves_out_and_counts():
    texts, counts = clean(Policies(invalid_utf8="skip", nul="skip"))
    assert set(texts) == {"good"}
    assert counts == {
        "documents with invalid UTF-8 skipped": 2,
        "documents with NUL characters skipped": 2,
        "empty documents skipped": 1,
    }


def test_error_names_document_place_and_way_out():
    with pytest.raises(ValueError, match=r"latin must be UTF-8; byte 3 \(0xe9\).*--data"):
        clean(Policies(invalid_utf8="error"))
    with pytest.raises(ValueError, match=r"nul must not hold NUL.*at byte 1.*--data\.nul"):
        clean(Policies(nul="error"))
    with pytest.raises(ValueError, match=r"`max_document_bytes` must .* got 3"):
        Policies(max_document_bytes=3)


def test_oversized_documents():
    document = Document("long", b"one\ntwo\nthree")
    counts = Counter()
    split = Policies(max_document_bytes=8)
    assert list(limit_document(document, split, counts)) == [
        Document("long#1", b"one\ntwo\n"),
        Document("long#2", b"three"),
    ]
    skip = Policies(max_document_bytes=8, oversized="skip")
    assert not list(limit_document(document, skip, counts))
    assert list(limit_document(Document("fits", b"12345678"), skip, counts))
    assert counts == {"oversized documents split": 1, "oversized documents skipped": 1}
    stop = Policies(max_document_bytes=8, oversized="error")
    with pytest.raises(ValueError, match=r"long must have at most .* = 8 bytes; it has 13"):
        list(limit_document(document, stop, counts))


@given(st.text(), st.integers(4, 40))
def test_parts_are_short_valid_and_make_up_the_whole(text, limit):
    parts = list(split_text(text.encode(), limit))
    assert b"".join(parts) == text.encode()
    assert all(len(part) <= limit for part in parts)
    assert "".join(part.decode() for part in parts) == text
    assert all(parts) or not text
