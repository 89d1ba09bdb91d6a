"""Scores that are computed once: each row's own, whatever the batches, and none that is not one."""

import numpy as np
import pytest

from genai_jax.data.rows import NumberedRows
from genai_jax.data.scored_rows import score_rows_once


class Squares(NumberedRows):
    """Row i is i; beyond the epoch rows are others."""

    def __len__(self):
        return 7

    def _row(self, i):
        return {"x": np.float32([i, i * i])}


def sums(batch):
    assert batch["x"].shape == (3, 2)
    return batch["x"].sum(-1)


def test_every_row_gets_its_own_score_in_batches_of_one_size():
    scores = score_rows_once(Squares(), sums, batch_size=3)
    np.testing.assert_array_equal(scores, [i + i * i for i in range(7)])


def test_scores_that_are_not_finite_are_refused():
    def broken(batch):
        return np.where(batch["x"][:, 0] == 5, np.nan, 0.0)

    with pytest.raises(ValueError, match="must be finite; got nan for row 5"):
        score_rows_once(Squares(), broken, batch_size=3)


def test_it_can_be_given_up_between_two_batches():
    seen = []

    def check():
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        score_rows_once(
            Squares(), lambda batch: seen.append(1) or sums(batch), batch_size=3, check=check
        )
