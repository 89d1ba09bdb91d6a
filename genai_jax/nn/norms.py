"""Layer and root-mean-square normalisation over the last axis, with moments in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    r"""$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ over the last axis.

    Reference: Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450, eq. 4.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float,
        use_scale: bool = True,
        use_bias: bool,
        param_dtype: jax.typing.DTypeLike,
    ):
        """Start from unit scale and zero bias, where there are such."""
        self.scale = nnx.Param(jnp.ones((dim,), param_dtype)) if use_scale else None
        self.bias = nnx.Param(jnp.zeros((dim,), param_dtype)) if use_bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise; the result has the dtype of `x`."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        if self.scale is not None:
            y = y * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    r"""$y = (o + \gamma)\, x / \sqrt{\mathrm{mean}(x^2) + \epsilon}$ over the last axis.

    The offset $o$ is 0 in Llama, where $\gamma$ starts at 1, and 1 in Gemma, where $\gamma$ starts
    at 0: weight decay then pulls towards the identity.

    Reference: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, eq. 4.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float,
        use_scale: bool = True,
        offset: float = 0.0,
        param_dtype: jax.typing.DTypeLike,
    ):
        """Start from a total scale of one, where there is one."""
        self.scale = nnx.Param(jnp.full((dim,), 1.0 - offset, param_dtype)) if use_scale else None
        self.eps = eps
        self.offset = offset

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise; the result has the dtype of `x`."""
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * (self.offset + self.scale[...].astype(jnp.float32))
        return y.astype(x.dtype)
