"""Rows of demonstrations: whole examples side by side, each as if it were alone in its row.

An example of n tokens takes n places; at the last, the end of its last turn, nothing is predicted.
Examples of a row are numbered from 1 by `segment_ids`, positions count from 0 in each, and what is
left of a row is padding: all zeros. No example is cut in two.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from genai_jax.data.bin_packing import pack_best_fit
from genai_jax.data.random_order import permutation
from genai_jax.data.rows import NumberedRows, Row
from genai_jax.data.tokenizers import Ids

TooLong = Literal["drop", "truncate", "split"]


class LearntText(NamedTuple):
    """Ids, and which of them are learnt.

    Attributes:
        ids: Of an example.
        counted: Whether each is to be predicted from those before it.
    """

    ids: Ids
    counted: Bool[np.ndarray, " n"]


def fit_to_row(
    text: LearntText, length: int, too_long: TooLong
) -> tuple[list[LearntText], Counter[str]]:
    """Make an example fit into a row, or parts of it into several.

    Args:
        text: The example. Its first id is predicted from nothing, and never counts.
        length: T, tokens of a row, at least 2.
        too_long: What to do with more tokens. drop: leave it out. truncate: keep the first T, so
            that the end is lost. split: keep all in parts of T, each of which begins with the last
            token of the one before, so that all but the first token are predicted once; of what
            came before it a later part knows nothing else.

    Returns:
        What is kept, each with a token that counts, and what was done, by name.
    """
    ids, counted = text
    counts: Counter[str] = Counter()
    parts = [text]
    if len(ids) > length:
        counts[f"longer than {length} tokens: {_DONE[too_long]}"] += 1
        stride = length - 1
        starts = range(0, len(ids) - 1, stride) if too_long == "split" else range(1)
        parts = [LearntText(ids[i : i + length], counted[i : i + length]) for i in starts]
        if too_long == "drop":
            return [], counts
    kept = [part for part in parts if part.counted[1:].any()]
    if not kept:
        counts["dropped since no token of it counts"] += 1
    elif len(kept) < len(parts):
        counts["parts dropped since no token of them counts"] += len(parts) - len(kept)
    return kept, counts


_DONE = {"drop": "dropped", "truncate": "end cut off", "split": "split"}


class LearntTexts:
    """Many examples in flat arrays.

    Attributes:
        tokens: All of them, one after the other.
        counted: Whether each token is to be predicted.
        offsets: Where each example begins, and the end of the last.
    """

    def __init__(self, texts: Sequence[LearntText]) -> None:
        """Lay examples one after the other."""
        lengths = np.array([len(text.ids) for text in texts], np.int64)
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        none = np.zeros(0)
        self.tokens = np.concatenate([none, *(text.ids for text in texts)]).astype(np.int32)
        self.counted = np.concatenate([none, *(text.counted for text in texts)]).astype(bool)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " examples"]:
        """Tokens of each."""
        return np.diff(self.offsets)

    def row(self, chosen: Int64[np.ndarray, " held"], length: int) -> Row:
        """Put examples side by side; together they must have at most `length` tokens."""
        row = {
            "tokens": np.zeros(length, np.int32),
            "targets": np.zeros(length, np.int32),
            "loss_mask": np.zeros(length, np.float32),
            "segment_ids": np.zeros(length, np.int32),
            "positions": np.zeros(length, np.int32),
        }
        place = 0
        for segment, number in enumerate(chosen.tolist(), start=1):
            first, last = self.offsets[number : number + 2].tolist()
            end = place + last - first
            row["tokens"][place:end] = self.tokens[first:last]
            row["targets"][place : end - 1] = self.tokens[first + 1 : last]
            row["loss_mask"][place : end - 1] = self.counted[first + 1 : last]
            row["segment_ids"][place:end] = segment
            row["positions"][place:end] = np.arange(last - first)
            place = end
        return row


class _Plan:
    """Rows as places for examples, by their lengths.

    The places of an epoch are the same in every one; which example takes which of the places of its
    length, and in which order rows come, is another in each. So every epoch has as many rows, and
    the neighbours of an example change.
    """

    def __init__(self, lengths: Int64[np.ndarray, " examples"], length: int, packing: bool) -> None:
        self._lengths = lengths
        # Places are numbered by falling length.
        self.order = np.argsort(-lengths, kind="stable")
        alone = list(np.arange(len(lengths))[:, None])
        self.rows = pack_best_fit(lengths[self.order], length) if packing else alone

    def shuffled(self, seed: int, epoch: int) -> Int64[np.ndarray, " examples"]:
        """The example at each place, in an epoch."""
        mixed = permutation(seed, f"examples of epoch {epoch}", len(self._lengths))
        return mixed[np.argsort(-self._lengths[mixed], kind="stable")]


class ExampleRows(NumberedRows):
    """Rows of examples, epoch after epoch, each in another order; every example once in each."""

    def __init__(self, texts: LearntTexts, *, length: int, seed: int, packing: bool = True) -> None:
        """Plan the rows.

        Args:
            texts: Examples of at most `length` tokens each.
            length: T, tokens of a row.
            seed: Of the order.
            packing: Whether examples share rows; otherwise each has one.

        Raises:
            ValueError: If there is no example, or one is too long.
        """
        super().__init__()
        _check(texts, length)
        self._texts, self._length, self._seed = texts, length, seed
        self._plan = _Plan(texts.lengths, length, packing)
        # Two, since a batch may straddle the end of an epoch.
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(
        self, epoch: int
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " examples"]]:
        rows = permutation(self._seed, f"rows of examples of epoch {epoch}", len(self))
        return rows, self._plan.shuffled(self._seed, epoch)

    def __len__(self) -> int:
        return len(self._plan.rows)

    def _row(self, i: int) -> Row:
        epoch, number = divmod(i, len(self))
        rows, examples = self._epoch(epoch)
        return self._texts.row(examples[self._plan.rows[rows[number]]], self._length)


class WholeExampleRows(NumberedRows):
    """All examples once, for validation; rows after the last are padding."""

    def __init__(self, texts: LearntTexts, *, length: int, packing: bool = True) -> None:
        """Plan the rows; arguments: `ExampleRows`. There may be no example."""
        super().__init__()
        if len(texts):
            _check(texts, length)
        self._texts, self._length = texts, length
        self._plan = _Plan(texts.lengths, length, packing)

    def __len__(self) -> int:
        return len(self._plan.rows)

    def _row(self, i: int) -> Row:
        places = self._plan.rows[i] if i < len(self) else np.zeros(0, np.int64)
        return self._texts.row(self._plan.order[places], self._length)


def _check(texts: LearntTexts, length: int) -> None:
    if not len(texts):
        raise ValueError("there must be an example to make rows of; got none.")
    longest = int(texts.lengths.max())
    if longest > length:
        raise ValueError(
            f"examples must have at most the {length} tokens of a row; got one of {longest}. Pass "
            "them through `fit_to_row`, or choose longer rows."
        )
