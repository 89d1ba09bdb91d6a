"""Computing again in the backward pass what was not kept, on a CPU.

There `jax.checkpoint` does nothing outside of a loop: the compiler drops its barriers, finds the
same thing computed twice, and keeps what the first time gave.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from genai_jax.types import PyTree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(
    function: Callable[[Array, PyTree], Array], x: Float[Array, "..."], rest: PyTree
) -> Float[Array, "..."]:
    """Compute `function(x, rest)`, of which the backward pass keeps the arguments alone.

    The second time zero times the gradient is added to x, so that it has to wait, and is not the
    same as the first time. Has no forward mode.

    Args:
        function: Reads no other arrays that change.
        x: Of floating-point numbers.
        rest: Whatever else it reads.
    """
    return function(x, rest)


def _forward(
    function: Callable[[Array, PyTree], Array], x: Array, rest: PyTree
) -> tuple[Array, tuple[Array, PyTree]]:
    return function(x, rest), (x, rest)


def _backward(
    function: Callable[[Array, PyTree], Array], kept: tuple[Array, PyTree], gradient: Array
) -> tuple[Any, ...]:
    x, rest = kept
    zero = 0 * gradient[(0,) * gradient.ndim]
    _, pull = jax.vjp(function, x + zero.astype(x.dtype), rest)
    given: tuple[Any, ...] = pull(gradient)
    return given


recomputed.defvjp(_forward, _backward)
