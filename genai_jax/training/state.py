"""The train state: all that a step changes, as one pytree."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from genai_jax.parallel.sharding import shardings_for
from genai_jax.training.partition import Trains, trainable
from genai_jax.types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and returns.

    Attributes:
        step: Number of completed updates, int32.
        model: The parameters.
        opt_state: The optimizer's state.
        ema: Moving average of the parameters, in float32, or None.
        context: Whatever else the objective reads (a frozen reference, a coefficient), or None.
        traces: Power-function averages by name, in float32, from which others are made after the
            training; or None.
    """

    step: Any
    model: PyTree
    opt_state: PyTree
    ema: PyTree = None
    context: PyTree = None
    traces: PyTree = None

    @property
    def averaged(self) -> Any:
        """What is evaluated and sampled: the moving average where there is one."""
        return self.model if self.ema is None else self.ema


def init_state(
    init_model: Callable[[], PyTree],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Sequence[tuple[str, PartitionSpec]],
    *,
    ema: bool = False,
    context: PyTree | Callable[[], PyTree] = None,
    traces: Collection[str] = (),
    trains: Trains = None,
) -> TrainState:
    """Make the first state in place: every device draws its own part, and no host holds it all.

    Args:
        init_model: Draws the model; traced.
        optimizer: Whose state begins.
        mesh: The devices.
        rules: Sharding rules by parameter name; the optimizer's state and the average follow.
        ema: Whether to keep a moving average.
        context: What else the objective reads, or what makes it; traced.
        traces: Names of the averages that are kept for `posthoc_ema`.
        trains: Says by its name whether a parameter trains: the optimizer has no state for others.
    """

    def init() -> TrainState:
        model = init_model()
        return TrainState(
            jnp.zeros((), jnp.int32),
            model,
            optimizer.init(trainable(model, trains)),
            first_average(model) if ema else None,
            context() if callable(context) else context,
            {name: first_average(model) for name in traces} or None,
        )

    shardings = shardings_for(jax.eval_shape(init), mesh, rules)
    return jax.jit(init, out_shardings=shardings)()


def first_average(model: PyTree) -> PyTree:
    """Begin an average: a copy of the parameters in float32."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), model)


def abstract_like(state: PyTree) -> Any:
    """Describe a state, or a part of one (shapes, dtypes, shardings) without holding it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
