"""Evaluates an objective on a whole split: every row once, and the same noise every time."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from genai_jax.parallel.sharding import batch_sharding, over_rows
from genai_jax.training.step import row_keys
from genai_jax.types import Array, Batch, Objective, PyTree

Evaluator = Callable[..., dict[str, float]]
"""`(model, check, context=None) -> values`; `check` is called between batches and may raise to
stop; `context` is what the objective reads beside."""

Totals = Callable[..., dict[str, np.ndarray]]
"""`(model, check, context=None) -> {name: [sum, weight]}`, float64."""


@runtime_checkable
class Rows(Protocol):
    """A split, row by row; rows past its end can be asked for too."""

    def __len__(self) -> int:
        """Count its rows."""

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        """Give one row: arrays by name."""


def make_totals(
    objective: Objective, mesh: Mesh, rows: Rows, batch_size: int, *, seed: int | None = None
) -> Totals:
    """Make a function that adds up every term of an objective over every row of a split.

    The sums of a batch are float32; they are added up in float64 on the host, in the order of the
    rows, so that the same model gives the same bits every time. Arguments: `make_evaluator`.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"The rows of an evaluation must be divisible by the devices; got {batch_size} rows "
            f"and {mesh.size} devices. Choose {-(-batch_size // mesh.size) * mesh.size}."
        )

    def sums(model: PyTree, batch: Batch, context: PyTree) -> dict[str, tuple[Array, Array]]:
        terms = objective(model, batch, context)
        return {name: (term.sum, term.weight) for name, term in terms.items()}

    sums_of_rows = over_rows(sums, mesh, (False, True, False), total=True)

    @jax.jit
    def sums_of(
        model: PyTree, batch: Batch, first: Array, context: PyTree
    ) -> dict[str, tuple[Array, Array]]:
        if seed is not None:
            numbers = first + jnp.arange(batch_size)
            batch = batch | {
                "key": row_keys(seed, 0, batch_size, "evaluate", first=first),
                "stratified": (numbers.astype(jnp.float32) + 0.5) / len(rows) % 1,
            }
        return sums_of_rows(model, batch, context)

    sharding = batch_sharding(mesh)

    def totals(
        model: PyTree, check: Callable[[], None] = lambda: None, context: PyTree = None
    ) -> dict[str, np.ndarray]:
        found: dict[str, Any] = {}
        for first in range(0, len(rows), batch_size):
            check()
            chosen = [rows[i] for i in range(first, first + batch_size)]
            batch = {
                name: jax.device_put(np.stack([row[name] for row in chosen]), sharding)
                for name in chosen[0]
            }
            sums_here = jax.device_get(sums_of(model, batch, np.int32(first), context))
            for name, pair in sums_here.items():
                found[name] = found.get(name, 0.0) + np.array(pair, np.float64)
        return found

    return totals


def make_evaluator(
    objective: Objective, mesh: Mesh, rows: Rows, batch_size: int, *, seed: int | None = None
) -> Evaluator:
    """Make a function that evaluates a model on every row of a split once.

    Args:
        objective: `(model, batch, context) -> Terms`.
        mesh: Rows are dealt out over all of its devices.
        rows: The split. Rows past its end, which fill the last batch, say by a `loss_mask` or a
            `weight` of zero that they count nothing.
        batch_size: Rows of a call; the devices divide it.
        seed: Of the noise of objectives that need some. Row i then has a `key` of its own and, of
            n rows, `stratified` time (i + 1/2) / n: functions of its number alone, so that two
            evaluations differ by their models only. None gives none: no dropout.

    Returns:
        A function that gives the mean of every term; NaN where nothing counted.

    Raises:
        ValueError: If the devices do not divide the batch.
    """
    totals_of = make_totals(objective, mesh, rows, batch_size, seed=seed)

    def evaluate(
        model: PyTree, check: Callable[[], None] = lambda: None, context: PyTree = None
    ) -> dict[str, float]:
        return means_of(totals_of(model, check, context))

    return evaluate


def means_of(totals: dict[str, np.ndarray]) -> dict[str, float]:
    """Divide sums by weights; nothing by nothing is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: float(total / weight) for name, (total, weight) in totals.items()}
