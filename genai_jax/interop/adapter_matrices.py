"""Adapters as PEFT has them, one a module of transformers, and as ours, one a projection.

An adapter of theirs is A [R, in] and B [out, R]; ours are turned, and keep the axes of heads. GPT-2
has one module, `c_attn`, for queries, keys and values, and so one A for the three:

- read, all three get a copy of A and their third of B, and are free to part from then on;
- written, they are one adapter again where their A are still equal. Otherwise it is one of the sum
  of their ranks, the A above each other and the B as blocks on a diagonal: the same function. Who
  notes the ranks of the blocks can cut them again.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genai_jax.interop.family import Family
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import projections
from genai_jax.nn.linear import Linear
from genai_jax.nn.lora import Lora

_FUSED = ("query", "key", "value")


def divisor(rank: int, rslora: bool) -> float:
    r"""Give what alpha is divided by: R, or $\sqrt{R}$."""
    return rank**0.5 if rslora else float(rank)


class Matrices(NamedTuple):
    """An adapter of one module, as PEFT has it.

    Attributes:
        a: A, [R, in].
        b: B, [out, R].
        magnitude: m, [out], or None.
        alpha: Of which the factor is made.
        rslora: Whether it is divided by the root of R.
    """

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None
    alpha: float
    rslora: bool

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a)

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / divisor(self.rank, self.rslora)


class Place(NamedTuple):
    """Where the adapter of one projection of one layer lies.

    Attributes:
        name: Of the projection, or of the stack that holds it.
        layer: Which of a stack; None where there is none.
        module: Their name of the module, without what stands in front of all.
        third: Which third of the module's outputs it is; None where the module is all its own.
        linear: The projection, or the stack.
    """

    name: str
    layer: int | None
    module: str
    third: int | None
    linear: Linear

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the module."""
        outputs = math.prod(self.linear.out_shape) * (1 if self.third is None else 3)
        return outputs, math.prod(self.linear.in_shape)

    def ours(self, own: Matrices) -> Lora:
        """Turn an adapter of theirs into one of ours."""
        inputs, outputs = self.linear.in_shape, self.linear.out_shape
        return Lora(
            jnp.asarray(own.a.T.reshape(*inputs, own.rank)),
            jnp.asarray(own.b.T.reshape(own.rank, *outputs)),
            None if own.magnitude is None else jnp.asarray(own.magnitude.reshape(outputs)),
            alpha=own.alpha,
            rslora=own.rslora,
        )

    def theirs(self, dora: bool, rslora: bool) -> Matrices:
        """Turn ours into one of theirs; what has none gets one of rank 0.

        Args:
            dora: Whether there must be a magnitude: without one of ours it is that of the kernel.
            rslora: Whether alpha must be one that is divided by the root of the rank.
        """
        linear: Linear = self.linear
        if self.layer is not None:
            linear = jax.tree.map(lambda x: x[self.layer], linear)
        lora, inputs = linear.lora, math.prod(linear.in_shape)
        whole = linear.weights()
        if lora is None:
            a, b = np.zeros((0, inputs), np.float32), np.zeros((whole.shape[1], 0), np.float32)
            magnitude, alpha = None, 1.0
        else:
            a = np.asarray(lora.a[...]).reshape(inputs, lora.rank).T
            b = np.asarray(lora.b[...]).reshape(lora.rank, -1).T
            magnitude = None if lora.magnitude is None else np.asarray(lora.magnitude[...])
            same = lora.rslora == rslora
            alpha = lora.alpha if same else lora.scale * divisor(lora.rank, rslora)
            whole = whole if magnitude is not None else lora.merged(whole)
        if dora and magnitude is None:
            magnitude = np.linalg.norm(np.asarray(whole, np.float64), axis=0).astype(np.float32)
        return Matrices(a, b, None if magnitude is None else magnitude.reshape(-1), alpha, rslora)


def places_by_module(model: LanguageModel, family: Family) -> dict[str, list[Place]]:
    """List the projections of every layer by their modules, several where they are one there."""
    said = Counter(family.modules.values())
    places = []
    for name, linear in projections(model).items():
        found = re.fullmatch(r"layers/(\d+)/(.*)", name)
        below = found[2] if found else name.removeprefix("layers/")
        theirs = family.modules[f"layers/{{}}/{below}"]
        third = _FUSED.index(below.rsplit("/", 1)[1]) if said[theirs] > 1 else None
        if found:
            places.append(Place(name, None, theirs.format(found[1]), third, linear))
            continue
        layers = range(model.config.num_layers)
        places += [Place(name, i, theirs.format(i), third, linear) for i in layers]
    modules: dict[str, list[Place]] = {}
    for place in sorted(places, key=lambda place: (place.module, place.third or 0)):
        modules.setdefault(place.module, []).append(place)
    return modules


def divide(whole: Matrices, places: list[Place], blocks: list[int] | None) -> list[Matrices | None]:
    """Give each projection its own: the adapter, its block of it, or A and a third of B."""
    if places[0].third is None:
        return [whole]
    thirds = np.split(whole.b, 3)
    magnitudes = [None] * 3 if whole.magnitude is None else np.split(whole.magnitude, 3)
    if blocks is None or sum(blocks) != whole.rank:
        return [whole._replace(b=b, magnitude=m) for b, m in zip(thirds, magnitudes, strict=True)]
    own: list[Matrices | None] = []
    ends = np.cumsum(blocks)
    for rank, end, b, magnitude in zip(blocks, ends, thirds, magnitudes, strict=True):
        if np.any(np.delete(b, slice(end - rank, end), axis=1)):  # no longer what was noted
            return divide(whole, places, None)
        alpha = whole.scale * divisor(rank, whole.rslora)
        block = slice(end - rank, end)
        cut = Matrices(whole.a[block], b[:, block], magnitude, alpha, whole.rslora)
        own.append(cut if rank else None)
    return own


def unite(own: list[Matrices]) -> Matrices:
    """Make one adapter of those of a module: one A where it is the same, or blocks."""
    first = next(part for part in own if part.rank)
    if len(own) == 1:
        return first
    magnitude = None
    if first.magnitude is not None:
        magnitude = np.concatenate([part.magnitude for part in own])
    same = all(np.array_equal(part.a, first.a) and part.scale == first.scale for part in own)
    if same:
        return first._replace(b=np.concatenate([part.b for part in own]), magnitude=magnitude)
    rank = sum(part.rank for part in own)
    b = np.zeros((sum(len(part.b) for part in own), rank), np.float32)
    row = column = 0
    for part in own:
        factor = part.scale / first.scale if part.rank else 1.0
        b[row : row + len(part.b), column : column + part.rank] = part.b * np.float32(factor)
        row, column = row + len(part.b), column + part.rank
    alpha = first.scale * divisor(rank, first.rslora)
    return Matrices(np.concatenate([part.a for part in own]), b, magnitude, alpha, first.rslora)
