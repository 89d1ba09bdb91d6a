"""Affine maps whose kernels keep the shape of what they mean, such as [embed, heads, head]."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.quantized import multiply_quantized, quantize_kernel

# Scale of the variance of kernels that end a branch: what DDPM has in place of zero.
ALMOST_ZERO = 1e-10


class Linear(nnx.Module):
    r"""Affine map $y = xW + b$ from `in_shape` to `out_shape`, which may have several axes each.

    Attributes:
        kernel: $W$, of shape `(*in_shape, *out_shape)`; of 8-bit integers where there are steps.
        steps: What each output's column of the kernel is to be multiplied by, of shape `out_shape`;
            None where the kernel is of floating-point numbers.
        bias: $b$, of shape `out_shape`, or None.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        key: PRNGKeyArray,
        *,
        init_std: float,
        uniform: bool = False,
        use_bias: bool = False,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Draw the kernel with standard deviation `init_std`, normal or uniform; bias zero."""
        shape = (*in_shape, *out_shape)
        if uniform:
            kernel = 3**0.5 * init_std * jax.random.uniform(key, shape, jnp.float32, -1, 1)
        else:
            kernel = init_std * jax.random.normal(key, shape, jnp.float32)
        self.kernel = nnx.Param(kernel.astype(param_dtype))
        self.steps: nnx.Param | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(out_shape, param_dtype)) if use_bias else None
        self.in_shape = in_shape
        self.out_shape = out_shape

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Contract the trailing `in_shape` axes of `x`; computes in the dtype of `x`."""
        batch_shape = x.shape[: x.ndim - len(self.in_shape)]
        # One plain matrix product over flattened tokens: weight gradients that contract two batch
        # axes are slow on CPU (benchmarks/README.md).
        rows = x.reshape(-1, math.prod(self.in_shape))
        kernel = self.kernel[...].reshape(rows.shape[-1], -1)
        if self.steps is None:
            y = _multiply(rows, kernel.astype(x.dtype))
        else:
            y = multiply_quantized(rows, kernel, self.steps[...].reshape(-1))
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype).reshape(-1)
        return y.reshape(*batch_shape, *self.out_shape)


def quantize_linears(model: nnx.Module) -> Any:
    """Copy a model with kernels of 8-bit integers, for inference; tables and norms stay.

    Args:
        model: Any; its layers may be stacked.
    """
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear) and module.steps is None:
            whole, steps = quantize_kernel(
                module.kernel[...], len(module.in_shape), len(module.out_shape)
            )
            module.kernel, module.steps = nnx.Param(whole), nnx.Param(steps)
    return model


def scaled_std(fan_in: int, fan_out: int, scale: float = 1.0) -> float:
    r"""Compute the initial standard deviation of a kernel: $\sqrt{2 s / (n_{in} + n_{out})}$.

    It keeps variances, forwards and backwards, halfway (Glorot and Bengio, AISTATS 2010, eq. 12).

    Args:
        fan_in: Inputs that an output is made from: channels × pixels.
        fan_out: Outputs that an input goes to.
        scale: s, of the variance.
    """
    return math.sqrt(2 * scale / (fan_in + fan_out))


@jax.custom_jvp
def _multiply(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """Multiply; the gradient of the kernel is the wider of the two products that it can be.

    A CPU computes $x^T dy$ of shape [I, O] at half of its speed where O is the small side, and
    $dy^T x$ at full speed. The barrier keeps the compiler from making them the same again.
    """
    return x @ kernel


def _multiply_by_kernel(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Array:
    narrows = kernel.shape[0] > kernel.shape[1]
    return x @ (jax.lax.optimization_barrier(kernel.T).T if narrows else kernel)


_multiply.defjvp(
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
