"""How much of a Gaussian is in a box: simulation of its numbers one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Key

LEAST_MASS = 1e-300
"""Less than that of a number, given those before it, counts as that: 37 deviations away."""


def log_box_masses(
    low: Float[np.ndarray, "n d"],
    high: Float[np.ndarray, "n d"],
    means: Float[np.ndarray, "k d"],
    covariances: Float[np.ndarray, "k d d"],
    *,
    draws: int,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    r"""Estimate the logarithm of how much of each Gaussian is in each box, in nats.

    With $x = \mu + L z$, the mass is $E \prod_i p_i(z_1 \ldots z_{i-1})$: $p_i$ is that of the
    i-th number, given those before it, which are drawn from their own intervals. Bounded intervals
    come first: conditions on them are the tightest. The mean over draws is unbiased; its logarithm
    is too low by half of the square of the error, on average.

    Args:
        low: Lower corners, or -infinity.
        high: Upper corners, or infinity.
        means: $\mu$ of k Gaussians.
        covariances: $L L^\top$.
        draws: Of the numbers of each box and Gaussian.
        seed: Of the draws.

    Returns:
        Logarithms, and their standard errors.

    Reference: the simulator of Geweke, Hajivassiliou and Keane; Genz, "Numerical computation of
        multivariate normal probabilities", J. Comp. Graph. Stat. 1(2), 1992, sections 2 and 3, with
        pseudorandom numbers.
    """
    with jax.enable_x64(True):
        boxes = [jnp.asarray(x, jnp.float64) for x in (low, high)]
        gaussians = (jnp.asarray(x, jnp.float64) for x in (means, covariances))
        keys = jax.random.split(jax.random.key(seed), (len(means), len(low)))
        # One Gaussian at a time: one executable, however many they are.
        found = [
            jax.device_get(_simulate(*boxes, *gaussian, draws))
            for gaussian in zip(*gaussians, keys, strict=True)
        ]
    masses, errors = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    return masses, errors


@jax.jit(static_argnums=5)
def _simulate(
    low: Float[Array, "n d"],
    high: Float[Array, "n d"],
    mean: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    keys: Key[Array, " n"],
    draws: int,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    d = len(mean)

    def of_box(box: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        low, high, key = box
        order = jnp.argsort(jnp.isinf(high - low))
        low, high, centre = low[order], high[order], mean[order]
        factor = jnp.linalg.cholesky(covariance[order][:, order])

        def draw(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            z, log_weight = carry
            # What is not drawn yet is 0.
            before = centre[i] + z @ factor[i]
            a, b = (low[i] - before) / factor[i, i], (high[i] - before) / factor[i, i]
            # Of an interval above 0 its mirror image, where masses are small numbers.
            mirrored = a > 0
            a, b = jnp.where(mirrored, -b, a), jnp.where(mirrored, -a, b)
            below = ndtr(a)
            mass = jnp.maximum(ndtr(b) - below, LEAST_MASS)
            u = jax.random.uniform(jax.random.fold_in(key, i), (draws,), z.dtype)
            drawn = ndtri(jnp.maximum(below + u * mass, LEAST_MASS))
            z = z.at[:, i].set(jnp.where(mirrored, -drawn, drawn))
            return (z, log_weight + jnp.log(mass)), None

        start = jnp.zeros((draws, d), low.dtype), jnp.zeros(draws, low.dtype)
        (_, log_weight), _ = jax.lax.scan(draw, start, jnp.arange(d))
        weight = jnp.exp(log_weight - log_weight.max())
        error = weight.std(ddof=1) / jnp.sqrt(draws) / weight.mean()
        return log_weight.max() + jnp.log(weight.mean()), error

    return jax.lax.map(of_box, (low, high, keys))
