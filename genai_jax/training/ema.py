r"""Averages of the parameters over the steps.

An average is a rule that says how much the newest parameters weigh at each step, and
$\bar\theta \leftarrow \bar\theta + s_t (\theta - \bar\theta)$. A fixed decay forgets at one rate; a
power function remembers a fixed share of the run, however long the run is by now.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genai_jax.types import PyTree

LONGEST_SIGMA_REL = 12**-0.5
"""Of a plain mean over the run: gamma = 0."""


@runtime_checkable
class Average(Protocol):
    """How an average moves."""

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Compute what the newest parameters weigh, after `step` updates before theirs."""


@dataclasses.dataclass(frozen=True)
class EMAConfig:
    """An average that remembers a fixed number of updates.

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

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        r"""Compute $1 - \min(d, (1 + t) / (10 + t))$ with warm-up, or $1 - d$; t is the step.

        Reference: `num_updates` of TensorFlow's `tf.train.ExponentialMovingAverage`.
        """
        last = jnp.asarray(1 - self.decay, jnp.float32)
        if not self.warmup:
            return last
        return jnp.maximum(last, 9 / (10 + jnp.asarray(step, jnp.float32)))


@dataclasses.dataclass(frozen=True)
class PowerEMA:
    r"""An average that remembers a fixed share of the run, by a power function.

    After t updates, parameters of update $\tau$ have the density
    $p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}$. Several of these, kept from time to time,
    give every other length after the training: `posthoc_ema`.

    Attributes:
        sigma_rel: Length: standard deviation of the density in units of t; 0.05 to 0.1 are usual,
            and 0.289 is a plain mean.

    Reference: Karras et al., arXiv:2312.02696, section 3.1, eqs. 1 and 2.
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        _ = self.gamma

    @property
    def gamma(self) -> float:
        r"""The exponent $\gamma$."""
        return gamma_of(self.sigma_rel)

    def share(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        r"""Compute $1 - \beta(t) = 1 - (1 - 1/t)^{\gamma + 1}$, where t counts this update too.

        Without cancellation, since it is about as small as 1/t. The first update has the share 1.
        """
        t = jnp.asarray(step, jnp.float32) + 1
        return -jnp.expm1((self.gamma + 1) * jnp.log1p(-1 / t))


def sigma_rel_of(gamma: float) -> float:
    r"""Compute $\sigma_\mathrm{rel} = (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}$.

    Reference: Karras et al., arXiv:2312.02696, eq. 3.
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    r"""Find the exponent of a length: the inverse of `sigma_rel_of` for $\gamma \ge 0$.

    The largest root of
    $\gamma^3 + 7\gamma^2 + (16 - \sigma^{-2}_\mathrm{rel})\gamma + 12 - \sigma^{-2}_\mathrm{rel}$.

    Raises:
        ValueError: If no power function that grows has that length.

    Reference: Karras et al., arXiv:2312.02696, appendix C.2.
    """
    if not 0 < sigma_rel <= LONGEST_SIGMA_REL:
        raise ValueError(
            f"`sigma_rel` must be above 0 and at most {LONGEST_SIGMA_REL:.4f}, a plain mean over "
            f"the run; got {sigma_rel}. Choose 0.1."
        )
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def power_averages(sigma_rels: Sequence[float]) -> dict[str, PowerEMA]:
    """Make power-function averages, each called by its length: the traces of a run.

    Raises:
        ValueError: If a length has no meaning, or is given twice.
    """
    if len(set(sigma_rels)) < len(sigma_rels):
        raise ValueError(
            f"the lengths of averages must differ; got {tuple(sigma_rels)}. Choose 0.05 and 0.1."
        )
    return {str(float(sigma_rel)): PowerEMA(float(sigma_rel)) for sigma_rel in sigma_rels}


def update_average(average: PyTree, params: PyTree, share: Float[Array, ""] | float) -> PyTree:
    r"""Move an average towards the parameters.

    $\bar\theta \leftarrow \bar\theta + s (\theta - \bar\theta)$, computed in float32 and stored in
    the average's own dtype, which should be float32: where parameters are bfloat16, a change of one
    part in a thousand would be rounded away.

    Args:
        average: So far.
        params: The parameters after this step's update.
        share: s, what they weigh, in (0, 1].

    Returns:
        The new average, with the structure and dtypes of the old one.
    """

    def towards(average: Array, leaf: Array) -> Array:
        mean = average.astype(jnp.float32)
        return (mean + share * (leaf.astype(jnp.float32) - mean)).astype(average.dtype)

    return jax.tree.map(towards, average, params)
