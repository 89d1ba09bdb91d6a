"""Rows of examples: by hand, each once an epoch, and nothing that packing changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.example_rows import (
    ExampleRows,
    LearntText,
    LearntTexts,
    WholeExampleRows,
    fit_to_row,
)
from genai_jax.data.loader import Loader
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token


def learnt(ids, start):
    return LearntText(np.array(ids, np.int32), np.arange(len(ids)) >= start)


def distinct(sizes):
    """Examples of tokens that are all different; of each the later half counts."""
    ends = np.cumsum(sizes).tolist()
    spans = [range(end - size + 1, end + 1) for size, end in zip(sizes, ends, strict=True)]
    return LearntTexts([learnt(list(span), (len(span) + 1) // 2) for span in spans])


def test_a_packed_row_by_hand():
    texts = LearntTexts([learnt([7, 8, 9], 1), learnt([5, 6, 0], 2)])
    row = WholeExampleRows(texts, length=8)[0]
    assert {name: value.tolist() for name, value in row.items()} == {
        "tokens": [7, 8, 9, 5, 6, 0, 0, 0],
        "targets": [8, 9, 0, 6, 0, 0, 0, 0],
        # The end of the second has the id of padding, and counts.
        "loss_mask": [1, 1, 0, 0, 1, 0, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 0, 1, 2, 0, 0],
    }
    dtypes = {name: value.dtype.name for name, value in row.items()}
    assert dtypes.pop("loss_mask") == "float32" and set(dtypes.values()) == {"int32"}
    apart = WholeExampleRows(texts, length=8, packing=False)
    assert len(apart) == 2
    assert apart[1]["tokens"].tolist() == [5, 6, 0, 0, 0, 0, 0, 0]
    assert not any(value.any() for value in apart[2].values())


sizes = st.lists(st.integers(2, 9), min_size=1, max_size=16)


def examples_of(row):
    """The examples of a row, each as its tokens, targets and mask."""
    for segment in range(1, row["segment_ids"].max() + 1):
        inside = row["segment_ids"] == segment
        np.testing.assert_array_equal(row["positions"][inside], np.arange(inside.sum()))
        yield tuple(tuple(row[x][inside].tolist()) for x in ("tokens", "targets", "loss_mask"))


@given(sizes, st.booleans(), st.integers(0, 3))
def test_every_example_is_in_every_epoch_once_and_whole(sizes, packing, seed):
    texts = distinct(sizes)
    rows = ExampleRows(texts, length=10, seed=seed, packing=packing)
    whole = WholeExampleRows(texts, length=10, packing=packing)
    assert len(rows) == len(whole)
    expected = []
    for number in range(len(texts)):
        first, last = texts.offsets[number : number + 2]
        tokens, mask = texts.tokens[first:last].tolist(), texts.counted[first:last].tolist()
        expected.append((tuple(tokens), (*tokens[1:], 0), (*map(float, mask[1:]), 0.0)))
    found = [e for i in range(len(whole)) for e in examples_of(whole[i])]
    assert sorted(found) == sorted(expected)
    for epoch in (0, 5):
        numbers = range(epoch * len(rows), (epoch + 1) * len(rows))
        found = [e for i in numbers for e in examples_of(rows[i])]
        assert sorted(found) == sorted(expected)


def test_rows_are_a_function_of_seed_and_number_and_epochs_differ():
    texts = distinct([2, 3, 4, 5] * 20)
    forward, backward = (ExampleRows(texts, length=12, seed=3) for _ in range(2))
    numbers = range(3 * len(forward))
    kept = {i: forward[i] for i in numbers}
    for i in reversed(numbers):
        for name, value in backward[i].items():
            np.testing.assert_array_equal(value, kept[i][name])

    def neighbours(rows, epoch):
        several = (rows[epoch * len(rows) + i]["tokens"] for i in range(len(rows)))
        return {tuple(row[row > 0].tolist()) for row in several}

    first, second = neighbours(forward, 0), neighbours(forward, 1)
    assert len(first & second) < len(first) / 4  # others lie together
    other = ExampleRows(texts, length=12, seed=4)
    assert len(first & neighbours(other, 0)) < len(first) / 4


def test_a_loader_takes_the_rows():
    texts = distinct([3] * 5)
    batch = Loader(ExampleRows(texts, length=8, seed=0), 2).batch(7)
    assert batch["tokens"].shape == batch["loss_mask"].shape == (2, 8)


def test_too_long_examples_are_dropped_cut_or_split():
    text = learnt(range(1, 11), 6)
    assert fit_to_row(text, 10, "drop") == ([text], {})
    assert fit_to_row(text, 9, "drop") == ([], {"longer than 9 tokens: dropped": 1})
    (part,), counts = fit_to_row(text, 8, "truncate")
    assert part.ids.tolist() == list(range(1, 9)) and part.counted.sum() == 2
    assert counts == {"longer than 8 tokens: end cut off": 1}
    # What counted is gone.
    assert fit_to_row(text, 6, "truncate") == (
        [],
        {"longer than 6 tokens: end cut off": 1, "dropped since no token of it counts": 1},
    )
    parts, counts = fit_to_row(text, 4, "split")
    assert [part.ids.tolist() for part in parts] == [[4, 5, 6, 7], [7, 8, 9, 10]]
    assert counts == {
        "longer than 4 tokens: split": 1,
        "parts dropped since no token of them counts": 1,
    }
    # The first token of all is predicted from nothing.
    first = LearntText(np.array([1, 2], np.int32), np.array([True, False]))
    assert fit_to_row(first, 4, "drop") == ([], {"dropped since no token of it counts": 1})


@given(st.integers(2, 40), st.integers(0, 40), st.integers(2, 12))
def test_a_split_predicts_every_counted_token_once(size, start, length):
    text = learnt(range(100, 100 + size), start)
    parts, _ = fit_to_row(text, length, "split")
    predicted = [x for ids, counted in parts for x in ids[1:][counted[1:]].tolist()]
    assert predicted == list(range(100 + max(1, start), 100 + size))
    assert all(2 <= len(part.ids) <= length for part in parts)


def test_examples_that_are_too_long_for_rows_are_refused():
    with pytest.raises(ValueError, match="must have at most the 4 tokens of a row; got one of 5"):
        ExampleRows(distinct([5]), length=4, seed=0)
    with pytest.raises(ValueError, match="must be an example to make rows of"):
        ExampleRows(LearntTexts([]), length=4, seed=0)
    none = WholeExampleRows(LearntTexts([]), length=4)
    assert len(none) == 0 and none[0]["tokens"].tolist() == [0] * 4


LENGTH, BATCH = 16, 8


@pytest.fixture(scope="module")
def measure():
    """A function from rows to the loss and gradient of a small model over all of them."""
    shape = TransformerConfig(
        num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, vocab_size=32, max_length=LENGTH,
        positions="learned", init_std=0.3,
    )  # fmt: skip
    model = LanguageModel(shape, jax.random.key(0))

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def losses(model, batch):
        terms = next_token(model, batch)
        return terms["loss"].sum, terms["loss"].weight

    def of(rows):
        total, weight, gradient = 0.0, 0.0, None
        for first in range(0, len(rows), BATCH):
            chosen = [rows[i] for i in range(first, first + BATCH)]
            batch = {name: jnp.stack([row[name] for row in chosen]) for name in chosen[0]}
            (loss, counted), by = losses(model, batch)
            total, weight = total + float(loss), weight + float(counted)
            gradient = by if gradient is None else jax.tree.map(jnp.add, gradient, by)
        return total, weight, jax.tree.leaves(gradient)

    return of


@settings(max_examples=12)
@given(st.lists(st.integers(2, LENGTH), min_size=2, max_size=24), st.integers(0, 9))
def test_packed_loss_and_gradient_equal_unpacked(measure, sizes, seed):
    random = np.random.RandomState(seed)
    texts = LearntTexts(
        [learnt(random.randint(0, 32, size), random.randint(1, size)) for size in sizes]
    )
    apart = measure(WholeExampleRows(texts, length=LENGTH, packing=False))
    packed = measure(WholeExampleRows(texts, length=LENGTH))
    assert packed[1] == apart[1] == sum(int(x) for x in texts.counted)
    np.testing.assert_allclose(packed[0], apart[0], rtol=1e-5)
    for one, other in zip(packed[2], apart[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_what_one_example_says_is_not_seen_by_another(measure):
    """Neighbours of other words, of which nothing counts, change neither loss nor gradient."""
    own = learnt([3, 1, 4, 1, 5], 2)
    found = []
    for neighbour in ([9, 2, 6, 5, 3], [8, 8, 8, 8, 8]):
        silent = LearntText(np.array(neighbour, np.int32), np.zeros(5, bool))
        rows = WholeExampleRows(LearntTexts([silent, own, silent]), length=LENGTH)
        assert len(rows) == 1 and rows[0]["tokens"][5:10].tolist() == own.ids.tolist()
        found.append(measure(rows))
    alone = measure(WholeExampleRows(LearntTexts([own]), length=LENGTH))
    assert found[0][1] == found[1][1] == alone[1] == 3
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][0], alone[0], rtol=1e-6)
    for one, other, by_itself in zip(found[0][2], found[1][2], alone[2], strict=True):
        np.testing.assert_array_equal(one, other)
        # Elsewhere in a row, sums are in another order: rounding, by the largest of a leaf.
        assert np.abs(one - by_itself).max() < 2e-6 * np.abs(by_itself).max()
