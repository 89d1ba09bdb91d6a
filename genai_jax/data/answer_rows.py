"""Rows of K answers to one prompt, each with the whole prompt before it.

A row has `tokens`, `targets` and `loss_mask` [K, T], where every token of an answer counts, its end
included, and none of the prompt; `lengths` [K], so that the token before `lengths` is the end;
`answer_mask` [K], 1 where there is an answer; `margin` and `weight`, 1 for a row that counts; and
whatever columns were added. Nothing looks for the id of padding, which may be that of an end.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from genai_jax.data.random_order import permutation, random_bits
from genai_jax.data.rows import NumberedRows, Row
from genai_jax.data.tokenizers import Ids

TooLongPrompt = Literal["drop", "truncate"]
Columns = Mapping[str, np.ndarray]
_NONE: Columns = {}


class AnsweredPrompt(NamedTuple):
    """A prompt and answers to it, as ids.

    Attributes:
        prompt: At least one id.
        answers: The best first, each with the id that ends it.
        margin: By how much the first is better; 0 where nobody said.
    """

    prompt: Ids
    answers: tuple[Ids, ...]
    margin: float = 0.0


def fit_answers(
    answered: AnsweredPrompt, length: int, too_long: TooLongPrompt
) -> tuple[AnsweredPrompt | None, Counter[str]]:
    """Make a prompt with each of its answers fit into a row; answers stay whole.

    Args:
        answered: The prompt and its answers.
        length: T, tokens of a prompt with an answer.
        too_long: What to do with more. drop: leave it out. truncate: cut off the beginning of the
            prompt, the same for all its answers; where the longest leaves no token of the prompt,
            it is left out too.

    Returns:
        What is kept, or None, and what was done, by name.
    """
    room = length - max(map(len, answered.answers))
    if len(answered.prompt) <= room:
        return answered, Counter()
    longer = f"longer than {length} tokens"
    if too_long == "drop":
        return None, Counter({f"{longer}: dropped": 1})
    if room < 1:
        return None, Counter({f"{longer} without a prompt: dropped": 1})
    counts = Counter({f"{longer}: beginning of the prompt cut off": 1})
    return answered._replace(prompt=answered.prompt[-room:]), counts


def _answer_row(answered: AnsweredPrompt | None, length: int, num_answers: int) -> Row:
    """Make a row; of nothing, one of padding."""
    shape = (num_answers, length)
    row: Row = {
        "tokens": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, np.float32),
        "lengths": np.zeros(num_answers, np.int32),
        "answer_mask": np.zeros(num_answers, np.float32),
        "margin": np.zeros((), np.float32),
        "weight": np.zeros((), np.float32),
    }
    if answered is None:
        return row
    row["margin"] = np.array(answered.margin, np.float32)
    row["weight"] = np.ones((), np.float32)
    start = len(answered.prompt)
    for k, answer in enumerate(answered.answers):
        end = start + len(answer)
        row["tokens"][k, :end] = np.concatenate([answered.prompt, answer])
        row["targets"][k, : end - 1] = row["tokens"][k, 1:end]
        row["loss_mask"][k, start - 1 : end - 1] = 1.0
        row["lengths"][k] = end
        row["answer_mask"][k] = 1.0
    return row


class WholeAnswerRows(NumberedRows):
    """All prompts once, in their order; rows after the last are padding of weight 0."""

    def __init__(
        self,
        answered: Sequence[AnsweredPrompt],
        *,
        length: int,
        num_answers: int,
        columns: Columns = _NONE,
    ) -> None:
        """Plan the rows.

        Args:
            answered: Prompts with answers, none longer than `length` or more than `num_answers`.
            length: T, tokens of a prompt with an answer.
            num_answers: K, answers of a row; where a prompt has fewer, the others are padding.
            columns: Further arrays of a row by name, with the number of the prompt first.

        Raises:
            ValueError: If a prompt does not fit, or a column has not an entry for each.
        """
        super().__init__()
        _check(answered, length, num_answers)
        self._answered, self._length, self._num_answers = tuple(answered), length, num_answers
        self._columns = dict(columns)
        for name, column in columns.items():
            if len(column) != len(answered):
                raise ValueError(
                    f"a column must have an entry for each of the {len(answered)} prompts; "
                    f"{name} has {len(column)}. Make it of the rows in their order."
                )

    def __len__(self) -> int:
        return len(self._answered)

    def _row(self, i: int) -> Row:
        answered = self._answered[i] if i < len(self) else None
        more = {
            name: np.asarray(column[i] if i < len(self) else np.zeros_like(column[0]))
            for name, column in self._columns.items()
            if len(column)
        }
        return _answer_row(answered, self._length, self._num_answers) | more

    def with_columns(self, columns: Columns) -> "WholeAnswerRows":
        """Give the same rows with more arrays in each; arguments: the constructor's."""
        return WholeAnswerRows(
            self._answered,
            length=self._length,
            num_answers=self._num_answers,
            columns=self._columns | dict(columns),
        )


class AnswerRows(NumberedRows):
    """Rows of all prompts, epoch after epoch, each in another order; every prompt once in each."""

    def __init__(self, whole: WholeAnswerRows, *, seed: int) -> None:
        """Put rows in the order of training.

        Args:
            whole: The rows.
            seed: Of the order.

        Raises:
            ValueError: If there are none.
        """
        super().__init__()
        if not len(whole):
            raise ValueError("there must be a prompt with answers to make rows of; got none.")
        self._whole, self._seed = whole, seed
        # Two, since a batch may straddle the end of an epoch.
        self._order = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        return permutation(self._seed, f"prompts of epoch {epoch}", len(self))

    def __len__(self) -> int:
        return len(self._whole)

    def _row(self, i: int) -> Row:
        epoch, number = divmod(i, len(self))
        return self._whole[int(self._order(epoch)[number])]

    def in_order(self) -> WholeAnswerRows:
        """Give the rows once and in the order of the prompts, to make columns of them."""
        return self._whole

    def with_columns(self, columns: Columns) -> "AnswerRows":
        """Give the same rows with more arrays in each, such as cached log-probabilities.

        Args:
            columns: Arrays by name; entry n belongs to row n of `in_order`.

        Raises:
            ValueError: If a column has not an entry for each row.
        """
        return AnswerRows(self._whole.with_columns(columns), seed=self._seed)


def choose_partners(
    prompts: Int64[np.ndarray, " answers"], *, seed: int
) -> Int64[np.ndarray, " answers"]:
    """Choose for each answer one of another prompt, all of them equally likely.

    The choice is the same in every epoch, so that what a reference makes of it can be kept.

    Args:
        prompts: A number for each answer; equal ones have the same prompt.
        seed: Of the choice.

    Raises:
        ValueError: If all have the same prompt.
    """
    total = len(prompts)
    order = np.argsort(prompts, kind="stable")
    first = np.searchsorted(prompts, prompts, side="left", sorter=order)
    own = np.searchsorted(prompts, prompts, side="right", sorter=order) - first
    others = total - own
    if total and not others.all():
        raise ValueError(
            "answers must be to at least two different prompts, for each to be put behind another; "
            f"got {total} to one. Give more prompts."
        )
    bits = random_bits(seed, "partners of answers", np.arange(total, dtype=np.uint64))
    drawn = (bits % np.maximum(others, 1).astype(np.uint64)).astype(np.int64)
    # Those of the same prompt lie together in `order`, and are stepped over.
    return order[np.where(drawn < first, drawn, drawn + own)] if total else order


def behind_another(
    answered: Sequence[AnsweredPrompt], partners: Int64[np.ndarray, " answers"], *, length: int
) -> list[AnsweredPrompt]:
    """Put behind each prompt its answer, and then that of its partner.

    Args:
        answered: Prompts with one answer each, which fit into `length`.
        partners: Number of the other answer; where it does not fit, its end is cut off.
        length: T, tokens of a prompt with an answer.
    """
    pairs = []
    for (prompt, (own,), margin), partner in zip(answered, partners.tolist(), strict=True):
        other = answered[partner].answers[0][: length - len(prompt)]
        pairs.append(AnsweredPrompt(prompt, (own, other), margin))
    return pairs


def _check(answered: Sequence[AnsweredPrompt], length: int, num_answers: int) -> None:
    for number, (prompt, answers, _) in enumerate(answered):
        longest = len(prompt) + max(map(len, answers))
        if not len(prompt) or longest > length or len(answers) > num_answers:
            raise ValueError(
                f"a prompt of at least one token must have at most {num_answers} answers, each "
                f"with it at most {length} tokens; prompt {number} of {len(prompt)} has "
                f"{len(answers)}, the longest with it {longest}. Use `fit_answers`, or longer rows."
            )
