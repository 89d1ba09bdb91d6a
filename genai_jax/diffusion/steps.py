r"""What solvers are made of: noise by row, one reverse step, and the loop over a grid.

Times t > s. $\rho = \mathrm{SNR}_t^{1/2} / \mathrm{SNR}_s^{1/2}$ is 1 where nothing happens and 0
where a step ends at the data or starts without signal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.grids import Grid
from genai_jax.diffusion.predictions import like
from genai_jax.diffusion.process import Process

Scalar = Float[Array, ""] | np.floating | float
Count = Int[Array, ""] | int

# Number of the "step" whose noise sampling starts from.
_START = 2**31 - 1


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
    image: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Float[Array, ""],
    process: Process,
) -> Float[Array, "b ..."]:
    r"""Compute what sampling starts from: $\alpha_t x + \sigma_t\epsilon$.

    Args:
        image: What the samples should resemble; zeros for samples from noise alone.
        noise: Of standard deviation 1.
        t: First time of the grid.
        process: The process.
    """
    alpha, sigma = process.alpha_sigma(t)
    return alpha * image + sigma * noise


def noise_in(
    x: Float[Array, "b ..."], x_0: Float[Array, "b ..."], t: Float[Array, "*b"], process: Process
) -> Float[Array, "b ..."]:
    r"""Compute the noise that an estimate of the image implies: $(x - \alpha x_0) / \sigma$."""
    alpha, sigma = process.alpha_sigma(t)
    return (x - like(alpha, x) * x_0) / like(sigma, x)


def signal_kept(process: Process, t: Float[Array, ""], s: Float[Array, ""]) -> Float[Array, ""]:
    r"""Compute $\rho = (\alpha_t\sigma_s) / (\sigma_t\alpha_s)$ of times $t \ge s$."""
    return jnp.exp((process.log_snr(t) - process.log_snr(s)) / 2)


def reverse_step(
    x: Float[Array, "b ..."],
    x_0: Float[Array, "b ..."],
    t: Float[Array, ""],
    s: Float[Array, ""],
    process: Process,
    *,
    kept: Float[Array, ""],
    deviation: Float[Array, "..."],
    noise: Float[Array, "b ..."],
) -> Float[Array, "b ..."]:
    r"""Go from t to s: $\alpha_s x_0 + k\,\epsilon + \varsigma z$.

    Args:
        x: At t.
        x_0: Estimate of the image.
        t: Time.
        s: Time, at most t. A step of no length moves nothing; one that ends at 0 adds no noise.
        process: The process.
        kept: k, how much of the noise that there is remains.
        deviation: $\varsigma$ of new noise.
        noise: z.
    """
    alpha, _ = process.alpha_sigma(s)
    moved = alpha * x_0 + kept * noise_in(x, x_0, t, process)
    return jnp.where(s < t, moved + jnp.where(s > 0, deviation, 0) * noise, x)


def integrate(
    step: Callable[..., tuple[Array, Array, Any]],
    x: Array,
    grid: Grid,
    num_steps: Count,
    frames: int | None,
    memory: Any = None,
) -> Samples:
    """Run a solver's steps over a grid.

    Args:
        step: `(x, t, s, i, memory) -> (x, x_0, memory)`.
        x: At the first time of the grid.
        grid: Times.
        num_steps: n, steps of the grid.
        frames: Estimates of x_0 to keep; None keeps none.
        memory: What the first step is given.
    """
    rows, *shape = x.shape
    strip = None if frames is None else jnp.zeros((rows, frames, *shape), x.dtype)

    def body(i: Array, carry: Any) -> Any:
        x, memory, strip = carry
        x, x_0, memory = step(x, grid(i, num_steps), grid(i + 1, num_steps), i, memory)
        if frames is not None:
            last = (num_steps - 1) * jnp.arange(frames) // max(frames - 1, 1)
            now = (last == i).reshape(frames, *(1,) * len(shape))
            strip = jnp.where(now, x_0[:, None], strip)
        return x, memory, strip

    x, _, strip = jax.lax.fori_loop(0, num_steps, body, (x, memory, strip))
    return Samples(x, strip)
