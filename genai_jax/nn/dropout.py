"""Dropout with one key a row, so that the noise does not depend on how a batch is cut."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray


def dropout(
    x: Float[Array, "b ..."], keys: Key[Array, " b"], rate: float, place: int
) -> Float[Array, "b ..."]:
    r"""Zero each element with probability `rate` and scale the rest to keep the mean.

    $y = x \cdot m / p$ with $m \sim \mathrm{Bernoulli}(p)$. The probability is a multiple of 1/256
    (four elements share one 32-bit draw, since drawing is what dropout costs on a CPU), and the
    scale is one over the probability used, so that the mean is exact.

    Args:
        x: Activations.
        keys: One key a row, shape [b].
        rate: Probability of zero, in [0, 1); rounded to a multiple of 1/256.
        place: Number of the place in the layer, so that no two places share their noise.

    Returns:
        The masked activations, in the dtype of `x`.

    Reference: Srivastava et al., "Dropout", JMLR 15 (2014), section 4, scaled in training.
    """
    kept_of_256 = 256 - round(rate * 256)
    if kept_of_256 == 256:
        return x
    size = x[0].size
    words = -(-size // 4)

    def bytes_of_row(key: PRNGKeyArray) -> Array:
        bits = jax.random.bits(jax.random.fold_in(key, place), (words,), jnp.uint32)
        return jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(-1)[:size]

    noise = jax.vmap(bytes_of_row)(keys).reshape(x.shape)
    kept = noise.astype(jnp.int32) < kept_of_256
    return jnp.where(kept, x * jnp.asarray(256 / kept_of_256, x.dtype), jnp.zeros((), x.dtype))
