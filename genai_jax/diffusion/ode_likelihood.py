r"""How likely images are: the density of the probability-flow ODE, by the change of variables.

The convention: uniform dequantisation. A number of L levels is moved by up to half a bin in either
direction, and a density on $[-1 - h, 1 + h]$, $h = 1 / (L - 1)$, is one on levels of width 1 after
a change of variables. Its figures are not comparable to those of discretised bins (`likelihood`):
the noise itself costs bits.

Whatever its geometry, a process is followed by the angle $\varphi$ of $\tan\varphi = \sigma /
\alpha$: of $x = \cos\varphi\,x_0 + \sin\varphi\,\epsilon$ the ODE $dx = x_0\,d\alpha +
\epsilon\,d\sigma$ is $dx / d\varphi = v = \cos\varphi\,\epsilon - \sin\varphi\,x_0$, of which no
end is singular.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.denoiser import Denoise, Diffusion, ImageModel
from genai_jax.diffusion.grids import Grid
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.steps import Count
from genai_jax.types import PyTree

Scalar = Float[Array, ""] | float

# Of the Runge-Kutta method of order 4: where the slopes are taken, and how much each counts.
_PLACES = (0.0, 1 / 2, 1 / 2, 1.0)
_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def make_angle_grid(process: Process, sigma_min: Scalar, rho: Scalar = 5.0) -> Grid:
    r"""Make the grid of n - 1 steps from t = 1 to where sigma / alpha is `sigma_min`, then 0.

    $\varphi_i = (\varphi(1)^{1/\rho} + \frac{i}{n-1} (\varphi_\mathrm{min}^{1/\rho} -
    \varphi(1)^{1/\rho}))^\rho$: Karras's spacing of the angle, which unlike that of sigma / alpha
    wastes no steps where there is next to no signal. Of a discrete process it ends at its first
    step at the latest; others lie between its steps.

    Args:
        process: Whose times.
        sigma_min: sigma / alpha at the last time before 0, in units of the data.
        rho: The higher, the denser near the data.

    Reference: the spacing is that of Karras et al., arXiv:2206.00364, eq. 5.
    """

    def grid(i: Array | int, n: Array | int) -> Array:
        share = jnp.asarray(i / jnp.maximum(jnp.asarray(n) - 1, 1), jnp.result_type(float))
        first = angle(process, jnp.ones((), share.dtype)) ** (1 / rho)
        last = jnp.arctan(jnp.asarray(sigma_min, share.dtype)) ** (1 / rho)
        t = time_at_angle(process, (first + share * (last - first)) ** rho)
        if process.num_steps:
            t = jnp.maximum(t, 1 / process.num_steps)
        # The ends are what they are, not what rounding makes of their angles.
        return jnp.where(jnp.asarray(i) >= n, 0, jnp.where(jnp.asarray(i) == 0, 1, t))

    return grid


def angle(process: Process, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
    r"""Compute $\varphi = \arctan(\sigma / \alpha)$ of a time, in $[0, \pi / 2]$."""
    alpha, sigma = process.alpha_sigma(t)
    return jnp.arctan2(sigma, alpha)


def time_at_angle(process: Process, phi: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Find the time of an angle; the inverse of `angle`."""
    # At a right angle rounding may make the cosine negative.
    cosine = jnp.maximum(jnp.cos(phi), jnp.finfo(phi.dtype).tiny)
    return process.time_at(2 * (jnp.log(cosine) - jnp.log(jnp.sin(phi))))


def log_density(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    key: Key[Array, " b"] | None,
    *,
    process: Process,
    grid: Grid,
    num_steps: Count,
    probes: int = 0,
) -> Float[Array, " b"]:
    r"""Compute the log-density of data under the probability-flow ODE, in nats.

    $\log p(x(\varphi_0)) = \log N(x(\varphi_1); 0, I) + \int_{\varphi_0}^{\varphi_1} \nabla\cdot v
    \,d\varphi$, by the Runge-Kutta method of order 4 from the grid's last time before 0 to its
    first. It is the density of $x_0 + (\sigma / \alpha)\,\epsilon$ there: of the data with that
    little noise.

    Args:
        denoise: The denoiser.
        x: Data, of any shape.
        key: One a row, for the probes; None where there are none.
        process: The process.
        grid: Times; n steps are taken between the n + 1 times grid(0, n + 1) ... grid(n, n + 1).
        num_steps: n; the network is asked four times a step.
        probes: 0: the divergence is exact, at the cost of one gradient a dimension. Else
            Hutchinson's unbiased estimate of it by as many random signs, the same all the way.

    Reference: Song et al., arXiv:2011.13456, eq. 39; random signs: Grathwohl et al.,
        arXiv:1810.01367, eq. 7.
    """
    shape, dtype = x.shape, x.dtype
    dimensions = math.prod(shape[1:])
    directions = _directions(x, key, probes)

    def angle_at(i: Int[Array, ""]) -> Float[Array, ""]:
        return angle(process, grid(num_steps - i, num_steps + 1).astype(dtype))

    def velocity(x: Array, phi: Array) -> tuple[Array, Array]:
        t = time_at_angle(process, phi)
        alpha, sigma = process.alpha_sigma(t)
        norm = jnp.sqrt(alpha**2 + sigma**2)

        def v(x: Array) -> Array:
            return (alpha / norm * x - denoise(norm * x, t).x_0) / (sigma / norm)

        value, moved = _differentials(v, x, directions)
        along = (moved * directions).reshape(len(directions), shape[0], -1)
        return value, along.sum(axis=(0, 2)) / (probes or 1)

    def stage(i: Int[Array, ""], carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # The four stages of a step in one body: the network is compiled once.
        x, slope, total, integral = carry
        start, last = angle_at(i // 4), angle_at(i // 4 + 1)
        h = last - start
        place, weight = (jnp.asarray(row, dtype)[i % 4] for row in (_PLACES, _WEIGHTS))
        slope, divergence = velocity(x + place * h * slope, start + place * h)
        total = total + weight * h * slope
        integral = integral + weight * h * divergence
        arrived = i % 4 == 3
        return jnp.where(arrived, x + total, x), slope, jnp.where(arrived, 0, total), integral

    cosine = jnp.cos(angle_at(jnp.int32(0)))
    still = jnp.zeros_like(x)
    carry = (cosine * x, still, still, jnp.zeros(shape[0], dtype))
    end, _, _, integral = jax.lax.fori_loop(0, 4 * num_steps, stage, carry)
    squares = jnp.square(end).reshape(shape[0], -1).sum(axis=1)
    prior = -(squares + dimensions * math.log(2 * math.pi)) / 2
    return prior + integral + dimensions * jnp.log(cosine)


def dequantise(
    images: Float[Array, "b ..."], key: Key[Array, " b"], num_levels: int
) -> Float[Array, "b ..."]:
    """Move every number by up to half a bin: level l to anywhere in [l - 1/2, l + 1/2)."""

    def draw(row: Array) -> Array:
        return jax.random.uniform(row, images.shape[1:], images.dtype, -1, 1)

    return images + jax.vmap(draw)(key) / (num_levels - 1)


def make_ode_likelihood(
    diffusion: Diffusion, num_levels: int, *, probes: int = 1
) -> Callable[..., Float[Array, " b"]]:
    r"""Make the bits per dimension of a network's images, by the ODE and uniform dequantisation.

    $-\frac1d \log_2 (p(x + u)\,(2h)^d)$, u uniform in a bin: on average an upper bound of
    the discrete image's.

    Args:
        diffusion: What the network means.
        num_levels: L, levels of a number of the image.
        probes: Random signs for the divergence; 0 is exact.

    Returns:
        `(model, images, condition, key, num_steps, sigma_min=0.002) -> bits [b]`, compiled once for
        all numbers of steps. Noise comes from fold_in(key, 0), signs from fold_in(key, 1).

    Raises:
        ValueError: If there are fewer than two levels or a negative number of probes.
    """
    if num_levels < 2:
        raise ValueError(f"`num_levels` must be at least 2; got {num_levels}. Bytes have 256.")
    density = make_log_density(diffusion, probes=probes)

    @jax.jit
    def bits(
        model: ImageModel,
        images: Float[Array, "b h w c"],
        condition: PyTree,
        key: Key[Array, " b"],
        num_steps: Count,
        sigma_min: Scalar = 0.002,
    ) -> Float[Array, " b"]:
        noise, signs = (jax.vmap(lambda row, i=i: jax.random.fold_in(row, i))(key) for i in (0, 1))
        moved = dequantise(images, noise, num_levels)
        nats = density(model, moved, condition, signs, num_steps, sigma_min)
        dimensions = math.prod(images.shape[1:])
        return (-nats / dimensions - math.log(2 / (num_levels - 1))) / math.log(2)

    return bits


def make_log_density(diffusion: Diffusion, *, probes: int = 0) -> Callable[..., Float[Array, " b"]]:
    """Make the log-density of continuous data under a network, in nats, by the ODE.

    Args:
        diffusion: What the network means.
        probes: Random signs for the divergence; 0 is exact.

    Returns:
        `(model, x, condition, key, num_steps, sigma_min=0.002) -> nats [b]`, compiled once for all
        numbers of steps; see `log_density`.

    Raises:
        ValueError: If the number of probes is negative.
    """
    if probes < 0:
        raise ValueError(f"`probes` must be at least 0 (exact); got {probes}.")

    @jax.jit
    def nats(
        model: ImageModel,
        x: Float[Array, "b h w c"],
        condition: PyTree,
        key: Key[Array, " b"] | None,
        num_steps: Count,
        sigma_min: Scalar = 0.002,
    ) -> Float[Array, " b"]:
        return log_density(
            diffusion.make_denoiser(model, condition),
            x,
            key,
            process=diffusion.process,
            grid=make_angle_grid(diffusion.process, sigma_min),
            num_steps=num_steps,
            probes=probes,
        )

    return nats


def _directions(
    x: Float[Array, "b ..."], key: Key[Array, " b"] | None, probes: int
) -> Float[Array, "k b ..."]:
    """Directions that the divergence is measured along: every axis, or random signs by row."""
    if not probes:
        dimensions = math.prod(x.shape[1:])
        axes = jnp.eye(dimensions, dtype=x.dtype).reshape(dimensions, 1, *x.shape[1:])
        return jnp.broadcast_to(axes, (dimensions, *x.shape))
    if key is None:
        raise ValueError(f"`probes` are drawn by `key`, one a row; got None for {probes} probes.")

    def draw(row: Array) -> Array:
        return jax.random.rademacher(row, (probes, *x.shape[1:]), x.dtype)

    return jnp.swapaxes(jax.vmap(draw)(key), 0, 1)


def _differentials(
    v: Callable[[Array], Array], x: Float[Array, "b ..."], directions: Float[Array, "k b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, "k b ..."]]:
    """Compute v(x), and J e or e J of each direction e: either gives e J e."""
    try:
        value, push = jax.linearize(v, x)
        return value, jax.vmap(push)(directions)
    except TypeError:
        # A network with gradients of its own has them in reverse mode only. Elsewhere that is
        # avoided: on a CPU the gradient of a convolution is several times slower in a loop.
        value, pull = jax.vjp(v, x)
        return value, jax.vmap(lambda e: pull(e)[0])(directions)
