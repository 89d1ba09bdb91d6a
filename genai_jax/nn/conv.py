"""Convolutions of images, NHWC, with kernels HWIO: 3×3, strided, and after a nearest-resize.

B images, H rows, W columns, I input and O output channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.linear import scaled_std


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
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(x.dtype)


def resize_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Double height and width: every pixel becomes four."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
