r"""Kernels as 8-bit integers: a quarter of the memory, and of what a step must read.

For inference, and as what stays frozen below low-rank adapters that are trained.

A kernel is $W_{io} \approx q_{io} s_o$ with a step $s_o$ for each output. What it multiplies is
split into two digits, $x_i \approx s (a_i + b_i / 254)$ with integers $|a_i|, |b_i| \le 127$, so
that both products are of 8-bit integers, which CPUs, GPUs and TPUs multiply fast and exactly; what
is lost of x is less than what is lost of W by a factor of a hundred. (Turned into floating-point
numbers first, as is usual, 8-bit kernels would be slower here than 32-bit ones:
benchmarks/README.md.)

Reference: Dettmers et al., "LLM.int8()", arXiv:2208.07339, section 2.1 (vector-wise absmax
quantization); the second digit takes the place of its mixed precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int8

_MOST = 127
_PARTS = 2 * _MOST  # of a step, that the second digit counts
_MOST_INPUTS = (2**31 - 1) // _MOST**2


def quantize_kernel(
    kernel: Float[Array, "..."], inputs: int, outputs: int
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    r"""Round a kernel to multiples of $s_o = \max_i |W_{io}| / 127$.

    Args:
        kernel: W; before its input and output axes there may be axes of a stack.
        inputs: Number of input axes.
        outputs: Number of output axes.

    Returns:
        q and s; s lacks the input axes.
    """
    kernel = kernel.astype(jnp.float32)
    first = kernel.ndim - inputs - outputs
    axes = tuple(range(first, first + inputs))
    steps = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True) / _MOST
    whole = jnp.round(kernel / jnp.where(steps > 0, steps, 1)).astype(jnp.int8)
    return whole, jnp.squeeze(steps, axes)


@jax.custom_jvp
def multiply_quantized(
    x: Float[Array, "n i"], kernel: Int8[Array, "i o"], steps: Float[Array, " o"]
) -> Float[Array, "n o"]:
    r"""Compute $x_i q_{io} s_o$, in the type of x; differentiated as if x were not rounded.

    Args:
        x: Rows.
        kernel: q.
        steps: s.
    """
    rows = x.shape[0]
    if kernel.shape[0] > _MOST_INPUTS:
        raise ValueError(
            f"an 8-bit kernel must have at most {_MOST_INPUTS:,} inputs, for 32 bits to hold their "
            f"sum; got {kernel.shape[0]:,}. Leave it in floating point."
        )
    wide = x.astype(jnp.float32)
    unit = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) / _MOST
    scaled = wide / jnp.where(unit > 0, unit, 1)
    high = jnp.round(scaled)
    low = jnp.round((scaled - high) * _PARTS)
    digits = jnp.concatenate([high, low]).astype(jnp.int8)
    sums = jnp.dot(digits, kernel, preferred_element_type=jnp.int32).astype(jnp.float32)
    return ((sums[:rows] + sums[rows:] / _PARTS) * unit * steps).astype(x.dtype)


def _differentiate(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (x, kernel, steps), (x_dot, _, steps_dot) = primals, tangents
    dot = jnp.zeros((x.shape[0], kernel.shape[1]), x.dtype)
    if not isinstance(x_dot, SymbolicZero):
        dot += x_dot @ (kernel * steps).astype(x.dtype)
    if not isinstance(steps_dot, SymbolicZero):
        dot += multiply_quantized(x, kernel, steps_dot)
    return multiply_quantized(x, kernel, steps), dot


multiply_quantized.defjvp(_differentiate, symbolic_zeros=True)
