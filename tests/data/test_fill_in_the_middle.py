"""Documents rearranged to fill in the middle: nothing is lost, and chance is the text's own."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.fill_in_the_middle import (
    SENTINELS,
    Parts,
    Sentinels,
    arrange,
    cut_document,
    find_sentinels,
    make_rearrange,
    restore,
)
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.text import TextConfig, load_text
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer

TEXT = "def area(width, height):\n    return width * height  # Größe\n"
MADE = {
    kind: train_tokenizer(kind, [TEXT] * 20, 287, specials=SENTINELS)
    for kind in ("bytes", "characters", "bpe", "unigram")
}


@pytest.mark.parametrize("kind", MADE)
def test_tokenizers_reserve_ids_that_no_text_has(kind, tmp_path):
    tokenizer = MADE[kind]
    sentinels = find_sentinels(tokenizer)
    assert len({*sentinels, tokenizer.eot_id}) == 4 and max(sentinels) < tokenizer.vocab_size
    assert tokenizer.decode_bytes(sentinels) == b""
    if kind != "characters":  # which has no < in its text
        ids = tokenizer.encode("".join(SENTINELS))
        assert not np.isin(ids, sentinels).any() and tokenizer.decode(ids) == "".join(SENTINELS)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert find_sentinels(again) == sentinels and again.digest == tokenizer.digest
    without = train_tokenizer(kind, [TEXT] * 20, 287)
    assert without.digest != tokenizer.digest
    with pytest.raises(ValueError, match=rf"this {kind} tokenizer lacks <\|fim_prefix\|>, "):
        find_sentinels(without)


def test_parts_stand_behind_their_signs():
    tokenizer = ByteTokenizer(specials=SENTINELS)
    sentinels = find_sentinels(tokenizer)
    assert sentinels == Sentinels(257, 258, 259)
    ids = arrange(tokenizer, sentinels, Parts("ab", "cd", "ef", False))
    assert ids.tolist() == [257, *b"ab", 258, *b"ef", 259, *b"cd"]
    ids = arrange(tokenizer, sentinels, Parts("ab", "cd", "ef", True))
    assert ids.tolist() == [257, 258, *b"ef", 259, *b"ab", *b"cd"]


@given(
    kind=st.sampled_from(sorted(MADE)),
    text=st.text(st.sampled_from(sorted(set(TEXT)))),
    spm_rate=st.sampled_from([0.0, 1.0]),
    head=st.booleans(),
)
def test_nothing_is_lost(kind, text, spm_rate, head):
    tokenizer = MADE[kind]
    sentinels = find_sentinels(tokenizer)
    ids = make_rearrange(tokenizer, rate=1.0, spm_rate=spm_rate)(text)
    first = [tokenizer.eot_id] if head else []
    back = restore(np.concatenate([first, ids]).astype(np.int32), sentinels)
    assert back[: len(first)].tolist() == first
    assert tokenizer.decode(back) == text and not np.isin(back, sentinels).any()
    assert sorted(back.tolist()) == sorted([*first, *ids[~np.isin(ids, sentinels)].tolist()])


def test_what_is_not_rearranged_comes_back_as_it_is():
    sentinels = Sentinels(257, 258, 259)
    for ids in ([], [1, 2], [257, 1, 258], [259, 258, 257], [257, 257, 258, 259]):
        assert restore(np.array(ids), sentinels).tolist() == ids


def test_shares_are_what_is_asked_for():
    texts = [f"document {i}: {'x' * (i % 50)}" for i in range(4000)]
    for rate, spm_rate in ((0.0, 0.5), (0.25, 0.5), (0.9, 0.1), (1.0, 1.0)):
        parts = [cut_document(text, rate, spm_rate) for text in texts]
        chosen = [x for x in parts if x is not None]
        error = 4 * np.sqrt(rate * (1 - rate) / len(texts))
        assert abs(len(chosen) / len(texts) - rate) <= error
        if chosen:
            share = np.mean([x.suffix_first for x in chosen])
            assert abs(share - spm_rate) <= 4 * np.sqrt(spm_rate * (1 - spm_rate) / len(chosen))


def test_places_are_uniform_over_all_between_characters():
    """Of n + 1 places, two are drawn: the smaller is at place i with this probability."""
    drawn = [cut_document(f"{i:06}", 1.0, 0.0) for i in range(20_000)]
    assert all(x.prefix + x.middle + x.suffix == f"{i:06}" for i, x in enumerate(drawn))
    n = 7
    counts = np.bincount([len(x.prefix) for x in drawn], minlength=n)
    expected = len(drawn) * (2 * (n - np.arange(n)) - 1) / n**2
    assert np.square(counts - expected).dot(1 / expected) < 25  # chi-square of 6; 1 in 3000
    counts = np.bincount([len(x.suffix) for x in drawn], minlength=n)
    assert np.square(counts - expected).dot(1 / expected) < 25


def test_the_same_text_is_cut_the_same_way():
    assert cut_document(TEXT, 1.0, 0.5) == cut_document(TEXT, 1.0, 0.5)
    # On every machine and for ever: caches rely on it.
    parts = Parts("fill ", "i", "n the middle", False)
    assert cut_document("fill in the middle", 1.0, 0.5) == parts
    assert cut_document("", 1.0, 0.0) == Parts("", "", "", False)


def test_a_document_that_has_the_signs_stays_as_it_is():
    class Reads(ByteTokenizer):
        """Reads its sentinel out of texts, as Qwen's does."""

        def encode_batch(self, texts):
            return [np.where(ids == ord("|"), 257, ids) for ids in super().encode_batch(texts)]

    rearrange = make_rearrange(Reads(specials=SENTINELS), rate=1.0, spm_rate=0.5)
    assert rearrange("a|b") is None and rearrange("ab") is not None


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text(f"value_{i} = compute({i})\n" * (3 + i % 5))
    return TextConfig(path=f"{folder}/*.txt", tokenizer="bytes", cache_dir=str(folder / "cache"))


def load(config, seed=0, **changes):
    existing = changes.pop("existing", None)
    changed = dataclasses.replace(config, **changes)
    return load_text(changed, length=32, seed=seed, tokenizer=existing)


def test_a_share_of_the_training_documents_is_rearranged(config):
    plain, data = load(config), load(config, fim_rate=0.5)
    sentinels = find_sentinels(data.tokenizer)
    assert data.train_documents() == plain.train_documents()
    assert data.validation_documents() == plain.validation_documents()
    assert data.content_digest == plain.content_digest
    assert data.validation_bytes == plain.validation_bytes
    for i in range(len(plain.validation)):  # which stays as it is
        np.testing.assert_array_equal(data.validation[i]["tokens"], plain.validation[i]["tokens"])
    epoch = np.concatenate([data.train[i]["tokens"] for i in range(len(data.train))])
    counts = [int((epoch == token).sum()) for token in sentinels]
    documents = len(plain.train_documents())
    assert min(counts) > documents / 4 and max(counts) < documents * 3 / 4
    assert "to fill in" in data.summary and "to fill in" not in plain.summary


def test_rows_are_a_function_of_seed_and_number(config):
    data, again = load(config, fim_rate=0.5), load(config, fim_rate=0.5)
    other = load(config, seed=1, fim_rate=0.5)
    for i in (7, 0, 3 * len(data.train) + 1):
        for name, values in data.train[i].items():
            np.testing.assert_array_equal(values, again.train[i][name])
    assert any((data.train[i]["tokens"] != other.train[i]["tokens"]).any() for i in range(3))


def test_without_it_everything_is_as_it_was(config):
    plain = load(config)
    assert plain.tokenizer.digest == ByteTokenizer().digest and plain.tokenizer.vocab_size == 257
    # Which share of no documents has its suffix first does not matter: it is the same cache.
    caches = sorted((Path(config.cache_dir) / "text").iterdir())
    same = load(config, fim_spm_rate=0.9)
    np.testing.assert_array_equal(same.train[5]["tokens"], plain.train[5]["tokens"])
    assert sorted((Path(config.cache_dir) / "text").iterdir()) == caches


def test_what_cannot_be_is_refused(config):
    for changes in ({"fim_rate": 1.5}, {"fim_spm_rate": -0.1}, {"fim_rate": float("nan")}):
        with pytest.raises(ValueError, match="must be from 0 to 1; got"):
            load(config, **changes)
    with pytest.raises(ValueError, match="from 0 to 1; got 2"):
        make_rearrange(MADE["bytes"], rate=2.0, spm_rate=0.5)
    with pytest.raises(ValueError, match="there must be documents; got one long text"):
        load(dataclasses.replace(config, path=config.path.replace("*", "00")), fim_rate=0.5)
    with pytest.raises(ValueError, match="this bytes tokenizer lacks"):
        load(config, fim_rate=0.5, existing=ByteTokenizer())
