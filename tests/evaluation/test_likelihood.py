"""Likelihood over a whole split, against a model whose probabilities are known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.evaluation.likelihood import make_text_evaluator
from genai_jax.parallel.mesh import make_mesh
from genai_jax.types import Term

ROWS, T = 21, 5


class Rows:
    """A split of `ROWS` rows; those past the end count nothing."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        values = np.random.default_rng(i).standard_normal(T).astype(np.float32)
        return {"values": values, "loss_mask": np.full(T, float(i < ROWS), np.float32)}


def objective(model, batch, context):
    """The loss of a value x is `model` x^2."""
    assert "key" not in batch
    losses = model * jnp.square(batch["values"]) * batch["loss_mask"]
    return {"loss": Term(losses.sum(), batch["loss_mask"].sum())}


def expected(factor):
    values = np.stack([Rows()[i]["values"] for i in range(ROWS)]).astype(np.float64)
    return factor * np.square(values)


@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_every_row_counts_once_whatever_the_batch_and_the_mesh(fsdp, batch_size):
    evaluate = make_text_evaluator(objective, make_mesh(fsdp), Rows(), batch_size, num_bytes=77)
    values = evaluate(jnp.float32(3.0))
    assert values["loss"] == pytest.approx(expected(3).mean(), rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(expected(3).sum() / math.log(2) / 77, rel=1e-6)
    assert values == evaluate(jnp.float32(3.0))  # bit by bit
