"""Products of rows and kernels whose gradients are fast on a CPU, too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


@jax.custom_jvp
def multiply(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """Multiply; the gradient of the kernel is the wider of the two products that it can be.

    A CPU computes $x^T dy$ of shape [I, O] at half of its speed where O is the small side, and
    $dy^T x$ at full speed. The barrier keeps the compiler from making them the same again.

    Args:
        x: Rows.
        kernel: What each row is multiplied by.
    """
    return x @ kernel


def _multiply_by_kernel(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Array:
    narrows = kernel.shape[0] > kernel.shape[1]
    return x @ (jax.lax.optimization_barrier(kernel.T).T if narrows else kernel)


multiply.defjvp(
    lambda primals, tangents: product_rule(jnp.matmul, _multiply_by_kernel, primals, tangents),
    symbolic_zeros=True,
)


def product_rule(
    of_x: Callable[..., Array],
    of_kernel: Callable[..., Array],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    r"""Differentiate what is linear in x and in the kernel: $y' = f(x', K) + g(x, K')$.

    For `jax.custom_jvp` with symbolic zeros. f and g are the same function of both, written so that
    the transposes, which are the gradients of x and of K, are fast.

    Args:
        of_x: f; it computes the value too.
        of_kernel: g.
        primals: x and K.
        tangents: x' and K', of which what does not change is a `SymbolicZero`.
    """
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    terms = []
    if not isinstance(x_dot, SymbolicZero):
        terms.append(of_x(x_dot, kernel))
    if not isinstance(kernel_dot, SymbolicZero):
        terms.append(of_kernel(x, kernel_dot))
    return of_x(x, kernel), sum(terms[1:], terms[0])
