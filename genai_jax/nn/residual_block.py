"""The residual block of a U-Net.

B images, H rows, W columns, I channels in and O out; E elements of the level's vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PRNGKeyArray

from genai_jax.nn.conv import Conv
from genai_jax.nn.dropout import dropout
from genai_jax.nn.group_norm import GroupNorm
from genai_jax.nn.linear import ALMOST_ZERO, Linear, scaled_std


class ResidualBlock(nnx.Module):
    r"""$x + K_2 * d(\phi(K_1 * \phi(x) + W e))$, with $\phi$ = GroupNorm and SiLU, d = dropout.

    Where the widths differ, x is projected (1×1). $K_2$ begins almost at zero.

    Reference: Ho et al., arXiv:2006.11239, appendix B; the shape is Zagoruyko and Komodakis,
        arXiv:1605.07146, figure 1d, with group norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        level_dim: int,
        key: PRNGKeyArray,
        *,
        groups: int,
        eps: float,
        dropout: float,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Draw the parameters; `level_dim` is E."""
        i, o = in_channels, out_channels
        keys = jax.random.split(key, 4)
        norm: dict[str, Any] = {"eps": eps, "param_dtype": param_dtype}
        linear: dict[str, Any] = {"uniform": True, "use_bias": True, "param_dtype": param_dtype}
        self.first_norm = GroupNorm(i, groups, **norm)
        self.first_conv = Conv(i, o, keys[0], param_dtype=param_dtype)
        self.level = Linear(
            (level_dim,), (o,), keys[1], init_std=scaled_std(level_dim, o), **linear
        )
        self.second_norm = GroupNorm(o, groups, **norm)
        self.second_conv = Conv(o, o, keys[2], init_scale=ALMOST_ZERO, param_dtype=param_dtype)
        self.shortcut = (
            None if i == o else Linear((i,), (o,), keys[3], init_std=scaled_std(i, o), **linear)
        )
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        level: Float[Array, "b e"],
        keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w o"]:
        """Compute the block; `level` has passed SiLU."""
        y = self.first_conv(self.first_norm(x, silu=True))
        y = self.second_norm(y + self.level(level)[:, None, None], silu=True)
        if keys is not None:
            y = dropout(y, keys, self.dropout, place=0)
        y = self.second_conv(y)
        return y + (x if self.shortcut is None else self.shortcut(x))
