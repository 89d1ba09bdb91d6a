"""Names of the leaves of a pytree: `layers/0/attention/query/kernel`.

Sharding rules, optimizer groups and the storage format all speak of parameters by these names.
"""

from collections.abc import Callable
from typing import Any

import jax

from genai_jax.types import PyTree


def leaf_name(path: tuple[Any, ...]) -> str:
    """Join a JAX key path by slashes, leaving out the `value` that Flax adds below a parameter."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.removesuffix("/value")


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """List `(name, leaf)` in the order of `jax.tree.leaves`."""
    return [(leaf_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Map `function(name, leaf, *leaves_of_rest)` over a pytree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, *others: function(leaf_name(path), leaf, *others), tree, *rest
    )
