r"""Solvers: from noise to an image, by a denoiser that is asked at the times of a grid.

The denoiser's estimate of $x_0$ implies one of the noise, $\epsilon = (x - \alpha x_0) / \sigma$.
In these two the probability-flow ODE of every process is

$$dx = x_0\,d\alpha + \epsilon\,d\sigma,$$

without a singularity at either end. Euler's method on it is DDIM; the trapezoid rule is EDM's
sampler where the variance explodes, and Heun's method on the velocity for a flow.

A step goes from t (here) down to s (there), and $\rho$ is `steps.signal_kept`. Every solver is a
plain function. Number of steps, grid and all scalars are traced: the loop is compiled once. The
noise of step i of a row comes from fold_in(key of the row, i).
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.denoiser import Denoise
from genai_jax.diffusion.grids import Grid
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.steps import (
    Count,
    Level,
    Samples,
    Scalar,
    forward_step,
    integrate,
    level_at,
    noise_in,
    reverse_step,
    row_noise,
    signal_kept,
)

Variance = Literal["small", "large", "learned"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)

Step = tuple[Array, Array, None]
"""x, the estimate of x_0 on the way, and what the next step is told."""

_MOST_CHURN = 2**0.5 - 1  # EDM's bound: new noise is never more than what there was


class Churn(NamedTuple):
    """How much noise is added before each step, and taken away again by it.

    Attributes:
        amount: S_churn: over all steps, the noise is raised by this in all, as a logarithm; 0 adds
            none.
        least: S_min: sigma / alpha from which on noise is added.
        most: S_max: up to which.
        noise: S_noise: deviation of what is added.
    """

    amount: Scalar = 0.0
    least: Scalar = 0.0
    most: Scalar = float("inf")
    noise: Scalar = 1.0


def ancestral(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    variance: Variance | Int[Array, ""] = "small",
    frames: int | None = None,
) -> Samples:
    r"""Sample by the reverse Markov chain, $x_s \sim N(\mu, \varsigma^2)$.

    $\mu = \alpha_s x_0 + \sigma_s\rho\epsilon$ is the mean of $q(x_s | x_t, x_0)$;
    $\varsigma^2 = (1 - \rho^2)\,\sigma_s^{2(1-v)}\sigma_t^{2v}$, with v = 0 its variance (small,
    $\tilde\beta$), with v = 1 that of $q(x_t | x_s)$ (large, $\beta$), or what the network says.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times.
        key: One a row.
        process: The process.
        num_steps: n, steps of the grid.
        variance: Name, or index in `VARIANCES`, which may be traced.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Ho et al., arXiv:2006.11239, eq. 6, 7 and section 3.2; learned: Nichol and Dhariwal,
        arXiv:2102.09672, eq. 15.
    """
    index = VARIANCES.index(variance) if isinstance(variance, str) else variance

    def step(x: Array, here: Level, there: Level, i: Array, memory: None) -> Step:
        x_0, said = denoise(x, here.t)
        # The indices of small and large are their fractions v.
        v = jnp.asarray(index, x.dtype)
        if said is not None:
            v = jnp.where(index == VARIANCES.index("learned"), said, v)
        rho = signal_kept(here, there)
        deviation = jnp.sqrt(1 - rho**2) * there.sigma ** (1 - v) * here.sigma**v
        new = {"deviation": deviation, "noise": row_noise(key, i, x)}
        return reverse_step(x, x_0, here, there, kept=there.sigma * rho, **new), x_0, None

    return integrate(step, x, grid, process, num_steps, frames)


def ddim(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    eta: Scalar = 0.0,
    frames: int | None = None,
) -> Samples:
    r"""Sample by DDIM: keep some of the noise that there is, draw the rest anew.

    $x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\epsilon + \varsigma z$ with
    $\varsigma = \eta\sigma_s\sqrt{1 - \rho^2}$.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times.
        key: One a row; of no effect where eta is 0.
        process: The process.
        num_steps: n, steps of the grid.
        eta: In [0, 1]: 0 is deterministic, Euler's method; 1 is `ancestral` with small variance.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Song et al., arXiv:2010.02502, eq. 12 and 16.
    """

    def step(x: Array, here: Level, there: Level, i: Array, memory: None) -> Step:
        x_0 = denoise(x, here.t).x_0
        share = jnp.square(eta) * (1 - signal_kept(here, there) ** 2)
        new = {"deviation": there.sigma * jnp.sqrt(share), "noise": row_noise(key, i, x)}
        kept = there.sigma * jnp.sqrt(1 - share)
        return reverse_step(x, x_0, here, there, kept=kept, **new), x_0, None

    return integrate(step, x, grid, process, num_steps, frames)


def euler(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    churn: Churn | None = None,
    frames: int | None = None,
) -> Samples:
    r"""Integrate the probability-flow ODE by Euler's method, $x' = x + x_0\Delta\alpha +
    \epsilon\Delta\sigma$, after some churn.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times; they may rise, too.
        key: One a row; of no effect without churn.
        process: The process.
        num_steps: n, steps of the grid.
        churn: Noise to add before each step; None adds none.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Karras et al., arXiv:2206.00364, algorithm 2 without its correction; without churn
        Song et al., arXiv:2010.02502, eq. 12 with sigma = 0.
    """

    def step(x: Array, here: Level, there: Level, i: Array, memory: None) -> Step:
        x, here = _churned(x, here, i, key, process, churn, num_steps)
        x_0 = denoise(x, here.t).x_0
        return _euler_step(x, x_0, here, there), x_0, None

    return integrate(step, x, grid, process, num_steps, frames)


def heun(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    churn: Churn | None = None,
    frames: int | None = None,
) -> Samples:
    r"""Integrate the probability-flow ODE by Heun's method: Euler's, then the trapezoid,
    $x' = x + \frac12 (x_0 + x_0')\Delta\alpha + \frac12 (\epsilon + \epsilon')\Delta\sigma$.

    The network is asked twice a step; once where it ends at the data.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times; they may rise, too.
        key: One a row; of no effect without churn.
        process: The process.
        num_steps: n, steps of the grid.
        churn: Noise to add before each step; None adds none.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Karras et al., arXiv:2206.00364, algorithm 2, for any alpha.
    """

    def step(x: Array, here: Level, there: Level, i: Array, memory: None) -> Step:
        x, here = _churned(x, here, i, key, process, churn, num_steps)
        x_0 = denoise(x, here.t).x_0
        ahead = _euler_step(x, x_0, here, there)

        def corrected(ahead: Array) -> Array:
            x_0_ahead = denoise(ahead, there.t).x_0
            eps = noise_in(x, x_0, here) + noise_in(ahead, x_0_ahead, there)
            signal, noise = (there.alpha - here.alpha) / 2, (there.sigma - here.sigma) / 2
            return x + signal * (x_0 + x_0_ahead) + noise * eps

        moves = (there.t > 0) & (there.t != here.t)
        return jax.lax.cond(moves, corrected, lambda ahead: ahead, ahead), x_0, None

    return integrate(step, x, grid, process, num_steps, frames)


def dpm_solver_2m(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    frames: int | None = None,
) -> Samples:
    r"""Integrate the probability-flow ODE by DPM-Solver++ 2M, a multistep method of order 2.

    In the half log-SNR $\lambda$, with the step $h = \lambda_s - \lambda_t$ and the one before it
    $h'$: $x_s = \frac{\sigma_s}{\sigma_t} x - \alpha_s (e^{-h} - 1) D$ and
    $D = x_0 + \frac{h}{2h'} (x_0 - x_0')$; $e^{-h}$ is $\rho$. The first step, and one that ends at
    the data, where h is infinite, take $D = x_0$.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times.
        key: Of no effect.
        process: The process.
        num_steps: n, steps of the grid.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Lu et al., arXiv:2211.01095, algorithm 2.
    """

    def step(
        x: Array, here: Level, there: Level, i: Array, memory: tuple[Array, Array]
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        x_0 = denoise(x, here.t).x_0
        before, h_before = memory
        h = (there.log_snr - here.log_snr) / 2
        second = (h_before != 0) & (there.t > 0)
        ratio = jnp.where(second, h, 0) / jnp.where(second, 2 * h_before, 1)
        direction = x_0 + ratio * (x_0 - before)
        moved = there.sigma / here.sigma * x - there.alpha * jnp.expm1(-h) * direction
        # A step of no length leaves the slope as it is known.
        still = there.t == here.t
        memory = (jnp.where(still, before, x_0), jnp.where(still, h_before, h))
        return jnp.where(still, x, moved), x_0, memory

    nothing = (jnp.zeros_like(x), jnp.zeros((), x.dtype))
    return integrate(step, x, grid, process, num_steps, frames, nothing)


def _euler_step(x: Array, x_0: Array, here: Level, there: Level) -> Array:
    signal, noise = there.alpha - here.alpha, there.sigma - here.sigma
    # At the data exactly what the denoiser says: bounds that it keeps stay kept.
    return jnp.where(there.t > 0, x + signal * x_0 + noise * noise_in(x, x_0, here), x_0)


def _churned(
    x: Array,
    here: Level,
    i: Array,
    key: Array,
    process: Process,
    churn: Churn | None,
    num_steps: Count,
) -> tuple[Array, Level]:
    """Add the noise of EDM's algorithm 2: x and the level to which it belongs then.

    sigma / alpha grows by a factor of 1 + gamma, but not past the process's end. Times of a
    discrete process are steps of it.
    """
    if churn is None:
        return x, here
    ratio = jnp.exp(-here.log_snr / 2)
    within = (ratio >= churn.least) & (ratio <= churn.most)
    gamma = jnp.where(within, jnp.minimum(churn.amount / num_steps, _MOST_CHURN), 0)
    later = process.snap(process.time_at(here.log_snr - 2 * jnp.log1p(gamma)))
    there = level_at(process, jnp.where(gamma > 0, jnp.maximum(later, here.t), here.t))
    return forward_step(x, here, there, churn.noise * row_noise(key, i, x)), there
