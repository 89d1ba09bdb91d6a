"""Sharding as one table: ordered (path pattern, PartitionSpec) rules over parameter names."""

import re
from collections.abc import Callable, Sequence
from typing import Any

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


def over_rows(
    function: Callable[..., Any], mesh: Mesh, dealt: Sequence[bool], *, total: bool = False
) -> Callable[..., Any]:
    """Let every device compute its own rows; to be called in `jit`.

    With parameters in one piece a device needs no other to do so (fast on CPU), and sees its rows
    alone. Where `fsdp` cuts them they are the compiler's to gather, and the function sees all rows.

    Args:
        function: Of positional arguments. What it gives has one entry a row, as leading axis, or
            is a sum over rows.
        mesh: Its devices divide the rows.
        dealt: Of each argument, whether it has one entry a row; of others every device has all.
        total: Whether the results are sums over rows: they are then added up over the devices.
    """
    if mesh.size == 1:
        return function
    if mesh.shape["fsdp"] == 1:
        specs = tuple(PartitionSpec(mesh.axis_names) if rows else PartitionSpec() for rows in dealt)

        def of_own_rows(*arguments: PyTree) -> PyTree:
            results = function(*arguments)
            return jax.lax.psum(results, mesh.axis_names) if total else results

        return jax.shard_map(
            of_own_rows,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec() if total else PartitionSpec(mesh.axis_names),
            check_vma=False,
        )

    def of_all_rows(*arguments: PyTree) -> PyTree:
        laid_out = [
            constrain(argument, batch_sharding(mesh)) if rows else argument
            for argument, rows in zip(arguments, dealt, strict=True)
        ]
        results = function(*laid_out)
        return results if total else constrain(results, batch_sharding(mesh))

    return of_all_rows
