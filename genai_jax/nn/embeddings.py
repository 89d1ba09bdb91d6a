"""Vectors for integers, looked up in a table, and for real numbers, made of sinusoids."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Embedding(nnx.Module):
    """A table of `num` vectors of size `dim`.

    Attributes:
        table: Shape [num, dim].
    """

    def __init__(
        self,
        num: int,
        dim: int,
        key: PRNGKeyArray,
        *,
        init_std: float,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
    ):
        """Draw the table from a normal distribution of width `init_std`."""
        table = init_std * jax.random.normal(key, (num, dim), jnp.float32)
        self.table = nnx.Param(table.astype(param_dtype))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... d"]:
        """Look up one vector an integer; the result has the table's dtype."""
        return self.table[...][ids]


def sinusoids(
    level: Float[Array, " b"], dim: int, *, max_period: float = 10_000.0
) -> Float[Array, "b dim"]:
    r"""Embed real numbers as $[\sin(\omega_i z), \cos(\omega_i z)]$, sines first.

    $\omega_i = P^{-i / (n - 1)}$ for i = 0 ... n - 1, n = dim / 2: angular frequencies from 1 down
    to 1 / P.

    Args:
        level: z, such as a noise level; need not be whole.
        dim: Size of the vectors, even and at least 4.
        max_period: P.

    Reference: Vaswani et al., arXiv:1706.03762, section 3.5, with all sines before all cosines and
        n - 1 in the denominator, as Ho et al., arXiv:2006.11239, embed the step.
    """
    half = dim // 2
    if dim % 2 or half < 2:
        raise ValueError(f"`dim` must be even and at least 4; got {dim}. Choose {max(4, dim + 1)}.")
    exponents = jnp.arange(half, dtype=level.dtype) / (half - 1)
    angles = level[:, None] * jnp.exp(-math.log(max_period) * exponents)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_features(
    x: Float[Array, "... c"], exponents: tuple[int, ...]
) -> Float[Array, "... features"]:
    r"""Compute $\sin(2^n \pi x)$ and $\cos(2^n \pi x)$ for each n, C channels each.

    Neighbouring levels of an 8-bit image differ by little; at n = 7 and 8 by half a turn.

    Args:
        x: Pixels, in [-1, 1].
        exponents: n; none gives no channels.

    Reference: Kingma et al., arXiv:2107.00630, appendix C.
    """
    waves = [f(2.0**n * math.pi * x) for n in exponents for f in (jnp.sin, jnp.cos)]
    return jnp.concatenate(waves, axis=-1) if waves else x[..., :0]
