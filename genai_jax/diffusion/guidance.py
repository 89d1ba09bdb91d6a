r"""Guidance: away from what the network says of nothing, or what a weaker network says.

$$\hat x_0 = x_u + w\,(x_c - x_u),$$

with $x_c$ the estimate of the image given the condition and $x_u$ the other one. w = 1 is no
guidance. Ho and Salimans write $(1 + w') \epsilon_c - w' \epsilon_u$: w = 1 + w'. Since the
coefficients sum to 1, all targets give the same.

Everything here acts on estimates of x_0, and every setting is traced.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genai_jax.diffusion.denoiser import Denoise, Diffusion
from genai_jax.diffusion.predictions import Prediction
from genai_jax.diffusion.steps import Scalar
from genai_jax.types import PyTree

Threshold = Literal["none", "static", "dynamic"]
THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)

_LEAST_CONTRAST = 1e-4  # of images in [-1, 1], where a step of 8 bits is 0.008


class Guidance(NamedTuple):
    """How an estimate is guided, as scalars that may be traced.

    Attributes:
        scale: w; 1 is none.
        start: Least time at which guidance acts.
        stop: Largest time at which it does.
        rescale: Part of the guided estimate, in [0, 1], that takes the standard deviation of the
            conditional one.
    """

    scale: Scalar = 1.0
    start: Scalar = 0.0
    stop: Scalar = 1.0
    rescale: Scalar = 0.0


def make_guided_denoiser(
    diffusion: Diffusion,
    model: Any,
    condition: PyTree,
    guidance: Guidance,
    weaker: Any = None,
) -> Denoise:
    r"""Make a denoiser whose estimates are guided, at times within an interval.

    Without a weaker network the two estimates are one call with twice the rows, each row beside its
    own with the condition that says nothing. Outside of the interval, and where w = 1, the network
    is called once with the condition.

    Args:
        diffusion: What the networks mean.
        model: The network.
        condition: Of the rows; None guides nothing but by a weaker network.
        guidance: The settings.
        weaker: A network that is worse at the same (smaller, or trained for less long), which is
            told the same condition: autoguidance. None is classifier-free guidance.

    Returns:
        `(x_t, t) -> Prediction`, t a scalar.

    Reference: Ho and Salimans, arXiv:2207.12598, eq. 6; interval: Kynkäänniemi et al.,
        arXiv:2404.07724, eq. 5; autoguidance: Karras et al., arXiv:2406.02507, eq. 3.
    """
    alone = diffusion.make_denoiser(model, condition)
    if condition is None and weaker is None:
        return alone

    def both(x_t: Array, t: Array) -> tuple[Prediction, Array]:
        """The estimate given the condition, and the other."""
        if weaker is not None:
            return alone(x_t, t), diffusion.make_denoiser(weaker, condition)(x_t, t).x_0
        pairs = jax.tree.map(_beside, condition, model.null_condition(condition))
        doubled = diffusion.make_denoiser(model, pairs)(_beside(x_t, x_t), t)
        told, untold = jax.tree.map(lambda x: x[::2], doubled), doubled.x_0[1::2]
        return told, untold

    def guided(x_t: Array, t: Array) -> Prediction:
        told, other = both(x_t, t)
        x_0 = other + guidance.scale * (told.x_0 - other)
        return told._replace(x_0=rescale_deviation(x_0, told.x_0, guidance.rescale))

    def denoise(x_t: Array, t: Array) -> Prediction:
        within = (guidance.start <= t) & (t <= guidance.stop)
        return jax.lax.cond(within & (guidance.scale != 1), guided, alone, x_t, t)

    return denoise


def _beside(x: Array, y: Array) -> Array:
    """Put rows of two batches in turn, so that both of a row are on its device."""
    return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def rescale_deviation(
    guided: Float[Array, "b ..."], told: Float[Array, "b ..."], part: Scalar
) -> Float[Array, "b ..."]:
    r"""Undo what guidance does to contrast: $\phi\,\frac{\mathrm{std}(x_c)}{\mathrm{std}(\hat x)}
    \hat x + (1 - \phi)\,\hat x$, deviations over all numbers of an image.

    Args:
        guided: $\hat x$.
        told: $x_c$, the estimate given the condition.
        part: $\phi$, in [0, 1].

    Reference: Lin et al., arXiv:2305.08891, section 3.4; they do it to what the network says.
    """
    axes = tuple(range(1, told.ndim))
    deviation = jnp.std(guided, axes, keepdims=True)
    # An image of one grey, but for rounding, stays as it is.
    uneven = deviation > _LEAST_CONTRAST
    ratio = jnp.std(told, axes, keepdims=True) / jnp.where(uneven, deviation, 1)
    return guided * (1 + part * jnp.where(uneven, ratio - 1, 0))


def keep_in_range(
    x_0: Float[Array, "b ..."], threshold: Threshold | Int[Array, ""], percentile: Scalar = 0.995
) -> Float[Array, "b ..."]:
    r"""Keep an estimate of an image within [-1, 1].

    static clips. dynamic clips to [-s, s] and divides by s, where s is the given percentile of an
    image's absolute values, and at least 1.

    Args:
        x_0: The estimates.
        threshold: Name, or index in `THRESHOLDS`, which may be traced.
        percentile: As a fraction, in (0, 1].

    Reference: Saharia et al., arXiv:2205.11487, section 2.3.
    """
    index = jnp.int32(THRESHOLDS.index(threshold)) if isinstance(threshold, str) else threshold

    def dynamic(x_0: Array) -> Array:
        axes = tuple(range(1, x_0.ndim))
        largest = jnp.quantile(jnp.abs(x_0), percentile, axis=axes, keepdims=True)
        bound = jnp.maximum(largest, 1)
        return jnp.clip(x_0, -bound, bound) / bound

    kinds = {
        "none": lambda x_0: x_0,
        "static": lambda x_0: jnp.clip(x_0, -1, 1),
        "dynamic": dynamic,
    }
    return jax.lax.switch(index, [kinds[name] for name in THRESHOLDS], x_0)
