"""Where each parameter of ours lies in a family's tensors, and how it is turned.

A matrix of ours keeps the shape of what it means, [embed, heads, head]; theirs is flat, [out, in]
or [in, out]. GPT-2 has queries, keys and values side by side in one tensor.
"""

import math
import re
from collections.abc import Container
from typing import NamedTuple

import jax
import numpy as np

from genai_jax.interop.family import Family
from genai_jax.models.lm import LanguageModel, hidden_matrix
from genai_jax.nn.config import TransformerConfig
from genai_jax.paths import named_leaves

HEAD = "lm_head.weight"

_FUSED = ("query", "key", "value")
_PARTS = {"kernel": "weight", "scale": "weight", "table": "weight", "bias": "bias"}


class Slot(NamedTuple):
    """Where one parameter of one layer lies.

    Attributes:
        ours: Its name, such as layers/0/attention/query/kernel.
        shape: Its shape.
        theirs: Name of the tensor.
        inputs: How many of the first axes of a matrix are its input; 0 for all but matrices.
        turned: Whether theirs is [out, in].
        third: Which third of the last axis it is; None where the tensor is all its own.
    """

    ours: str
    shape: tuple[int, ...]
    theirs: str
    inputs: int
    turned: bool
    third: int | None

    @property
    def flat_shape(self) -> tuple[int, ...]:
        """Shape of theirs; of a third, without its neighbours."""
        if not self.inputs:
            return self.shape if self.ours.endswith("table") else (math.prod(self.shape),)
        rows = math.prod(self.shape[: self.inputs])
        columns = math.prod(self.shape[self.inputs :])
        return (columns, rows) if self.turned else (rows, columns)

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of the tensor that it lies in."""
        *first, last = self.flat_shape
        return (*first, last if self.third is None else 3 * last)

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """See theirs as ours: a view, of which parts can be read."""
        if self.third is not None:
            tensor = np.split(tensor, 3, axis=-1)[self.third]
        if not self.turned:
            return tensor.reshape(self.shape)
        outputs = self.shape[self.inputs :]
        axes = tensor.reshape(*outputs, *self.shape[: self.inputs])
        return np.moveaxis(axes, range(len(outputs)), range(self.inputs, len(self.shape)))

    def flatten(self, parameter: np.ndarray) -> np.ndarray:
        """Turn ours into theirs; of a third, without its neighbours."""
        if not self.turned:
            return parameter.reshape(self.flat_shape)
        return parameter.reshape(self.flat_shape[::-1]).T


def slots_of(family: Family, config: TransformerConfig, prefix: str) -> list[Slot]:
    """List where every parameter lies, in the order in which they are written.

    Args:
        family: Whose names to use.
        config: Shape of the model, its layers unrolled.
        prefix: In front of all names but the head's.
    """
    model = jax.eval_shape(lambda: LanguageModel(config, jax.random.key(0)))
    slots = [_slot(family, name, leaf.shape, prefix) for name, leaf in named_leaves(model)]
    order = {module: i for i, module in enumerate(family.modules)}

    def place(slot: Slot) -> tuple[int, int, int]:
        """First what is before the layers, then layer by layer, then what is behind."""
        module, layer = _module_of(slot.ours)
        rank = order.get(module, len(order))
        first = 1 if layer else 2 if rank > order["layers/{}/mlp/down"] else 0
        return first, int(layer or 0), rank

    return sorted(slots, key=place)


def _module_of(name: str) -> tuple[str, str]:
    """Split a name into its module, with {} for the layer's number, and that number."""
    module = name.rsplit("/", 1)[0]
    found = re.match(r"layers/(\d+)/", module)
    if found is None:
        return module, ""
    return f"layers/{{}}/{module[found.end() :]}", found[1]


def _slot(family: Family, name: str, shape: tuple[int, ...], prefix: str) -> Slot:
    module, layer = _module_of(name)
    part = name.rsplit("/", 1)[1]
    if module == "output":
        return Slot(name, shape, HEAD, 0, False, None)
    theirs = f"{prefix}{family.modules[module].format(layer)}.{_PARTS[part]}"
    axes = hidden_matrix(name)
    fused = [module.endswith(f"/{third}") for third in _FUSED]
    shared = sum(said == family.modules[module] for said in family.modules.values()) > 1
    return Slot(
        name,
        shape,
        theirs,
        inputs=0 if axes is None else axes[0],
        turned=family.turned and axes is not None,
        third=fused.index(True) if shared else None,
    )


def find_prefix(family: Family, names: Container[str]) -> str:
    """Find which of the family's prefixes the names of a checkpoint have; the first if none."""
    embedding = family.modules["embedding"]
    return next(
        (prefix for prefix in family.prefixes if f"{prefix}{embedding}.weight" in names),
        family.prefixes[0],
    )
