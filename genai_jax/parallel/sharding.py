"""Sharding as one table: ordered (path pattern, PartitionSpec) rules over parameter names."""

import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genai_jax.paths import map_named
from genai_jax.types import PyTree

Rules = Sequence[tuple[str, PartitionSpec]]


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """Find the spec of an array: the first rule whose pattern is found in its name.

    The spec is aligned to the right, since a stack of layers has one more axis in front. An axis
    that does not divide its dimension is left out: that dimension is replicated.

    Args:
        name: Such as `layers/0/mlp/up/kernel`, possibly behind a prefix (`opt_state/0/mu/`).
        shape: Of the array.
        mesh: Whose axes the rules name.
        rules: (pattern, spec) in order; what no rule names is replicated.
    """
    found = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
    if len(found) > len(shape):  # a statistic with fewer axes than its parameter
        return PartitionSpec()
    aligned = (None,) * (len(shape) - len(found)) + tuple(found)
    return PartitionSpec(
        *(
            axis if axis is not None and size % _size(mesh, axis) == 0 else None
            for axis, size in zip(aligned, shape, strict=True)
        )
    )


def _size(mesh: Mesh, axis: str | tuple[str, ...]) -> int:
    names = (axis,) if isinstance(axis, str) else axis
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def shardings_for(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """Give every leaf its sharding; optimizer state and averages follow their parameter by name."""
    return map_named(
        lambda name, leaf: NamedSharding(mesh, spec_for(name, leaf.shape, mesh, rules)), tree
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds everything."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are dealt out over all axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def constrain(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Ask the compiler to lay every leaf out so."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)
