"""Rows with numbers that something expensive computed once for each of them, before training.

A reference's log-probabilities of answers, for instance: they never change, so that no step needs
the reference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from genai_jax.data.rows import NumberedRows, Row, Rows


class ScoredRows(NumberedRows):
    """Rows with one more field.

    Rows are numbered within one epoch: a random order goes around these, not into them.

    Attributes:
        rows: The rows.
        name: Of the field.
        scores: Its values, [len(rows), ...].
    """

    def __init__(self, rows: Rows, scores: np.ndarray, name: str = "ref_log_probs"):
        """Put rows and scores together.

        Raises:
            ValueError: If there is not one score a row.
        """
        super().__init__()
        if len(scores) != len(rows):
            raise ValueError(
                f"`scores` must have one entry a row; got {len(scores)} and {len(rows)} rows. "
                "Score these rows."
            )
        self.rows = rows
        self.name = name
        self.scores = scores

    def __len__(self) -> int:
        """Count the rows of an epoch."""
        return len(self.rows)

    def _row(self, i: int) -> Row:
        number = i % len(self)
        return {**self.rows[number], self.name: self.scores[number]}


def score_rows_once(
    rows: Rows, score: Callable[[dict[str, Any]], Any], *, batch_size: int = 32
) -> np.ndarray:
    """Compute what a function says of all rows of an epoch, in batches of one size.

    Args:
        rows: Dictionaries of arrays of equal shapes.
        score: From a batch to numbers, [batch_size, ...].
        batch_size: Rows of a batch; the last is filled up with copies of its last row.

    Returns:
        The numbers, [len(rows), ...].

    Raises:
        ValueError: If there are no rows, or a number is not finite.
    """
    if not len(rows):
        raise ValueError("There must be rows to score; got none.")
    parts = []
    for start in range(0, len(rows), batch_size):
        numbers = [min(i, len(rows) - 1) for i in range(start, start + batch_size)]
        some = [rows[i] for i in numbers]
        batch = {name: np.stack([row[name] for row in some]) for name in some[0]}
        # One batch at a time: the next one waits for these numbers.
        found = np.asarray(score(batch))
        bad = [i for i, x in zip(numbers, found, strict=True) if not np.all(np.isfinite(x))]
        if bad:
            raise ValueError(
                f"Scores must be finite; got {found[bad[0] - start]} for row {bad[0]}. Look at "
                "that row, and at the model that scored it."
            )
        parts.append(found)
    return np.concatenate(parts)[: len(rows)]
