r"""What solvers are made of: noise by row, a step down, a step up, and the loop over a grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.grids import Grid
from genai_jax.diffusion.process import Process

Scalar = Float[Array, ""] | np.floating | float
Count = Int[Array, ""] | int

# Number of the "step" whose noise sampling starts from.
_START = 2**31 - 1


class Level(NamedTuple):
    """A noise level.

    Attributes:
        t: Its time.
        log_snr: In nats; infinite at t = 0.
        alpha: How much of the image there is.
        sigma: How much of the noise.
    """

    t: Float[Array, ""]
    log_snr: Float[Array, ""]
    alpha: Float[Array, ""]
    sigma: Float[Array, ""]


def level_at(process: Process, t: Float[Array, ""]) -> Level:
    """Find the noise level of a time."""
    return Level(t, process.log_snr(t), *process.alpha_sigma(t))


def signal_kept(noisy: Level, clean: Level) -> Float[Array, ""]:
    r"""Compute $\rho = (\alpha_t\sigma_s) / (\sigma_t\alpha_s)$, the root of the ratio of SNRs.

    It is 1 of a level and itself, and 0 where s is the data.

    Args:
        noisy: Of t.
        clean: Of s, at most t.
    """
    return jnp.exp((noisy.log_snr - clean.log_snr) / 2)


class Samples(NamedTuple):
    """What a solver arrives at.

    Attributes:
        x: At the last time of the grid.
        trajectory: Estimates of x_0 on the way, where they were asked for; else None. The first
            frame is of the first step, the last of the last.
    """

    x: Float[Array, "b ..."]
    trajectory: Float[Array, "b frames ..."] | None = None


def row_noise(key: Key[Array, " b"], i: Count, x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Draw normal noise in the shape of `x`: of row r by fold_in(key[r], i)."""

    def draw(row: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(row, i), x.shape[1:], x.dtype)

    return jax.vmap(draw)(key)


def starting_noise(key: Key[Array, " b"], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Draw the noise that samples in the shape of `x` start from, apart from that of any step."""
    return row_noise(key, _START, x)


def start_from(
    image: Float[Array, "b ..."], noise: Float[Array, "b ..."], level: Level
) -> Float[Array, "b ..."]:
    r"""Compute what sampling starts from: $\alpha x + \sigma\epsilon$.

    Args:
        image: What the samples should resemble; zeros for samples from noise alone.
        noise: Of standard deviation 1.
        level: Of the first time of the grid.
    """
    return level.alpha * image + level.sigma * noise


def noise_in(
    x: Float[Array, "b ..."], x_0: Float[Array, "b ..."], level: Level
) -> Float[Array, "b ..."]:
    r"""Compute the noise that an estimate of the image implies: $(x - \alpha x_0) / \sigma$."""
    return (x - level.alpha * x_0) / level.sigma


def reverse_step(
    x: Float[Array, "b ..."],
    x_0: Float[Array, "b ..."],
    here: Level,
    there: Level,
    *,
    kept: Float[Array, ""],
    deviation: Float[Array, "..."],
    noise: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
    r"""Go down from t to s: $\alpha_s x_0 + k\,\epsilon + \varsigma z$.

    Args:
        x: At t.
        x_0: Estimate of the image.
        here: Of t.
        there: Of s, at most t. A step of no length moves nothing; one to the data adds no noise.
        kept: k, how much of the noise that there is remains.
        deviation: $\varsigma$ of new noise.
        noise: z.
    """
    moved = there.alpha * x_0 + kept * noise_in(x, x_0, here)
    return jnp.where(there.t < here.t, moved + jnp.where(there.t > 0, deviation, 0) * noise, x)


def forward_step(
    x: Float[Array, "b ..."], here: Level, there: Level, noise: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    r"""Go up from s to t by $q(x_t | x_s)$: $\rho\frac{\sigma_t}{\sigma_s} x +
    \sigma_t\sqrt{1 - \rho^2}\,z$.

    Args:
        x: At s.
        here: Of s, above 0.
        there: Of t, at least s. A step of no length moves nothing.
        noise: z.
    """
    rho = signal_kept(there, here)
    moved = rho * there.sigma / here.sigma * x + there.sigma * jnp.sqrt(1 - rho**2) * noise
    return jnp.where(there.t > here.t, moved, x)


def integrate(
    step: Callable[[Array, Level, Level, Array, Any], tuple[Array, Array, Any]],
    x: Float[Array, "b ..."],
    grid: Grid,
    process: Process,
    num_steps: Count,
    frames: int | None,
    memory: Any = None,
) -> Samples:
    """Run a solver's steps over a grid.

    Args:
        step: `(x, here, there, i, memory) -> (x, x_0, memory)`, between two levels.
        x: At the first time of the grid.
        grid: Times.
        process: The process.
        num_steps: n, steps of the grid.
        frames: Estimates of x_0 to keep; None keeps none.
        memory: What the first step is given.
    """
    rows, *shape = x.shape
    strip = None if frames is None else jnp.zeros((rows, frames, *shape), x.dtype)

    def body(i: Array, carry: Any) -> Any:
        x, memory, strip = carry
        here, there = (level_at(process, grid(j, num_steps)) for j in (i, i + 1))
        x, x_0, memory = step(x, here, there, i, memory)
        if frames is not None:
            last = (num_steps - 1) * jnp.arange(frames) // max(frames - 1, 1)
            now = (last == i).reshape(frames, *(1,) * len(shape))
            strip = jnp.where(now, x_0[:, None], strip)
        return x, memory, strip

    x, _, strip = jax.lax.fori_loop(0, num_steps, body, (x, memory, strip))
    return Samples(x, strip)
