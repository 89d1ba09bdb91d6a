"""Rows of answers: by hand, every answer whole, padding told by masks and never by an id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.answer_rows import (
    AnsweredPrompt,
    AnswerRows,
    WholeAnswerRows,
    behind_another,
    choose_partners,
    fit_answers,
)
from genai_jax.data.loader import Loader


def ids(*values):
    return np.array(values, np.int32)


def answered(prompt, *answers, margin=0.0):
    return AnsweredPrompt(ids(*prompt), tuple(ids(*answer) for answer in answers), margin)


PAIR = answered([7, 8], [5, 0], [0], margin=0.5)


def test_a_row_by_hand():
    # The end of an answer has the id of padding.
    rows = WholeAnswerRows([PAIR], length=5, num_answers=3)
    assert {name: value.tolist() for name, value in rows[0].items()} == {
        "tokens": [[7, 8, 5, 0, 0], [7, 8, 0, 0, 0], [0] * 5],
        "targets": [[8, 5, 0, 0, 0], [8, 0, 0, 0, 0], [0] * 5],
        "loss_mask": [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0], [0] * 5],
        "lengths": [4, 3, 0],
        "answer_mask": [1, 1, 0],
        "margin": 0.5,
        "weight": 1,
    }
    dtypes = {name: value.dtype.name for name, value in rows[0].items()}
    integers = {"tokens", "targets", "lengths"}
    assert dtypes == {name: "int32" if name in integers else "float32" for name in dtypes}
    assert not any(value.any() for value in rows[1].values())
    assert rows[1].keys() == rows[0].keys()


def test_prompts_lose_their_beginning_and_answers_nothing():
    text = answered([1, 2, 3, 4], [5, 6], [7])
    assert fit_answers(text, 6, "drop") == (text, {})
    assert fit_answers(text, 5, "drop") == (None, {"longer than 5 tokens: dropped": 1})
    cut, counts = fit_answers(text, 3, "truncate")
    assert cut is not None and cut.prompt.tolist() == [4] and cut.answers is text.answers
    assert counts == {"longer than 3 tokens: beginning of the prompt cut off": 1}
    gone = "longer than 2 tokens without a prompt: dropped"
    assert fit_answers(text, 2, "truncate") == (None, {gone: 1})


prompts = st.lists(st.integers(0, 9), min_size=1, max_size=6)
several = st.lists(
    st.builds(
        lambda prompt, answers: answered(prompt, *answers),
        prompts,
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=2, max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@given(several, st.integers(0, 3))
def test_every_prompt_is_in_every_epoch_once_and_its_answers_whole(texts, seed):
    whole = WholeAnswerRows(texts, length=10, num_answers=3)
    rows = AnswerRows(whole, seed=seed)
    assert len(rows) == len(whole) == len(texts)

    def read(row):
        """The answers of a row as the masks say, each after its prompt."""
        found = []
        for k in np.flatnonzero(row["answer_mask"]):
            size, counted = row["lengths"][k], row["loss_mask"][k] == 1
            answer = row["targets"][k][counted].tolist()
            tokens = row["tokens"][k][:size].tolist()
            assert tokens[size - len(answer) :] == answer
            assert row["tokens"][k][row["lengths"][k] - 1] == answer[-1]
            assert row["targets"][k][: size - 1].tolist() == tokens[1:]
            found.append((tokens[: size - len(answer)], answer))
        return found

    expected = [[(x.prompt.tolist(), a.tolist()) for a in x.answers] for x in texts]
    assert [read(row) for row in whole] == expected
    for epoch in (0, 3):
        found = [read(rows[epoch * len(rows) + i]) for i in range(len(rows))]
        assert sorted(found) == sorted(expected)


def test_rows_are_a_function_of_seed_and_number_and_epochs_differ():
    whole = WholeAnswerRows([answered([i], [1], [2]) for i in range(40)], length=4, num_answers=2)

    def order(rows, numbers):
        found = {i: int(rows[i]["tokens"][0, 0]) for i in numbers}
        return [found[i] for i in sorted(found)]

    forward = order(AnswerRows(whole, seed=1), range(80))
    assert order(AnswerRows(whole, seed=1), reversed(range(80))) == forward
    assert forward[:40] != forward[40:] != order(AnswerRows(whole, seed=2), range(80))[40:]
    assert sorted(forward[:40]) == sorted(forward[40:]) == list(range(40))
    batch = Loader(AnswerRows(whole, seed=1), 4).batch(3)
    assert batch["tokens"].shape == (4, 2, 4) and batch["margin"].shape == (4,)


def test_a_column_stays_with_its_prompt():
    whole = WholeAnswerRows([answered([i], [1], [2]) for i in range(9)], length=4, num_answers=2)
    values = np.arange(18, dtype=np.float32).reshape(9, 2)
    rows = AnswerRows(whole, seed=0).with_columns({"ref_log_probs": values})
    for i in range(20):
        number = int(rows[i]["tokens"][0, 0])
        assert rows[i]["ref_log_probs"].tolist() == values[number].tolist()
    more = rows.in_order().with_columns({"other": values[:, 0]})
    assert more[2].keys() - whole[2].keys() == {"ref_log_probs", "other"}
    assert more[9]["ref_log_probs"].tolist() == [0, 0] and more[9]["other"].shape == ()
    with pytest.raises(ValueError, match="entry for each of the 9 prompts; ref_log_probs has 8"):
        rows.with_columns({"ref_log_probs": values[:8]})


def test_what_does_not_fit_is_refused():
    for wrong in (answered([1], [2]), answered([1, 2, 3], [4, 5], [6])):
        assert len(WholeAnswerRows([wrong], length=5, num_answers=2)) == 1
    for wrong in (answered([], [2]), answered([1], [2], [3], [4]), answered([1] * 4, [2], [3, 4])):
        with pytest.raises(ValueError, match="at most 2 answers, each with it at most 5 tokens"):
            WholeAnswerRows([wrong], length=5, num_answers=2)
    with pytest.raises(ValueError, match="must be a prompt with answers"):
        AnswerRows(WholeAnswerRows([], length=5, num_answers=2), seed=0)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 99))
def test_partners_have_other_prompts(groups, seed):
    numbers = np.array(groups, np.int64)
    if len(set(groups)) == 1:
        with pytest.raises(ValueError, match=r"two different prompts.*got \d+ to one"):
            choose_partners(numbers, seed=seed)
        return
    partners = choose_partners(numbers, seed=seed)
    assert (numbers[partners] != numbers).all()
    assert (choose_partners(numbers, seed=seed) == partners).all()


def test_all_partners_are_equally_likely():
    groups = np.array([0, 1, 0, 2, 1], np.int64)
    drawn = np.stack([choose_partners(groups, seed=seed) for seed in range(3000)])
    for own in range(5):
        others = np.flatnonzero(groups != groups[own])
        shares = np.array([(drawn[:, own] == other).mean() for other in others])
        # Five standard deviations of a share.
        assert np.abs(shares - 1 / len(others)).max() < 5 * np.sqrt(0.25 / 3000)


def test_an_answer_of_another_prompt_comes_behind_this_one():
    texts = [answered([1, 2], [3, 0]), answered([4], [5, 6, 0])]
    found = behind_another(texts, np.array([1, 0], np.int64), length=4)
    assert [x.prompt.tolist() for x in found] == [[1, 2], [4]]
    # Where it does not fit its end is cut off; the own answer is whole.
    assert [[a.tolist() for a in x.answers] for x in found] == [
        [[3, 0], [5, 6]],
        [[5, 6, 0], [3, 0]],
    ]
