"""Text from end to end: a source's name in, rows out; splits, caches and refusals."""

import dataclasses
import hashlib
import heapq
import inspect
import json
import re

import numpy as np
import pytest

from genai_jax.data import text as text_module
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.text import TextConfig, load_text

POEM = f"{inspect.getsource(heapq)}\nünd é\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eighty files of some kinds of text."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(80):
        lines = (f"value_{j} = compute({i}, {j * i})\n" for j in range(5 + i % 7))
        (folder / f"{i:02}.txt").write_text("".join(lines))
    (folder / "poem.md").write_text(POEM)
    return folder


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return TextConfig(path=f"{corpus}/*.txt", tokenizer="bytes", cache_dir=str(cache))


def load(config, length=32, seed=0, **changes):
    tokenizer = changes.pop("existing", None)
    changed = dataclasses.replace(config, **changes)
    return load_text(changed, length=length, seed=seed, tokenizer=tokenizer)


def targets(rows):
    return [t for row in rows for t in row["targets"][row["loss_mask"] == 1].tolist()]


def test_documents_are_split_and_read_back(config, corpus):
    data = load(config)
    train, validation = data.train_documents(), data.validation_documents()
    files = sorted(path.read_bytes() for path in corpus.glob("*.txt"))
    assert sorted(train + validation) == files
    assert data.has_documents and data.tokenizer.eot_id == 256
    assert 0.02 < sum(map(len, validation)) / sum(map(len, files)) < 0.25
    # Every byte of the validation split is predicted, and so is every end.
    predicted = targets(data.validation)
    assert len(predicted) - predicted.count(256) == data.validation_bytes
    assert data.tokenizer.decode_bytes(predicted) == b"".join(validation)
    assert predicted.count(256) == len(validation)
    # Nothing of it is in the training rows.
    train_text = b"".join(train)
    for i in range(len(data.train)):
        for line in data.tokenizer.decode_bytes(data.train[i]["tokens"]).split(b"\n")[1:-1]:
            assert line in train_text
    assert "81" not in data.summary and "80 documents" in data.summary


def test_a_documents_side_depends_on_itself_alone(config, corpus, tmp_path):
    sides = {}
    for side, documents in (
        (0, load(config).train_documents()),
        (1, load(config).validation_documents()),
    ):
        sides |= dict.fromkeys(documents, side)
    for number, path in enumerate(sorted(corpus.glob("*.txt"))):
        if number % 3:
            (tmp_path / f"renamed {number}.txt").write_bytes(path.read_bytes())
    (tmp_path / "copy.txt").write_bytes(sorted(corpus.glob("*.txt"))[1].read_bytes())
    fewer = load(config, path=str(tmp_path))
    assert all(sides[document] == 0 for document in fewer.train_documents())
    assert all(sides[document] == 1 for document in fewer.validation_documents())


def test_few_documents_still_have_two_sides(config, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 20)
    for fraction in (1e-6, 1 - 1e-6):
        data = load(config, path=str(tmp_path), validation_fraction=fraction)
        assert data.train_documents() and data.validation_documents()


@pytest.mark.parametrize("tokenizer", ["characters", "bytes", "bpe", "unigram"])
def test_one_text_is_cut_at_nine_tenths_of_its_characters(config, corpus, tokenizer):
    data = load(config, path=f"{corpus}/poem.md", tokenizer=tokenizer, vocab_size=360)
    cut = int(len(POEM) * 0.9)
    assert not data.has_documents and data.tokenizer.eot_id is None
    assert data.train_documents() == [POEM[:cut].encode()]
    assert data.validation_documents() == [POEM[cut:].encode()]
    assert set(data.train[0]) == {"tokens", "targets", "loss_mask"}
    ending = data.tokenizer.encode(POEM[cut:]).tolist()
    assert targets(data.validation) == ending[1:]
    assert data.validation_bytes == len(data.tokenizer.decode_bytes(ending[1:]))
    if tokenizer == "characters":
        assert data.tokenizer.vocab_size == len(set(POEM))
        assert "".join(data.tokenizer.characters) == "".join(sorted(set(POEM)))


def test_characters_are_those_of_the_whole_text(config, tmp_path):
    """As in nanoGPT: a character of the last tenth only is in the vocabulary too."""
    (tmp_path / "a.txt").write_text("ab" * 100 + "z" * 10)
    data = load(config, path=str(tmp_path / "a.txt"), tokenizer="characters", length=8)
    assert data.tokenizer.characters == "abz"


def test_subwords_are_trained_on_the_training_split_only(config, corpus, monkeypatch):
    seen = []
    original = text_module.train_tokenizer

    def spy(kind, documents, *arguments, **keywords):
        documents = list(documents)
        seen.append(documents)
        return original(kind, documents, *arguments, **keywords)

    monkeypatch.setattr(text_module, "train_tokenizer", spy)
    data = load(config, tokenizer="bpe", vocab_size=300)
    assert sorted(seen[0]) == sorted(d.decode() for d in data.train_documents())


def test_cache_is_used_until_something_changes(config, corpus, tmp_path, monkeypatch):
    calls = []
    original = text_module.write_tokens
    monkeypatch.setattr(
        text_module, "write_tokens", lambda *a, **k: calls.append(a) or original(*a, **k)
    )
    (tmp_path / "a.txt").write_text(POEM)
    (tmp_path / "b.txt").write_text(POEM[::-1])
    base = dataclasses.replace(config, path=str(tmp_path))
    first = load(base)
    again = load(base, length=16, seed=5)
    assert len(calls) == 1 and again.content_digest == first.content_digest
    for changes in (
        {"tokenizer": "characters"},
        {"validation_fraction": 0.2},
        {"invalid_utf8": "skip"},
        {"max_document_bytes": 1000},
        {"existing": load_tokenizer_of(first, tmp_path)},
    ):
        count = len(calls)
        assert load(base, **changes).content_digest == first.content_digest
        assert len(calls) == count + 1, changes
    (tmp_path / "b.txt").write_text(POEM[::-1] + "!")
    changed = load(base)
    assert changed.content_digest != first.content_digest
    assert changed.tokenizer.digest == first.tokenizer.digest
    assert load(base, tokenizer="characters").tokenizer.digest != first.tokenizer.digest


def load_tokenizer_of(data, folder):
    saved = folder.parent / "saved tokenizer"
    data.tokenizer.save(saved)
    return load_tokenizer(saved)


def test_content_digest_is_of_the_cleaned_text(config, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\0 text " * 20)
    (tmp_path / "b.txt").write_bytes(b"another")
    digest = hashlib.sha256()
    for text in (b"one text " * 20, b"another"):
        digest.update(len(text).to_bytes(8, "little") + text)
    data = load(config, path=f"{tmp_path}/*.txt", length=4)
    assert data.content_digest == digest.hexdigest()
    assert "documents with NUL characters stripped: 1" in data.summary


def test_an_earlier_tokenizer_is_used_as_it_is(config, corpus, tmp_path):
    earlier = load(config, tokenizer="bpe", vocab_size=300).tokenizer
    earlier.save(tmp_path)
    data = load(config, existing=load_tokenizer(tmp_path), tokenizer="bpe", vocab_size=4096)
    assert data.tokenizer.digest == earlier.digest
    # On one long text it works as well; the other way round, documents need an end.
    lone = load(config, existing=earlier, path=f"{corpus}/poem.md")
    assert lone.tokenizer.decode_bytes(targets(lone.validation)) == lone.validation_documents()[0]
    assert lone.validation_bytes == len(lone.validation_documents()[0])
    without_end = load(config, path=f"{corpus}/poem.md").tokenizer
    with pytest.raises(ValueError, match="told apart by an end-of-text id; got a bytes tokenizer"):
        load(config, existing=without_end)


def test_rows_depend_on_the_seed(config):
    first, same, other = load(config), load(config), load(config, seed=1)
    for i in (0, 1, 5 * len(first.train)):
        np.testing.assert_array_equal(first.train[i]["tokens"], same.train[i]["tokens"])
    assert any((first.train[i]["tokens"] != other.train[i]["tokens"]).any() for i in range(3))
    for one, another in zip(first.validation, other.validation, strict=True):
        np.testing.assert_array_equal(one["tokens"], another["tokens"])


def test_weights_are_shares_of_rows(config, tmp_path):
    for name, letter in (("few", "x"), ("many", "y")):
        lines = (json.dumps({"body": f"{letter * 30}{i}"}) for i in range(40))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = (f"files:{tmp_path}/few.jsonl", f"files:{tmp_path}/many.jsonl")
    arguments = {"path": None, "sources": sources, "field": "body", "length": 16}

    def share(data, count):
        rows = [bytes(data.train[i]["tokens"].clip(0, 255).astype(np.uint8)) for i in range(count)]
        return sum(row.count(b"x") for row in rows) / sum(
            row.count(b"x") + row.count(b"y") for row in rows
        )

    weighted = load(config, weights=(1.0, 9.0), **arguments)
    assert share(weighted, 400) == pytest.approx(0.1, abs=0.02)
    by_size = load(config, **arguments)
    assert share(by_size, len(by_size.train)) == pytest.approx(0.5, abs=0.1)
    assert sum(map(len, weighted.validation_documents())) == weighted.validation_bytes
    with pytest.raises(ValueError, match=r"training split of files:.*few\.jsonl is too short"):
        load(config, weights=(1.0, 9.0), **(arguments | {"length": 5000}))


def test_oversized_documents_stay_on_one_side(config, tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"{i} unlike any other\n" * 50)
    data = load(config, path=str(tmp_path), max_document_bytes=200, validation_fraction=0.4)
    assert max(map(len, data.train_documents())) <= 200
    firsts = [
        {d[:1] for d in side} for side in (data.train_documents(), data.validation_documents())
    ]
    assert firsts[0].isdisjoint(firsts[1]) and len(firsts[0] | firsts[1]) == 6
    assert "oversized documents split: 6" in data.summary
    # A lone text is not a document: it may have any size.
    lone = load(config, path=f"{tmp_path}/0.txt", max_document_bytes=200)
    assert not lone.has_documents and len(lone.train_documents()) == 1


def test_reference_does_not_leak_into_validation(config):
    data = load(config, path=None, sources=("reference",))

    def paragraphs(documents):
        return {
            " ".join(p.split())
            for d in documents
            for p in re.split(rb"\n\s*\n", d)
            for p in [p.decode()]
        }

    train, validation = map(paragraphs, (data.train_documents(), data.validation_documents()))
    assert len(validation) > 20 and train.isdisjoint(validation)


def test_refusals_say_what_to_do(config, corpus, tmp_path):
    one = f"{corpus}/poem.md"
    for match, arguments in (
        ("at least a row of 100000 tokens; got", {"length": 100_000}),
        ("text must hold at least a row", {"length": 100_000, "path": one}),
        (
            r"at least two.*got 1\. Choose --data\.split contiguous",
            {"path": one, "split": "documents"},
        ),
        ("exactly one document; got 80. Give one text", {"split": "contiguous"}),
        ("`sources` must name", {"path": None, "sources": ()}),
        ("`weights` must have one for each of the 1", {"weights": (1.0, 2.0)}),
        ("`weights` must be positive", {"weights": (0.0,)}),
        (r"`validation_fraction` must .* got 1\.5", {"validation_fraction": 1.5}),
        ("`vocab_size` must be positive; got 0", {"vocab_size": 0}),
        ("Choose at most", {"tokenizer": "bpe", "vocab_size": 60_000}),
    ):
        with pytest.raises(ValueError, match=match):
            load(config, **arguments)
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"\0")
    with pytest.raises(
        ValueError, match=r"must hold a document; got none.*, empty documents skipped: 2"
    ):
        load(config, path=str(tmp_path / "*.txt"))
    with pytest.raises(FileNotFoundError, match="matches no file"):
        load(config, path=str(tmp_path / "*.md"))


def test_policies_reach_the_documents(config, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 " * 50)
    (tmp_path / "b.txt").write_bytes(b"plain " * 50)
    (tmp_path / "c.txt").write_bytes(b"simple " * 50)
    folder = f"{tmp_path}/*.txt"
    assert "documents with invalid UTF-8 repaired: 1" in load(config, path=folder).summary
    skipped = load(config, path=folder, invalid_utf8="skip")
    assert "2 documents" in skipped.summary and "skipped" in skipped.summary
    with pytest.raises(ValueError, match=r"a\.txt must be UTF-8; byte 3"):
        load(config, path=folder, invalid_utf8="error")
