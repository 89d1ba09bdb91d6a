"""Affine maps whose kernels keep the shape of what they mean, such as [embed, heads, head]."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.lora import Lora
from genai_jax.nn.products import multiply
from genai_jax.nn.quantized import multiply_quantized, quantize_kernel

# Scale of the variance of kernels that end a branch: what DDPM has in place of zero.
ALMOST_ZERO = 1e-10


class Linear(nnx.Module):
    r"""Affine map $y = xW + b$ from `in_shape` to `out_shape`, which may have several axes each.

    Attributes:
        kernel: $W$, of shape `(*in_shape, *out_shape)`; of 8-bit integers where there are steps.
        steps: What each output's column of the kernel is to be multiplied by, of shape `out_shape`;
            None where the kernel is of floating-point numbers.
        lora: Low-rank change of W that is trained in its place; None where there is none.
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
        self.lora: Lora | None = nnx.data(None)
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
            y = multiply(rows, kernel.astype(x.dtype))
        else:
            y = multiply_quantized(rows, kernel, self.steps[...].reshape(-1))
        if self.lora is not None:
            y = y + self.lora.change(rows)
            if self.lora.magnitude is not None:
                y = y * self.lora.rescale(self.weights()).astype(y.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype).reshape(-1)
        return y.reshape(*batch_shape, *self.out_shape)

    def weights(self) -> Float[Array, "i o"]:
        """Give W as a matrix of floating-point numbers, without the change of an adapter."""
        kernel = self.kernel[...].reshape(math.prod(self.in_shape), -1)
        return kernel if self.steps is None else kernel * self.steps[...].reshape(-1)


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
