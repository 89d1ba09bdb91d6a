"""How likely a model finds a held-out text: nats per token and bits per byte, over all of it."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from genai_jax.parallel.sharding import batch_sharding, over_rows
from genai_jax.types import Batch, Objective, PyTree

Evaluator = Callable[[PyTree, Callable[[], None]], dict[str, float]]
"""`(model, check) -> values`; `check` is called between batches and may raise to stop."""


@runtime_checkable
class Rows(Protocol):
    """A split, row by row; rows past its end can be asked for too."""

    def __len__(self) -> int:
        """Count its rows."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Give one row: arrays by name."""


def make_evaluator(
    objective: Objective,
    mesh: Mesh,
    rows: Rows,
    batch_size: int,
    num_bytes: int,
) -> Evaluator:
    r"""Make a function that evaluates a model on every row once.

    The sums of a batch are float32; they are added up in float64 on the host, in the order of the
    rows, so that the same model gives the same bits every time.

    Args:
        objective: `(model, batch, context) -> Terms`; batches have no key: no dropout.
        mesh: Rows are dealt out over all of its devices.
        rows: The split. Rows past its end, which fill the last batch, have a loss mask of zero.
        batch_size: Rows of a call; the devices divide it.
        num_bytes: Bytes of text that the predicted tokens stand for.

    Returns:
        A function that gives the mean of every term, and `bits_per_byte`: the loss summed over all
        tokens, over $\ln 2$ times `num_bytes`.

    Raises:
        ValueError: If the devices do not divide the batch.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"The rows of an evaluation must be divisible by the devices; got {batch_size} rows "
            f"and {mesh.size} devices. Choose {-(-batch_size // mesh.size) * mesh.size}."
        )

    def sums(model: PyTree, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        terms = objective(model, batch, None)
        return {name: (term.sum, term.weight) for name, term in terms.items()}

    sums_of = jax.jit(over_rows(sums, mesh, (False, True), total=True))
    sharding = batch_sharding(mesh)

    def evaluate(model: PyTree, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        totals: dict[str, Any] = {}
        for start in range(0, len(rows), batch_size):
            check()
            chosen = [rows[i] for i in range(start, start + batch_size)]
            batch = {
                name: jax.device_put(np.stack([row[name] for row in chosen]), sharding)
                for name in chosen[0]
            }
            for name, pair in jax.device_get(sums_of(model, batch)).items():
                totals[name] = totals.get(name, 0.0) + np.array(pair, np.float64)
        values = {name: float(total / weight) for name, (total, weight) in totals.items()}
        values["bits_per_byte"] = float(totals["loss"][0] / (math.log(2) * num_bytes))
        return values

    return evaluate
