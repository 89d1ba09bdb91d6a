"""Convolutions of images, NHWC, with kernels HWIO: 3×3, strided, and after a nearest-resize.

B images, H rows, W columns, I input and O output channels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.linear import scaled_std
from genai_jax.nn.products import product_rule


class Conv(nnx.Module):
    r"""$y_{hwo} = \sum_{ijc} x_{sh+i,\,sw+j,\,c} K_{ijco} + b_o$, zero outside of the image.

    Where the stride s is 2 and the size even, the odd row of padding is at the end (TensorFlow's
    SAME), so that output (h, w) is centred on input (2 h + 1, 2 w + 1) for 3×3.

    Attributes:
        kernel: K, [size, size, I, O].
        bias: b, [O].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key: PRNGKeyArray,
        *,
        size: int = 3,
        stride: int = 1,
        init_scale: float = 1.0,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Draw the kernel uniformly, its variance `init_scale` over the mean fan; bias zero."""
        shape = (size, size, in_channels, out_channels)
        std = scaled_std(size**2 * in_channels, size**2 * out_channels, init_scale)
        kernel = jax.random.uniform(key, shape, jnp.float32, -1, 1) * (3**0.5 * std)
        self.kernel = nnx.Param(kernel.astype(param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_channels,), param_dtype))
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Convolve; computes in the dtype of `x`."""
        kernel = self.kernel[...].astype(x.dtype)
        centred = self.stride == 1 and kernel.shape[0] % 2 == 1
        if centred and jax.default_backend() == "cpu":
            y = _convolve_on_cpu(x, kernel)
        else:
            y = _convolve(x, kernel, self.stride)
        return y + self.bias[...].astype(x.dtype)


def _convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], stride: int = 1
) -> Float[Array, "b h2 w2 o"]:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_jvp
def _convolve_on_cpu(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h w o"]:
    """Convolve, by another form where something is differentiated and its transpose is faster."""
    return _convolve(x, kernel)


def _differentiate(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    x, kernel = primals
    return product_rule(*_fastest_forms(x.shape, kernel.shape), primals, tangents)


_convolve_on_cpu.defjvp(_differentiate, symbolic_zeros=True)


def _fastest_forms(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Choose the forms whose transposes give the gradients of image and kernel soonest.

    The compiler transposes the kernel for the gradient of the image, which takes longer than the
    convolution where the kernel has more numbers than the image's columns; a product with columns
    needs no such copy. Its gradient of wide kernels by large images is slower than three products
    (benchmarks/README.md).
    """
    b, h, w, i = x_shape
    o = kernel_shape[-1]
    if b * h * w <= 2 * o:
        return _convolve_columns, _convolve_columns
    if w >= 16 and i * o >= 128**2:
        return _convolve, _convolve_with_kernel
    return _convolve, _convolve


def _convolve_columns(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h w o"]:
    """Convolve as one product, of each pixel beside its neighbours, [B·H·W, k·k·I]."""
    b, h, w, _ = x.shape
    size, _, _, o = kernel.shape
    padded = _pad(x, size // 2)
    shifted = [padded[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    columns = jnp.concatenate(shifted, axis=-1).reshape(b * h * w, -1)
    return (columns @ kernel.reshape(-1, o)).reshape(b, h, w, o)


def _convolve_with_kernel(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h w o"]:
    """Convolve by the transpose of `_kernel_gradient`, so that the transpose of this is that."""
    size, _, _, o = kernel.shape
    y = jax.ShapeDtypeStruct((*x.shape[:-1], o), x.dtype)
    return jax.linear_transpose(lambda dy: _kernel_gradient(x, dy, size), y)(kernel)[0]


def _kernel_gradient(
    x: Float[Array, "b h w i"], dy: Float[Array, "b h w o"], size: int
) -> Float[Array, "k k i o"]:
    r"""Compute $\sum_{bhw} x_{h+i-r,\,w+j-r}\,dy_{hw}^\top$, r = size // 2, as one product a row i.

    The gradient is shifted, not the image: it is the narrower one where a U-Net joins its halves.
    """
    b, h, w, channels = x.shape
    padded = _pad(dy, size // 2)
    steps = range(size - 1, -1, -1)
    beside = jnp.concatenate([padded[:, :, j : j + w] for j in steps], axis=-1)
    pixels = x.reshape(b * h * w, channels)
    rows = [pixels.T @ beside[:, i : i + h].reshape(b * h * w, -1) for i in steps]
    gradient = jnp.stack(rows).reshape(size, channels, size, dy.shape[-1])
    return gradient.transpose(0, 2, 1, 3)


def _pad(x: Float[Array, "b h w c"], margin: int) -> Float[Array, "b h2 w2 c"]:
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def resize_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Double height and width: every pixel becomes four."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
