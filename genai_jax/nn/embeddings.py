"""Tables of vectors looked up by integer."""

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
