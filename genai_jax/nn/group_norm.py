"""Group normalisation of images with moments in float32, as a scale and a shift per channel.

B images, H rows, W columns, C channels in G groups.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class GroupNorm(nnx.Module):
    r"""$y = \gamma_c (x - \mu_{g(c)}) / \sqrt{\sigma^2_{g(c)} + \epsilon} + \beta_c$ of each image.

    The moments $\mu_g$ and $\sigma_g^2$ are those of all pixels of the channels of group g. They
    are made from sums over H·W alone, [B, C], and the image itself meets one scale and one shift:
    plain differentiation of that is as fast as any rule written by hand (benchmarks/README.md), in
    both directions.

    Reference: Wu and He, "Group Normalization", arXiv:1803.08494, eqs. 1, 2 and 7.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        eps: float,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Start from unit scale and zero bias.

        Raises:
            ValueError: If `groups` does not divide `channels`.
        """
        if groups < 1 or channels % groups:
            raise ValueError(
                f"`groups` must divide the channels; got {groups} and {channels}. Choose from "
                f"{', '.join(str(n) for n in range(1, channels + 1) if channels % n == 0)}."
            )
        self.scale = nnx.Param(jnp.ones((channels,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), param_dtype))
        self.groups = groups
        self.eps = eps

    def __call__(
        self, x: Float[Array, "b h w c"], *, silu: bool = False
    ) -> Float[Array, "b h w c"]:
        """Normalise, then optionally apply SiLU; the result has the dtype of `x`."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x32 = x.astype(wide)
        mean, variance = _moments(x32, self.groups)
        scale = jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(wide)
        shift = self.bias[...].astype(wide) - mean * scale
        y = x32 * scale[:, None, None] + shift[:, None, None]
        return (jax.nn.silu(y) if silu else y).astype(x.dtype)


def _moments(
    x: Float[Array, "b h w c"], groups: int
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Compute mean and variance of the group of each channel.

    Sums are of differences to a value that is near the mean: squares of a large mean would bury a
    small variance. The moments do not depend on that value, so that it needs no derivative.
    """
    channels = x.shape[-1]
    near = jax.lax.stop_gradient(x.mean((1, 2)))
    centred = x - near[:, None, None]
    rest = centred.mean((1, 2))
    mean = near + rest
    variance = jnp.square(centred).mean((1, 2)) - jnp.square(rest)
    size = channels // groups
    if size == 1:
        return mean, variance
    same_group = np.kron(np.eye(groups), np.full((size, size), 1 / size))
    average = jnp.asarray(same_group, x.dtype)
    group_mean = jnp.dot(mean, average, precision="highest")
    spread = variance + jnp.square(mean - group_mean)
    return group_mean, jnp.dot(spread, average, precision="highest")
