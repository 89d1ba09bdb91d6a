"""What an optimizer sees: a model as a dictionary of float32 arrays by name.

So its state carries the names of the parameters, and whatever it treats apart it tells by name,
never by the number of axes: a stack of layers is updated as its layers would be.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float

from genai_jax.paths import map_named, named_leaves
from genai_jax.types import PyTree

Arrays = dict[str, Any]
"""Arrays by name."""

MatrixAxes = tuple[int, int]
"""Numbers of input and of output axes: the last axes of a matrix, input first."""


def by_name(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let a transformation of dictionaries of float32 arrays work on any tree of arrays."""

    def flat(tree: PyTree) -> Arrays:
        return {name: leaf.astype(jnp.float32) for name, leaf in named_leaves(tree)}

    def init(params: PyTree) -> PyTree:
        return inner.init(flat(params))

    def update(gradients: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = inner.update(flat(gradients), state, flat(params))
        return map_named(lambda name, _: updates[name], gradients), state

    return optax.GradientTransformation(init, update)


def divide(
    groups: Mapping[str, optax.GradientTransformation], group_of: Callable[[str], str]
) -> optax.GradientTransformation:
    """Give each group of arrays, told by name, a transformation of its own."""

    def members(arrays: Arrays, group: str) -> Arrays:
        return {name: array for name, array in arrays.items() if group_of(name) == group}

    def init(params: Arrays) -> dict[str, PyTree]:
        return {group: inner.init(members(params, group)) for group, inner in groups.items()}

    def update(
        gradients: Arrays, state: dict[str, PyTree], params: Arrays
    ) -> tuple[Arrays, dict[str, PyTree]]:
        updates: Arrays = {}
        after: dict[str, PyTree] = {}
        for group, inner in groups.items():
            part, after[group] = inner.update(
                members(gradients, group), state[group], members(params, group)
            )
            updates |= part
        return updates, after

    return optax.GradientTransformation(init, update)


def as_matrices(
    name: str, array: Float[Array, "..."], axes: MatrixAxes
) -> Float[Array, "*stack rows columns"]:
    """View an array as matrices: the last input axes are rows, the last output axes columns.

    Raises:
        ValueError: If it has fewer axes than that.
    """
    inputs, outputs = axes
    split = array.ndim - outputs
    stack = split - inputs
    if min(inputs, outputs) < 1 or stack < 0:
        raise ValueError(
            f"A hidden matrix must have its input and output axes, one of each at least; `{name}` "
            f"has shape {array.shape} and is said to have {inputs} and {outputs}. "
            "Correct what the model says of its hidden matrices."
        )
    shape = array.shape
    return array.reshape(*shape[:stack], math.prod(shape[stack:split]), math.prod(shape[split:]))
