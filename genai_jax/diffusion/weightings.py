r"""How much an error counts at each noise level, and which levels are trained on.

A weighting is defined once, on errors of $x_0$; `squared_error_ratio` makes it one on errors of
what the network says. So a weighting means the same for every target.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genai_jax.diffusion.predictions import Target, squared_error_ratio
from genai_jax.diffusion.process import Process

Weighting = Literal["simple", "min_snr", "edm", "vlb"]
Times = Literal["uniform", "lognormal", "logit_normal"]


@dataclasses.dataclass(frozen=True)
class LevelConfig:
    """Which noise levels are trained on, and how much each counts.

    Attributes:
        weighting: simple (errors of what the network says count as they are), min_snr (errors of
            x_0 by the SNR, clipped), edm, or vlb (the likelihood's own, for uniform times).
        min_snr_gamma: Where min_snr clips the SNR.
        times: How times are drawn: uniform; lognormal (sigma / alpha, EDM); logit_normal (t, flow).
        mean: Of the normal distribution: of log(sigma / alpha) for lognormal, of logit(t) for
            logit_normal.
        std: Of the normal distribution.
        time_min: Least uniform time of a continuous process.
    """

    weighting: Weighting = "simple"
    min_snr_gamma: float = 5.0
    times: Times = "uniform"
    mean: float = -1.2
    std: float = 1.2
    time_min: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("min_snr_gamma", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)}.")
        if not 0 < self.time_min < 1:
            raise ValueError(f"`time_min` must be in (0, 1); got {self.time_min}. Try 1e-4.")
        if self.weighting == "vlb" and self.times != "uniform":
            raise ValueError(
                f"`weighting` 'vlb' counts uniform times; got `times` {self.times!r}. "
                "Choose times uniform."
            )


def draw_times(
    config: LevelConfig, process: Process, uniform: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    r"""Turn uniform numbers into times, by the inverse distribution function: strata stay strata.

    Args:
        config: Which distribution.
        process: Whose times; those of a discrete process are k / T.
        uniform: In [0, 1).

    Reference: lognormal: Karras et al., arXiv:2206.00364, table 1 ($\ln\sigma \sim
        N(P_\mathrm{mean}, P_\mathrm{std}^2)$); logit_normal: Esser et al., arXiv:2403.03206,
        eq. 19.
    """
    if config.times == "uniform":
        if process.num_steps:
            return (jnp.floor(uniform * process.num_steps) + 1) / process.num_steps
        return config.time_min + (1 - config.time_min) * uniform
    edge = jnp.finfo(uniform.dtype).eps
    normal = config.mean + config.std * jax.scipy.special.ndtri(jnp.clip(uniform, edge, 1 - edge))
    if config.times == "lognormal":
        return process.snap(process.time_at(-2 * normal))
    return process.snap(jax.nn.sigmoid(normal))


def loss_weight(
    config: LevelConfig,
    process: Process,
    target: Target,
    t: Float[Array, "*b"],
    sigma_data: float = 1.0,
) -> Float[Array, "*b"]:
    r"""Compute the weight of the squared error of what the network says.

    On errors of $x_0$ it is min(SNR, γ) for min_snr; $\sigma_d^{-2} + \mathrm{SNR}$, which is
    $(\sigma^2 + \sigma_d^2) / (\sigma\sigma_d)^2$ with $\sigma$ for $\sigma_t / \alpha_t$, for edm;
    $-\frac12 \lambda'(t)\,\mathrm{SNR}(t)$ for vlb, or
    $\frac T2 (\mathrm{SNR}(t - 1/T) - \mathrm{SNR}(t))$ of a discrete process. simple is 1 on
    errors of the target itself.

    Reference: min_snr: Hang et al., arXiv:2303.09556, eq. 9 and section 3.4, for every target; edm:
        Karras et al., arXiv:2206.00364, table 1; vlb: Kingma et al., arXiv:2107.00630, eqs. 13 and
        17.
    """
    if config.weighting == "simple":
        return jnp.ones_like(t)
    alpha, sigma = process.alpha_sigma(t)
    log_snr = process.log_snr(t)
    ratio = squared_error_ratio(target, alpha, sigma, sigma_data)
    match config.weighting:
        case "min_snr":
            return jnp.minimum(jnp.exp(log_snr), config.min_snr_gamma) * ratio
        case "edm":
            return (jnp.exp(log_snr) + sigma_data**-2) * ratio
        case "vlb":
            if process.num_steps:
                before = process.log_snr(t - 1 / process.num_steps)
                # The first step is the decoder's: a Gaussian of variance sigma^2 / alpha^2.
                first = t < 1.5 / process.num_steps
                gain = jnp.where(first, 1.0, jnp.expm1(jnp.where(first, 0, before - log_snr)))
                return process.num_steps / 2 * gain * jnp.exp(log_snr) * ratio
            _, slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))
            return -slope / 2 * jnp.exp(log_snr) * ratio
