r"""What an image costs in bits: the terms of the variational bound, and means over images.

The convention: an image of L levels is a point of a grid, and a model's probability of it is the
mass of its bin, of half-width 1 / (L - 1) around each number; the bins of the first and the last
level extend to infinity. It is not that of `ode_likelihood`, whose figures are not comparable.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from genai_jax.diffusion.predictions import like
from genai_jax.diffusion.process import Process

# The decoder's deviation is at least this part of a bin's half-width. At that, a bin holds all but
# 6e-5 of the mass (1e-4 bits): less gains nothing, and pays dearly for an estimate outside the bin.
_LEAST_DEVIATION = 0.25


class Estimate(NamedTuple):
    """A mean over images.

    Attributes:
        mean: Over images.
        standard_error: Of the mean, for other images and other noise.
        images: How many.
    """

    mean: float
    standard_error: float
    images: int


def mean_with_error(values: Float[np.ndarray, "images *draws"]) -> Estimate:
    r"""Estimate a mean over images that have each their own noise.

    The error is $s / \sqrt{n}$, s the deviation between images, each averaged over its draws of
    noise: what noise adds is in it.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(values) < 2:
        raise ValueError(f"A standard error needs at least 2 images; got {len(values)}.")
    values = np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1)
    error = values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(float(values.mean()), float(error), len(values))


def log_bin_mass(
    images: Float[Array, "*x"],
    mean: Float[Array, "*x"],
    deviation: Float[Array, "*x"],
    num_levels: int,
) -> Float[Array, "*x"]:
    r"""Compute the logarithm of how much of a Gaussian is in the bin of each number, in nats.

    $\log(\Phi((x + h - \mu) / s) - \Phi((x - h - \mu) / s))$ with $h = 1 / (L - 1)$; the bins of
    -1 and 1 extend to infinity. It is accurate however far away a bin is.

    Args:
        images: Levels l = 0 ... L - 1 as x = -1 + 2 l / (L - 1).
        mean: Of the Gaussian.
        deviation: Of the Gaussian.
        num_levels: L, at least 2.

    Reference: Ho et al., arXiv:2006.11239, eq. 13, for any number of levels and channels.
    """
    half = 1 / (num_levels - 1)
    offset = images - mean
    # A bin above the mean is as heavy as its mirror image below: there the tails are small numbers.
    low = log_ndtr((-half - jnp.abs(offset)) / deviation)
    high = log_ndtr((half - jnp.abs(offset)) / deviation)
    inside = high + jnp.log(-jnp.expm1(low - high))
    first, last = images < -1 + half, images > 1 - half
    outside = log_ndtr((half + jnp.where(first, offset, -offset)) / deviation)
    return jnp.where(first | last, outside, inside)


def step_kl(
    process: Process,
    t: Float[Array, "*b"],
    s: Float[Array, "*b"],
    squared_error: Float[Array, "b ..."],
    fraction: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
    r"""Compute KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each number, in nats.

    Both are Gaussians, of variances $(1 - \rho^2)\sigma_s^2$ and
    $(1 - \rho^2)\sigma_s^{2(1-v)}\sigma_t^{2v}$, where $\rho^2 = \mathrm{SNR}_t / \mathrm{SNR}_s$.
    With $g = \log (\sigma_t^2 / \sigma_s^2)$ it is
    $\frac12 (vg + e^{-vg} - 1 + e^{-vg} (\mathrm{SNR}_s - \mathrm{SNR}_t) (x_0 - \hat x_0)^2)$.

    Args:
        process: The process.
        t: Where the step starts.
        s: Where it ends, 0 < s <= t.
        squared_error: $(x_0 - \hat x_0)^2$.
        fraction: v: 0 is the smallest variance, 1 the largest.

    Reference: Ho et al., arXiv:2006.11239, eqs. 5 to 8; v = 0: Kingma et al., arXiv:2107.00630,
        eq. 13; learned v: Nichol and Dhariwal, arXiv:2102.09672, eq. 15.
    """
    log_snr_t, log_snr_s = process.log_snr(t), process.log_snr(s)
    lost = -jnp.expm1(log_snr_t - log_snr_s) * jnp.exp(log_snr_s)
    (_, sigma_t), (_, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    surplus = fraction * like(2 * jnp.log(sigma_t / sigma_s), fraction)
    distance = jnp.exp(-surplus) * like(lost, squared_error) * squared_error
    return (surplus + jnp.expm1(-surplus) + distance) / 2


def prior_kl(
    process: Process, t: Float[Array, "*b"], images: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    r"""Compute KL(q(x_t | x_0) || N(0, \alpha^2 + \sigma^2)) of each number, in nats.

    $\frac12 (\log(1 + \mathrm{SNR}) + \frac{\mathrm{SNR}}{1 + \mathrm{SNR}} (x_0^2 - 1))$. The
    prior is what data of unit variance would be at t: N(0, 1) where the variance is preserved.

    Reference: L_T of Ho et al., arXiv:2006.11239, eq. 5.
    """
    log_snr = like(process.log_snr(t), images)
    return (jax.nn.softplus(log_snr) + jax.nn.sigmoid(log_snr) * (jnp.square(images) - 1)) / 2


def decoder_deviation(
    process: Process,
    first: Float[Array, "*b"],
    second: Float[Array, "*b"],
    fraction: Float[Array, "b ..."],
    num_levels: int,
    scale: Float[Array, ""] | float = 1.0,
) -> Float[Array, "b ..."]:
    r"""Choose the deviation of p(x | x_{t_1}), a Gaussian around the network's $\hat x_0$.

    $\frac{\sigma_1}{\alpha_1} (1 - \mathrm{SNR}_2 / \mathrm{SNR}_1)^{(1 - v) / 2}$, times `scale`,
    and at least a quarter of a bin's half-width. From $x_{t_1}$ alone the image is known to within
    $\sigma_1 / \alpha_1$, and a network knows more: so the first factor is an upper bound of its
    error where that is wider than a bin. Where it is far narrower, the least deviation leaves the
    bin all of the mass, and forgives an estimate that is off by a part of a bin. With DDPM's betas
    the square is $\tilde\beta_2$ at v = 0 and $\beta_1$ at v = 1.

    Args:
        process: The process.
        first: t_1.
        second: t_2.
        fraction: v.
        num_levels: L.
        scale: Factor that suits the errors of a network; tuned on data that is not tested on.
    """
    log_snr = process.log_snr(first)
    kept = -jnp.expm1(process.log_snr(second) - log_snr)
    power = like(kept, fraction) ** ((1 - fraction) / 2)
    deviation = scale * like(jnp.exp(-log_snr / 2), fraction) * power
    return jnp.maximum(deviation, _LEAST_DEVIATION / (num_levels - 1))


def hybrid_kl(
    process: Process,
    x_0: Float[Array, "b ..."],
    t: Float[Array, " b"],
    x_0_hat: Float[Array, "b ..."],
    fraction: Float[Array, "b ..."],
    num_levels: int = 256,
) -> Float[Array, " b"]:
    r"""Compute the variational term of a time, for the loss that trains a learned variance.

    T times KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at the first step T times $-\log p(x |
    x_1)$ of the decoder, in nats per dimension: its mean over uniform steps is the bound without
    L_T. The gradient flows through the variance alone; the mean is the other term's to train.

    Args:
        process: A discrete one.
        x_0: Images.
        t: Steps, k / T.
        x_0_hat: The network's estimate of the image at t.
        fraction: What it says of the variance, v.
        num_levels: L of the images, for the decoder.

    Returns:
        One number a row, to be added to a mean over dimensions with a weight of 0.001.

    Reference: Nichol and Dhariwal, arXiv:2102.09672, eqs. 15 and 16.
    """
    steps = process.num_steps
    x_0_hat = jax.lax.stop_gradient(x_0_hat)
    is_first = t < 1.5 / steps
    first, second = (jnp.full_like(t, k / steps) for k in (1, 2))
    # Of a first step the KL is not defined: of the second, then, which is not used.
    later = jnp.where(is_first, second, t)
    kl = step_kl(process, later, later - 1 / steps, jnp.square(x_0 - x_0_hat), fraction)
    deviation = decoder_deviation(process, first, second, fraction, num_levels)
    nats = -log_bin_mass(x_0, x_0_hat, deviation, num_levels)
    return steps * row_mean(jnp.where(like(is_first, kl), nats, kl))


def row_mean(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Average over everything but the rows."""
    return x.reshape(len(x), -1).mean(axis=1)
