"""The one storage format: a flat dictionary of arrays by name, in which layers are stacked.

A run that scans over its layers holds `layers/attention/query/kernel` with a leading axis of
layers. A run that unrolls them holds `layers/0/attention/query/kernel`, `layers/1/...`. On disk
both are the former, optimizer state and moving averages too, so that either can continue the other.
"""

import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from genai_jax.paths import named_leaves
from genai_jax.types import PyTree

# `layers/<i>/`, at the start of a name or of one of its parts.
_LAYER = re.compile(r"(?:(?<=/)|^)layers/(\d+)(?=/|$)")


class StorageError(ValueError):
    """A stored tree and the tree that is asked for differ in names, shapes or dtypes."""


class _Slot(NamedTuple):
    """Where the leaves of one stored array come from.

    Attributes:
        members: Positions in `jax.tree.leaves(tree)`, in the row-major order of `grid`.
        grid: Leading axes of the stored array that count layers; empty for a lone leaf.
    """

    members: tuple[int, ...]
    grid: tuple[int, ...]


def _is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key, which is stored as its key data."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _slots(tree: PyTree) -> dict[str, _Slot]:
    """Plan the stored names of a tree: which leaves are stacked into which array.

    Layers are stacked where they form a full grid of equal shapes and dtypes. Others (layers of
    different kinds, side by side) have no stacked form and keep the names that they have.
    """
    named = named_leaves(tree)
    groups: dict[str, dict[tuple[int, ...], int]] = {}
    for position, (name, _) in enumerate(named):
        index = tuple(int(i) for i in _LAYER.findall(name))
        group = groups.setdefault(_LAYER.sub("layers", name), {})
        if index in group:
            raise StorageError(f"leaves must have distinct names; two are called `{name}`")
        group[index] = position
    slots = {}
    for stored_name, group in groups.items():
        grid = tuple(max(axis) + 1 for axis in zip(*group, strict=False))
        full = sorted(group) == list(itertools.product(*map(range, grid)))
        if (
            full
            and len({(np.shape(named[p][1]), _dtype(named[p][1])) for p in group.values()}) == 1
        ):
            slots[stored_name] = _Slot(tuple(group[index] for index in sorted(group)), grid)
        else:
            slots |= {named[p][0]: _Slot((p,), ()) for p in group.values()}
    return slots


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype


def _stacked_sharding(sharding: Any, axes: int) -> Any:
    """The sharding of a stack of equally sharded arrays: the axes of layers are not cut."""
    if isinstance(sharding, NamedSharding) and axes:
        spec = PartitionSpec(*(None,) * axes, *sharding.spec)
        return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return sharding


@functools.cache
def _stacker(grid: tuple[int, ...], sharding: Any) -> Any:
    def stack(arrays):
        return jnp.stack(arrays).reshape(*grid, *arrays[0].shape)

    return jax.jit(stack, out_shardings=_stacked_sharding(sharding, len(grid)))


@functools.cache
def _unstacker(grid: tuple[int, ...], shardings: tuple[Any, ...]) -> Any:
    def unstack(stacked):
        rows = stacked.reshape(-1, *stacked.shape[len(grid) :])
        return tuple(rows[i] for i in range(math.prod(grid)))

    return jax.jit(unstack, out_shardings=shardings)


def to_storage(tree: PyTree) -> dict[str, jax.Array]:
    """Flatten a tree to arrays by name, stacking `layers/<i>/rest` to `layers/rest`.

    Args:
        tree: Any pytree of arrays. Typed PRNG keys become their key data.

    Returns:
        Arrays by name. A leaf that needs no stacking is handed through, not copied.

    Raises:
        StorageError: If two leaves have the same name.
    """
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]
    flat = {}
    for name, slot in _slots(tree).items():
        arrays = [jnp.asarray(leaves[position]) for position in slot.members]
        flat[name] = _stacker(slot.grid, arrays[0].sharding)(arrays) if slot.grid else arrays[0]
    return flat


def storage_like(like: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe what `to_storage` makes of a tree: shapes, dtypes and, where given, shardings.

    Args:
        like: A pytree of arrays or of `jax.ShapeDtypeStruct`.
    """
    leaves = jax.tree.leaves(like)
    described = {}
    for name, slot in _slots(like).items():
        leaf = leaves[slot.members[0]]
        plain = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        described[name] = jax.ShapeDtypeStruct(
            (*slot.grid, *np.shape(plain)),
            _dtype(plain),
            sharding=_stacked_sharding(getattr(leaf, "sharding", None), len(slot.grid)),
        )
    return described


def check_layout(stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a stored tree whose names, shapes or dtypes are not those that are asked for.

    Args:
        stored: Anything with `.shape` and `.dtype`, by name.
        wanted: The same, as `storage_like` gives it.

    Raises:
        StorageError: Naming all that is missing, unexpected or misshapen.
    """
    faults = [f"missing: {name}" for name in wanted if name not in stored]
    faults += [f"unexpected: {name}" for name in stored if name not in wanted]
    for name in wanted.keys() & stored.keys():
        have, want = (f"{jnp.dtype(x.dtype)}{list(x.shape)}" for x in (stored[name], wanted[name]))
        if have != want:
            faults.append(f"misshapen: {name} is {have}, needed {want}")
    if faults:
        shown = [*sorted(faults)[:20], *([f"... and {len(faults) - 20} more"] * (len(faults) > 20))]
        raise StorageError(
            "a stored tree must fit the model that reads it, in names, shapes and dtypes; got\n  "
            + "\n  ".join(shown)
            + "\nGive the configuration that the tree was saved with."
        )


def from_storage(flat: dict[str, Any], like: PyTree) -> PyTree:
    """Rebuild a tree from its stored form: the inverse of `to_storage`, stacked or unrolled.

    Args:
        flat: Arrays by name, as `to_storage` gives them.
        like: A tree of arrays or `jax.ShapeDtypeStruct` that says structure and shardings.

    Returns:
        A tree with the structure of `like`; leaves are placed where the leaves of `like` are.

    Raises:
        StorageError: If names, shapes or dtypes differ.
    """
    check_layout(flat, storage_like(like))
    wanted, structure = jax.tree.flatten(like)
    shardings = [getattr(leaf, "sharding", None) for leaf in wanted]
    leaves: list[Any] = [None] * len(wanted)
    for name, (members, grid) in _slots(like).items():
        if grid:
            parts = _unstacker(grid, tuple(shardings[p] for p in members))(flat[name])
        else:
            sharding = shardings[members[0]]
            parts = (jax.device_put(flat[name], sharding) if sharding else jnp.asarray(flat[name]),)
        for position, part in zip(members, parts, strict=True):
            leaf = wanted[position]
            if _is_key(leaf):
                part = jax.random.wrap_key_data(part, impl=jax.random.key_impl(leaf))
            leaves[position] = part
    return jax.tree.unflatten(structure, leaves)
