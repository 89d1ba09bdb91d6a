"""What of a model trains, told by the names of its parameters.

The part that trains is the model itself or, where some of it is frozen, a dictionary of the others
by name: gradients and the optimizer's state then exist for these alone.
"""

from collections.abc import Callable

import jax

from genai_jax.paths import map_named, named_leaves
from genai_jax.types import PyTree

Trains = Callable[[str], bool] | None
"""Says by its name whether a parameter trains; None: all do."""


def trainable(model: PyTree, trains: Trains) -> PyTree:
    """Take what trains out of a model.

    Raises:
        ValueError: If nothing does.
    """
    if trains is None:
        return model
    part = {name: leaf for name, leaf in named_leaves(model) if trains(name)}
    if not part:
        names = [name for name, _ in named_leaves(model)]
        raise ValueError(
            "something must train; no parameter's name was chosen, of " + ", ".join(names[:5])
        )
    return part


def with_trainable(model: PyTree, part: PyTree, trains: Trains) -> PyTree:
    """Put what trains back into a model; the rest has no gradient."""
    if trains is None:
        return part
    frozen = jax.tree.map(jax.lax.stop_gradient, model)
    return map_named(lambda name, leaf: part.get(name, leaf), frozen)
