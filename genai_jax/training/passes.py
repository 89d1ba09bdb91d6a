"""Several updates from one batch: epochs over its rows, each in minibatches.

What reinforcement learning does with the rows that it was expensive to draw. All updates are part
of one step, so that a checkpoint never stands in the middle of a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from genai_jax.parallel.sharding import batch_sharding
from genai_jax.types import Array, Batch, Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class Passes:
    """How often a batch is used.

    Attributes:
        epochs: Times that each row is used.
        minibatches: Parts of an epoch, of rows that are drawn anew for each, with an update each;
            of one part the rows keep their order.
    """

    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")

    @property
    def updates(self) -> int:
        """Updates of a step."""
        return self.epochs * self.minibatches


ONE_PASS = Passes()


def in_passes(
    update: Callable[[Any, Array, Batch], tuple[Any, Metrics]],
    passes: Passes,
    state: Any,
    batch: Batch,
    seed: int,
    mesh: Mesh,
) -> tuple[Any, Metrics]:
    """Make all updates of a step.

    Args:
        update: `(state, number, rows) -> (state, metrics)`; number counts the updates of the run.
            Where there are several, the rows' `update` counts those of this step.
        passes: How many, and of which rows.
        state: With `step`, which no update changes.
        batch: All rows.
        seed: Of the order of rows.
        mesh: Over whose axis `data` the rows of a minibatch are dealt out.

    Returns:
        The state, and metrics added up over the updates.
    """
    if passes.updates == 1:
        return update(state, state.step, batch)
    rows = jax.tree.leaves(batch)[0].shape[0]
    size = rows // passes.minibatches
    sharding = batch_sharding(mesh)

    def order(epoch: Array) -> Array:
        if passes.minibatches == 1:
            return jnp.arange(rows)[None]
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(jax.random.fold_in(key, crc32(b"order")), epoch)
        return jax.random.permutation(key, rows).reshape(passes.minibatches, size)

    chosen = jax.vmap(order)(jnp.arange(passes.epochs)).reshape(passes.updates, size)

    def one(state: PyTree, turn: tuple[Array, Array]) -> tuple[PyTree, Metrics]:
        number, places = turn
        part = jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x[places], sharding), batch
        ) | {"update": jnp.full(size, number, jnp.int32)}
        return update(state, state.step * passes.updates + number, part)

    state, metrics = jax.lax.scan(one, state, (jnp.arange(passes.updates), chosen))
    return state, jax.tree.map(lambda x: x.sum(0), metrics)
