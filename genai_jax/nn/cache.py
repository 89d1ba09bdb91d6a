"""Keys and values of the tokens that a layer has seen: of all of them, or of a window, in a ring.

A layer that sees everything has a slot for every position. A sliding layer has as many slots as its
window, and position p lies in slot p modulo their number: what is written is never moved. They may
be kept as 8-bit integers. B rows, T new tokens, S slots, K heads of size H, W window. Heads lie
before slots, as attention multiplies them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, Shaped


class KeyValues(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        key: Of all heads.
        value: Of all heads.
        key_scale: What 8-bit keys are to be multiplied by, one number for each vector; None where
            they are floating-point numbers.
        value_scale: The same of the values.
    """

    key: Float[Array, "b k s h"] | Int8[Array, "b k s h"]
    value: Float[Array, "b k s h"] | Int8[Array, "b k s h"]
    key_scale: Float[Array, "b k s 1"] | None = None
    value_scale: Float[Array, "b k s 1"] | None = None


def empty_key_values(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, *, quantized: bool
) -> KeyValues:
    """Make slots with nothing in them.

    Args:
        shape: (..., B, K, S, H).
        dtype: Of keys and values.
        quantized: Whether they are 8-bit integers instead.
    """
    if not quantized:
        return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    whole, scale = jnp.zeros(shape, jnp.int8), jnp.zeros((*shape[:-1], 1), jnp.float32)
    return KeyValues(whole, whole, scale, scale)


def _quantize(x: Float[Array, "b k t h"]) -> tuple[Int8[Array, "b k t h"], Float[Array, "b k t 1"]]:
    r"""Round a vector to multiples of $\max_i |x_i| / 127$."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def _like(cache: KeyValues, key: Array, value: Array) -> KeyValues:
    """Bring new keys and values into a cache's form."""
    if cache.key_scale is None:
        return KeyValues(key.astype(cache.key.dtype), value.astype(cache.key.dtype))
    (key, key_scale), (value, value_scale) = _quantize(key), _quantize(value)
    return KeyValues(key, value, key_scale, value_scale)


def _numbers(held: KeyValues) -> KeyValues:
    """Give keys and values as floating-point numbers."""
    if held.key_scale is None or held.value_scale is None:
        return held
    return KeyValues(held.key * held.key_scale, held.value * held.value_scale)


class CachePlan(NamedTuple):
    """What happens to all caches of one kind as new tokens come.

    Attributes:
        visible: What each new token may attend to: the slots, and behind them the new tokens
            themselves where they are written only afterwards.
        first: The slot of the first new token.
        source: Where tokens come several at a time into a ring: which of them each slot takes, -1
            where it keeps what it has; None where they are written one behind the other.
    """

    visible: Bool[Array, "b t seen"]
    first: Int[Array, " b"]
    source: Int[Array, "b s"] | None = None


def plan_full(slots: int, positions: Int[Array, "b t"]) -> CachePlan:
    """Plan for a layer that sees everything: new tokens follow those before."""
    visible = jnp.arange(slots) <= positions[:, :, None]
    return CachePlan(visible, positions[:, 0])


def plan_ring(
    slots: int, window: int, positions: Int[Array, "b t"], lengths: Int[Array, " b"], reach: int = 1
) -> CachePlan:
    r"""Plan for a sliding layer, whose slot s holds the newest position p with $p \equiv s$.

    Args:
        slots: S; at least W and `reach` - 1 more, unless no position exceeds it.
        window: W, tokens that a token sees, itself among them.
        positions: Of the new tokens, consecutive in a row.
        lengths: Tokens of a row in all: what comes behind is padding, and never overwrites a token.
        reach: So many tokens, or fewer, push out nothing that any of them sees.
    """
    first, last = positions[:, :1], positions[:, -1:]
    if positions.shape[1] == 1:
        held = _newest(last, slots)[:, None]
        visible = (held >= 0) & (positions[:, :, None] - held < window)
        return CachePlan(visible, first[:, 0] % slots)
    newest = _newest(jnp.minimum(last, lengths[:, None] - 1), slots)
    takes = newest - first
    source = jnp.where(takes >= 0, takes, -1)
    if positions.shape[1] <= reach:
        # Written first, so that every token sees the others in the same order, however many come
        # at a time, and what it sums is the same to the last bit.
        behind = positions[:, :, None] - newest[:, None]
        visible = (newest >= 0)[:, None] & (behind >= 0) & (behind < window)
        return CachePlan(visible, first[:, 0], source)
    # They may push out what the first of them still sees: they are written afterwards.
    held = _newest(first - 1, slots)[:, None]
    behind = positions[:, :, None] - held
    old = (held >= 0) & (behind < window)
    behind = positions[:, :, None] - positions[:, None, :]
    new = (behind >= 0) & (behind < window)
    return CachePlan(jnp.concatenate([old, new], axis=-1), first[:, 0], source)


def _newest(position: Int[Array, "b 1"], slots: int) -> Int[Array, "b s"]:
    """Say which position each slot holds once `position` is written; negative where none."""
    return position - (position - jnp.arange(slots)) % slots


def extend(
    cache: KeyValues,
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    plan: CachePlan,
) -> tuple[KeyValues, KeyValues]:
    """Put new keys and values into a cache.

    Returns:
        The cache, and what the new tokens attend to, as `plan.visible` has it.
    """
    new = _like(cache, *(jnp.swapaxes(x, 1, 2) for x in (key, value)))
    if plan.source is None:
        cache = jax.tree.map(lambda old, x: _write(old, x, plan.first), cache, new)
        return cache, _numbers(cache)
    place = plan.source[:, None, :, None]

    def take(old: Array, x: Array) -> Array:
        taken = jnp.take_along_axis(x, jnp.maximum(place, 0), axis=2)
        return jnp.where(place < 0, old, taken)

    written = jax.tree.map(take, cache, new)
    if plan.visible.shape[-1] == place.shape[2]:
        return written, _numbers(written)
    seen = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=2), cache, new)
    return written, _numbers(seen)


def _write(
    slots: Shaped[Array, "b k s h"], new: Shaped[Array, "b k t h"], first: Int[Array, " b"]
) -> Shaped[Array, "b k s h"]:
    """Put t tokens into each row's slots, one behind the other."""
    return jax.vmap(lambda row, x, i: jax.lax.dynamic_update_slice_in_dim(row, x, i, 1))(
        slots, new, first
    )
