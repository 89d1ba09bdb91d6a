"""Rows: a packed row by hand, every token once, and no dependence on what was read before."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.packing import ContiguousRows, MixedRows, PackedRows, WholeRows

EOT = 9000


def make_documents(*lengths):
    """Documents of distinct tokens, each as [eot] + tokens: (tokens, offsets)."""
    tokens, offsets, token = [], [0], 0
    for length in lengths:
        tokens += [EOT, *range(token, token + length)]
        token += length
        offsets.append(len(tokens))
    return np.array(tokens, np.uint16), np.array(offsets, np.int64)


def everyone(offsets):
    return np.arange(len(offsets) - 1)


class InOrder(PackedRows):
    """Packing without its three draws, so that a row can be written down by hand."""

    def _plan_epoch(self, epoch):
        circle, _, rows = super()._plan_epoch(epoch)
        order = np.sort(circle.documents)
        return type(circle).of(self._offsets, order), 1, np.arange(len(rows))


def test_packed_rows_by_hand():
    # The circle: eot 0 1 2 eot 3 eot 4 5 6 7; rows of 5, from its second token on.
    tokens, offsets = make_documents(3, 1, 4)
    rows = InOrder(tokens, offsets, everyone(offsets), length=5, seed=0)
    assert len(rows) == 2
    expected = [
        {
            "tokens": [0, 1, 2, EOT, 3],
            "targets": [1, 2, EOT, 3, EOT],
            "segment_ids": [1, 1, 1, 2, 2],
            "positions": [0, 1, 2, 0, 1],
            "loss_mask": [1, 1, 1, 1, 1],
        },
        {
            "tokens": [EOT, 4, 5, 6, 7],
            "targets": [4, 5, 6, 7, EOT],
            "segment_ids": [1, 1, 1, 1, 1],
            "positions": [0, 1, 2, 3, 4],
            "loss_mask": [1, 1, 1, 1, 1],
        },
    ]
    for row, wanted in zip(rows, expected, strict=True):
        assert {name: value.tolist() for name, value in row.items()} == wanted
        dtypes = {name: value.dtype.name for name, value in row.items()}
        assert dtypes.pop("loss_mask") == "float32" and set(dtypes.values()) == {"int32"}


def test_a_row_may_hold_the_seam_of_the_circle():
    tokens, offsets = make_documents(2, 2)
    rows = InOrder(tokens, offsets, everyone(offsets), length=6, seed=0)
    assert rows[0]["tokens"].tolist() == [0, 1, EOT, 2, 3, EOT]
    assert rows[0]["targets"].tolist() == [1, EOT, 2, 3, EOT, 0]
    assert rows[0]["segment_ids"].tolist() == [1, 1, 2, 2, 2, 3]


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12)


def predicted(rows, numbers):
    """(input, target) pairs that are counted, in all those rows."""
    pairs = []
    for i in numbers:
        row = rows[i]
        counted = row["loss_mask"] == 1
        pairs += zip(row["tokens"][counted].tolist(), row["targets"][counted].tolist(), strict=True)
    return pairs


@given(lengths, st.integers(1, 10), st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_predicts_every_token_once(sizes, length, seed, epoch):
    tokens, offsets = make_documents(*sizes)
    if len(tokens) < length:
        with pytest.raises(ValueError, match=f"a row of {length} tokens; got {len(tokens)}"):
            PackedRows(tokens, offsets, everyone(offsets), length=length, seed=seed)
        return
    rows = PackedRows(tokens, offsets, everyone(offsets), length=length, seed=seed)
    assert len(rows) == len(tokens) // length
    targets = [t for _, t in predicted(rows, range(epoch * len(rows), (epoch + 1) * len(rows)))]
    text = [target for target in targets if target != EOT]
    assert len(text) == len(set(text))
    # All but the remainder, which is shorter than a row.
    assert len(tokens) - len(targets) == len(tokens) % length
    assert targets.count(EOT) <= len(sizes)


@given(lengths, st.integers(1, 10), st.integers(0, 3))
def test_rows_keep_documents_apart(sizes, length, seed):
    """Within a segment each token follows its predecessor in a document, and positions count up."""
    tokens, offsets = make_documents(*sizes)
    if len(tokens) < length:
        return
    rows = PackedRows(tokens, offsets, everyone(offsets), length=length, seed=seed)
    following = {(int(a), int(b)) for a, b in itertools.pairwise(tokens) if b != EOT}
    for i in range(2 * len(rows)):
        row = rows[i]
        begins = row["tokens"] == EOT
        steps = np.diff(row["segment_ids"])
        assert row["segment_ids"][0] == 1 and not row["positions"][0]
        np.testing.assert_array_equal(steps, begins[1:])
        np.testing.assert_array_equal(
            row["positions"][1:], np.where(begins[1:], 0, row["positions"][:-1] + 1)
        )
        np.testing.assert_array_equal(row["targets"][:-1], row["tokens"][1:])
        for pair in predicted(rows, [i]):
            assert pair[1] == EOT or pair in following


def test_over_epochs_no_token_is_always_left_out():
    tokens, offsets = make_documents(3, 5, 7, 2)
    rows = PackedRows(tokens, offsets, everyone(offsets), length=8, seed=0)
    targets = {target for _, target in predicted(rows, range(20 * len(rows)))}
    assert targets == set(tokens.tolist())


def test_rows_are_a_function_of_seed_and_number():
    tokens, offsets = make_documents(*range(1, 40))
    arguments = (tokens, offsets, everyone(offsets))
    forward = PackedRows(*arguments, length=16, seed=3)
    backward = PackedRows(*arguments, length=16, seed=3)
    numbers = range(3 * len(forward))
    rows = {i: forward[i] for i in numbers}
    for i in reversed(numbers):
        for name, value in backward[i].items():
            np.testing.assert_array_equal(value, rows[i][name])
    other = PackedRows(*arguments, length=16, seed=4)
    assert any((other[i]["tokens"] != rows[i]["tokens"]).any() for i in range(3))


def test_epochs_differ_in_their_order_and_in_their_cuts():
    tokens, offsets = make_documents(*range(1, 40))
    rows = PackedRows(tokens, offsets, everyone(offsets), length=16, seed=0)
    epochs = [
        [tuple(rows[epoch * len(rows) + i]["tokens"].tolist()) for i in range(len(rows))]
        for epoch in range(3)
    ]
    assert len({row for epoch in epochs for row in epoch}) > 2.5 * len(rows)
    # Documents have other neighbours in each of them.
    neighbours = [
        {row[k - 1 : k + 2] for row in epoch for k in range(1, 15) if row[k] == EOT}
        for epoch in epochs
    ]
    for one, another in itertools.combinations(neighbours, 2):
        assert len(one) > 15 and len(one & another) < 5


def test_windows_of_a_long_document_do_not_follow_each_other():
    tokens, offsets = make_documents(1600)
    rows = PackedRows(tokens, offsets, everyone(offsets), length=16, seed=0)
    for epoch in range(2):
        windows = [rows[epoch * len(rows) + i] for i in range(len(rows))]
        follow = [a["targets"][-1] == b["tokens"][0] for a, b in itertools.pairwise(windows)]
        assert np.mean(follow) < 0.1


def test_only_the_chosen_documents_are_read():
    tokens, offsets = make_documents(*[10] * 10)
    chosen = np.array([1, 4, 7])
    train = PackedRows(tokens, offsets, chosen, length=7, seed=0)
    seen = {t for _, t in predicted(train, range(5 * len(train)))} - {EOT}
    assert seen == {t for d in chosen for t in range(10 * d, 10 * d + 10)}


@given(lengths, st.integers(1, 10))
def test_validation_predicts_each_token_of_documents_once(sizes, length):
    tokens, offsets = make_documents(*sizes)
    rows = WholeRows(tokens, length=length, offsets=offsets, documents=everyone(offsets))
    pairs = predicted(rows, range(len(rows)))
    assert [t for t, _ in pairs] == tokens.tolist()
    assert [t for _, t in pairs] == [*tokens[1:].tolist(), EOT]
    last, beyond = rows[len(rows) - 1], rows[len(rows)]
    padding = last["loss_mask"] == 0
    assert not last["segment_ids"][padding].any() and last["segment_ids"][~padding].all()
    assert padding.sum() == -len(tokens) % length
    assert not any(value.any() for value in beyond.values())
    assert len(list(rows)) == len(rows)


@given(st.integers(2, 60), st.integers(1, 10))
def test_validation_predicts_each_token_of_a_text_once(size, length):
    tokens = np.arange(size, dtype=np.uint16)
    rows = WholeRows(tokens, length=length)
    assert predicted(rows, range(len(rows))) == [(i, i + 1) for i in range(size - 1)]
    assert set(rows[0]) == {"tokens", "targets", "loss_mask"}
    assert all(row["tokens"].shape == (length,) for row in [*rows, rows[len(rows) + 3]])


def test_windows_of_a_text_are_anywhere_and_whole():
    tokens = np.arange(50, dtype=np.uint16)
    rows = ContiguousRows(tokens, length=8, seed=0)
    assert len(rows) == 6 == len(list(rows))
    starts = []
    for i in range(2000):
        row = rows[i]
        assert set(row) == {"tokens", "targets", "loss_mask"}
        start = int(row["tokens"][0])
        np.testing.assert_array_equal(row["tokens"], np.arange(start, start + 8))
        np.testing.assert_array_equal(row["targets"], row["tokens"] + 1)
        starts.append(start)
    counts = np.bincount(starts, minlength=42)
    assert len(counts) == 42 and counts.min() > 20 and counts.max() < 90
    again = ContiguousRows(tokens, length=8, seed=0)
    assert [int(again[i]["tokens"][0]) for i in range(100)] == starts[:100]
    assert starts[:100] != [
        int(ContiguousRows(tokens, length=8, seed=1)[i]["tokens"][0]) for i in range(100)
    ]


def test_a_text_of_one_window_is_enough_and_less_is_not():
    rows = ContiguousRows(np.arange(9, dtype=np.uint16), length=8, seed=0)
    assert rows[5]["targets"].tolist() == list(range(1, 9))
    with pytest.raises(ValueError, match=r"a row of 9 tokens; got 8\. Give more text"):
        ContiguousRows(np.arange(8, dtype=np.uint16), length=8, seed=0)
    with pytest.raises(ValueError, match="a token to predict; got 1 tokens"):
        WholeRows(np.arange(1, dtype=np.uint16), length=8)
    with pytest.raises(IndexError, match="from 0 on; got -1"):
        _ = rows[-1]


class Constant:
    """Rows that say whose they are, and which."""

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"source": np.array(self.name), "number": np.array(i)}


@settings(max_examples=20)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_mixtures_keep_proportions_and_leave_no_row_out(weights):
    sources = [Constant(k, 5) for k in range(len(weights))]
    mixed = MixedRows(sources, [float(weight) for weight in weights])
    count = 10 * sum(weights)
    rows = [mixed[i] for i in range(count)]
    assert len(mixed) == 5 * len(weights)
    for source, weight in enumerate(weights):
        numbers = [int(row["number"]) for row in rows if row["source"] == source]
        assert abs(len(numbers) - 10 * weight) <= 1
        assert numbers == list(range(len(numbers)))


def test_mixtures_are_even_and_random_access():
    mixed = MixedRows([Constant(0, 5), Constant(1, 5)], [3.0, 1.0])
    for start in range(0, 4000, 100):
        share = np.mean([int(mixed[i]["source"]) for i in range(start, start + 100)])
        assert abs(share - 0.25) <= 0.02
    far = mixed[10**9]
    assert abs(int(far["number"]) / 10**9 - (0.25 if far["source"] else 0.75)) < 1e-6
    with pytest.raises(ValueError, match=r"at least 1e-06 of their sum; got \(1\.0, 1e-09\)"):
        MixedRows([Constant(0, 5), Constant(1, 5)], [1.0, 1e-9])


def test_rows_are_grain_datasets():
    tokens, offsets = make_documents(*range(1, 40))
    rows = PackedRows(tokens, offsets, everyone(offsets), length=16, seed=0)
    last = rows.map(lambda row: {"last": row["targets"][-1]})
    epochs = last.repeat().batch(4)
    expected = [int(rows[i]["targets"][-1]) for i in range(3 * len(rows))]
    for step in range(3 * len(rows) // 4):
        assert epochs[step]["last"].tolist() == expected[4 * step : 4 * step + 4]
    assert [int(row["last"]) for row in last[5:9]] == expected[5:9]
