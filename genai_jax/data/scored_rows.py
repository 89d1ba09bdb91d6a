"""What something expensive says of each row, computed once before training.

A reference's log-probabilities of answers, for instance: they never change, so that no step needs
the reference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from genai_jax.data.rows import Rows


def score_rows_once(
    rows: Rows,
    score: Callable[[dict[str, Any]], Any],
    *,
    batch_size: int = 32,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Compute what a function says of all rows of an epoch, in batches of one size.

    Args:
        rows: Dictionaries of arrays of equal shapes.
        score: From a batch to numbers, [batch_size, ...].
        batch_size: Rows of a batch; the last is filled up with copies of its last row.
        check: Is called before each batch; may raise, to give up.

    Returns:
        The numbers, [len(rows), ...].

    Raises:
        ValueError: If there are no rows, or a number is not finite.
    """
    if not len(rows):
        raise ValueError("There must be rows to score; got none.")
    parts = []
    for start in range(0, len(rows), batch_size):
        check()
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
