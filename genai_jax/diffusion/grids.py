r"""Which times a sampler visits: a grid is a function (i, n) -> t, i = 0 ... n.

grid(0, n) is where sampling starts and grid(n, n) = 0 is the data. The index, the number of steps
and the kind of grid are traced, so that one executable serves every grid.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genai_jax.diffusion.process import Process

Grid = Callable[[Array | int, Array | int], Array]
"""`(i, n) -> t`: i = 0 ... n, of any shape, and n a scalar."""

GridKind = Literal["uniform", "quadratic", "karras", "log_snr", "trailing"]
GRIDS: tuple[GridKind, ...] = get_args(GridKind)

# In nats. What starts with less signal is spaced as if it started with as much.
_LEAST_LOG_SNR = -12.0


def make_grid(
    process: Process,
    kind: GridKind | Int[Array, ""],
    *,
    start: Float[Array, ""] | float = 1.0,
    rho: Float[Array, ""] | float = 7.0,
    sigma_min: Float[Array, ""] | float = 0.002,
) -> Grid:
    r"""Make a grid of n steps from `start` to 0.

    With $s$ for `start` and $r = \sigma / \alpha$, r(s) of the start:

    - uniform: $s (1 - i/n)$. Of a discrete process, whose start is step S, DDIM's leading steps:
      $\lfloor k S / n \rfloor + 1$, k = n - 1 - i, so that the first of them is below S.
    - quadratic: $s (1 - i/n)^2$, dense near the data.
    - karras: $r_i = (r(s)^{1/\rho} + \frac{i}{n-1} (r_\mathrm{min}^{1/\rho} -
      r(s)^{1/\rho}))^\rho$, i < n, then 0.
    - log_snr: n points as far from each other in log-SNR, from the start's to that of
      `sigma_min`, then 0.
    - trailing: $s (1 - i/n)$, rounded to steps of a discrete process: the first of them is S.

    Times of a discrete process are steps of it, so that some of many repeat: solvers take those
    without moving. Where the start has less than -12 nats of signal, karras and log_snr go
    from it to their second point, as if it had as much: from infinity nothing can be spaced.

    Args:
        process: Whose times.
        kind: Name, or index in `GRIDS`, which may be traced.
        start: Time at which sampling starts, in (0, 1].
        rho: Of karras: the higher, the denser near the data.
        sigma_min: Of karras and log_snr: sigma / alpha of the last point before 0, in units of the
            data; at most that of the start.

    Reference: uniform and quadratic: Song et al., arXiv:2010.02502, appendix D.2; karras: Karras et
        al., arXiv:2206.00364, eq. 5; log_snr: Lu et al., arXiv:2206.00927; trailing: Lin et al.,
        arXiv:2305.08891, section 3.3.
    """
    index = jnp.int32(GRIDS.index(kind)) if isinstance(kind, str) else kind
    start = process.snap(jnp.asarray(start, jnp.result_type(float)))
    rho, sigma_min = (jnp.asarray(number, start.dtype) for number in (rho, sigma_min))
    highest = -2 * jnp.log(sigma_min)
    lowest = jnp.minimum(jnp.maximum(process.log_snr(start), _LEAST_LOG_SNR), highest)

    def before_last(i: Array, n: Array) -> Array:
        """Where i is between the first point and the last before 0, in [0, 1]."""
        return (i / jnp.maximum(n - 1, 1)).astype(start.dtype)

    def uniform(i: Array, n: Array) -> Array:
        if not process.num_steps:
            return trailing(i, n)
        steps = jnp.round(start * process.num_steps).astype(int)
        return ((n - 1 - i) * steps // n + 1).astype(start.dtype) / process.num_steps

    def quadratic(i: Array, n: Array) -> Array:
        return start * jnp.square(1 - (i / n).astype(start.dtype))

    def karras(i: Array, n: Array) -> Array:
        first, last = jnp.exp(-lowest / (2 * rho)), jnp.exp(-highest / (2 * rho))
        ratio = first + before_last(i, n) * (last - first)
        return process.time_at(-2 * rho * jnp.log(ratio))

    def log_snr(i: Array, n: Array) -> Array:
        return process.time_at(lowest + before_last(i, n) * (highest - lowest))

    def trailing(i: Array, n: Array) -> Array:
        return start * (1 - (i / n).astype(start.dtype))

    kinds = (uniform, quadratic, karras, log_snr, trailing)  # in the order of GRIDS

    def grid(i: Array | int, n: Array | int) -> Array:
        i, n = jnp.asarray(i), jnp.asarray(n)
        t = process.snap(jax.lax.switch(index, kinds, i, n))
        leading = (index == GRIDS.index("uniform")) & bool(process.num_steps)
        t = jnp.where((i == 0) & ~leading, start, t)
        return jnp.where(i >= n, 0, t)

    return grid
