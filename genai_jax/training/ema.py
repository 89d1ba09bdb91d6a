"""Exponential moving averages of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genai_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """How long the average of the parameters remembers.

    Attributes:
        decay: Weight of the past in each update, in [0, 1); 0.999 averages over a thousand updates.
        warmup: Whether the decay starts at 0.1 and rises, so that the random start is forgotten.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"`decay` must be in [0, 1); got {self.decay}. "
                "Choose 0.999 to average over about 1,000 updates."
            )


def ema_decay(config: EMAConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    r"""Compute the decay of an update: $\min(d, (1 + t) / (10 + t))$ with warm-up, or $d$.

    Args:
        config: The decay $d$, and whether it warms up.
        step: $t$, updates completed before this one.

    Reference: `num_updates` of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    decay = jnp.asarray(config.decay, jnp.float32)
    if not config.warmup:
        return decay
    t = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def ema_update(ema: PyTree, params: PyTree, decay: Float[Array, ""] | float) -> PyTree:
    r"""Move the average towards the parameters: $\bar\theta \leftarrow d\bar\theta + (1-d)\theta$.

    Computed in float32 and stored in the average's own dtype, which should be float32: where
    parameters are bfloat16, a change of one part in a thousand would be rounded away.

    Args:
        ema: The average so far.
        params: The parameters after this step's update.
        decay: $d$, in [0, 1).

    Returns:
        The new average, with the structure and dtypes of `ema`.
    """

    def towards(average: Array, leaf: Array) -> Array:
        mean = average.astype(jnp.float32)
        return (mean + (1 - decay) * (leaf.astype(jnp.float32) - mean)).astype(average.dtype)

    return jax.tree.map(towards, ema, params)
