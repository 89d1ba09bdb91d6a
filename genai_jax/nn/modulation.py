"""Modulation: how one vector (a noise level, a class, a caption) steers what all tokens go through.

D size of the vector and of the tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from genai_jax.nn.linear import Linear


class Adjustment(NamedTuple):
    """What modulation asks of one branch; `Adjustment()` asks nothing.

    Attributes:
        shift: Added to what the branch reads.
        scale: What the branch reads is multiplied by one more than this.
        gate: What the branch adds to the residual is multiplied by this.
    """

    shift: Float[Array, "b 1 d"] | None = None
    scale: Float[Array, "b 1 d"] | None = None
    gate: Float[Array, "b 1 d"] | None = None

    def read(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Shift and scale what a branch reads, after it was normalised."""
        if self.shift is None or self.scale is None:
            return x
        return x * (1 + self.scale.astype(x.dtype)) + self.shift.astype(x.dtype)

    def add(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Gate what a branch adds."""
        return x if self.gate is None else x * self.gate.astype(x.dtype)


class Modulation(nnx.Module):
    r"""Shifts, scales and gates of a vector: $W\,\mathrm{silu}(c) + b$, with $W$ and $b$ zero.

    So that at first the gates let nothing through: a block with such gates is the identity.

    Attributes:
        linear: $W$, of shape [D, branches, 3, D], or 2 for 3 where nothing is gated.

    Reference: Peebles and Xie, arXiv:2212.09748, section 3.2, "adaLN-Zero block".
    """

    def __init__(
        self,
        dim: int,
        key: PRNGKeyArray,
        *,
        branches: int,
        gated: bool,
        param_dtype: jax.typing.DTypeLike,
    ):
        """Start from zero; the key is not used up."""
        self.linear = Linear(
            (dim,),
            (branches, 3 if gated else 2, dim),
            key,
            init_std=0.0,
            use_bias=True,
            param_dtype=param_dtype,
        )

    def __call__(self, vector: Float[Array, "b d"]) -> tuple[Adjustment, ...]:
        """Compute the adjustment of every branch."""
        said = self.linear(jax.nn.silu(vector))
        by_branch = jnp.moveaxis(said, 0, 2)[:, :, :, None]
        return tuple(Adjustment(*parts) for parts in by_branch)
