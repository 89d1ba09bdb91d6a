r"""The variational bound of a diffusion model, in bits per dimension of discretised bins.

The model is the reverse Markov chain of `samplers.ancestral` on the times $t_1 < \dots < t_n$ of a
grid, with a decoder in place of its last step: $-\log p(x) \le L_T + L_2 + \dots + L_n + L_0$.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.denoiser import Denoise, Diffusion, ImageModel
from genai_jax.diffusion.grids import Grid, GridKind, make_grid
from genai_jax.diffusion.likelihood import (
    decoder_deviation,
    log_bin_mass,
    prior_kl,
    row_mean,
    step_kl,
)
from genai_jax.diffusion.predictions import like
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.samplers import Variance
from genai_jax.diffusion.steps import Count
from genai_jax.types import PyTree

Scalar = Float[Array, ""] | float


class Bound(NamedTuple):
    """The variational bound of each image, in bits per dimension.

    Attributes:
        bits: The sum of its parts.
        prior: L_T: what the last time still says of the image.
        steps: L_2 + ... + L_n: the reverse steps.
        decoder: L_0: the image, given its least noisy version.
    """

    bits: Float[Array, " b"]
    prior: Float[Array, " b"]
    steps: Float[Array, " b"]
    decoder: Float[Array, " b"]


def variational_bound(
    denoise: Denoise,
    images: Float[Array, "b ..."],
    key: Key[Array, " b"],
    *,
    process: Process,
    grid: Grid,
    num_steps: Count,
    num_levels: int,
    evaluations: Count | None = None,
    variance: Variance = "small",
    decoder_scale: Scalar = 1.0,
) -> Bound:
    r"""Bound $-\log_2 p(x) / d$ from above: all of its terms, or an unbiased estimate of them.

    L_T and the decoder's term are always there. Of the n - 1 steps between, m are looked at, one
    in each m-th of them, at random and weighted by (n - 1) / m. Every term is an expectation over
    noise, of which there is one draw; m = n - 1 looks at every step once.

    Args:
        denoise: The denoiser.
        images: Images of L levels in [-1, 1].
        key: One a row. Noise of step k comes from fold_in(key, k), the choice of steps from 0.
        process: The process.
        grid: Its times: t_k is grid(n - k, n). Their first one, t_1, counts most: below it a
            network must tell apart what is within a bin.
        num_steps: n, at least 2.
        num_levels: L.
        evaluations: m, at least 1; None is all of them.
        variance: Of the reverse steps, as of `samplers.ancestral`. The decoder's is that of the
            smallest, unless learned.
        decoder_scale: Factor on the decoder's deviation; see `decoder_deviation`.

    Reference: Ho et al., arXiv:2006.11239, eqs. 5, 8 and 13; the choice of the decoder's variance
        is that of its released code.
    """
    n = jnp.asarray(num_steps, jnp.int32)
    m = n - 1 if evaluations is None else jnp.asarray(evaluations, jnp.int32)
    dtype = images.dtype

    def times(*k: Int[Array, "*b"]) -> tuple[Float[Array, "*b"], ...]:
        return tuple(grid(n - jnp.stack(k), n).astype(dtype))

    def look(k: Int[Array, " b"], t: Float[Array, " b"]) -> tuple[Array, Array]:
        eps = jax.vmap(
            lambda row, i: jax.random.normal(jax.random.fold_in(row, i), images.shape[1:], dtype)
        )(key, k)
        alpha, sigma = process.alpha_sigma(t)
        x_0, fraction = denoise(like(alpha, eps) * images + like(sigma, eps) * eps, t)
        if variance == "learned":
            if fraction is None:
                raise ValueError(
                    "`variance` 'learned' needs a denoiser that says it. Choose small."
                )
            return x_0, fraction
        fixed = jnp.where(k > 1, variance == "large", 0).astype(dtype)  # the decoder's is small
        return x_0, jnp.broadcast_to(like(fixed, x_0), x_0.shape)

    one = jnp.ones(len(images), jnp.int32)
    first, second, last = times(one, 2 * one, n * one)
    x_0, fraction = look(one, first)
    deviation = decoder_deviation(process, first, second, fraction, num_levels, decoder_scale)
    decoder = -row_mean(log_bin_mass(images, x_0, deviation, num_levels))
    u = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(row, 0), (), dtype))(key)

    def add(j: Int[Array, ""], total: Float[Array, " b"]) -> Float[Array, " b"]:
        k = 2 + stratified_index(j, u, n - 1, m)
        s, t = times(k - 1, k)
        x_0, fraction = look(k, t)
        return total + row_mean(step_kl(process, t, s, jnp.square(images - x_0), fraction))

    total = jax.lax.fori_loop(0, m, add, jnp.zeros_like(decoder))
    steps = total * ((n - 1).astype(dtype) / m)
    prior = row_mean(prior_kl(process, last, images))
    bits = (part / math.log(2) for part in (prior + steps + decoder, prior, steps, decoder))
    return Bound(*bits)


def stratified_index(
    j: Int[Array, ""], u: Float[Array, " b"], count: Int[Array, ""], strata: Int[Array, ""]
) -> Int[Array, " b"]:
    r"""Compute $\lfloor (j + u)\,\mathrm{count} / \mathrm{strata} \rfloor$, u in [0, 1).

    In whole numbers as far as they go: with as many strata as things, j exactly.
    """
    whole, rest = j * count // strata, j * count % strata
    offset = jnp.floor((rest + u * count) / strata).astype(jnp.int32)
    return jnp.minimum(whole + offset, ((j + 1) * count - 1) // strata)


def make_variational_bound(
    diffusion: Diffusion,
    num_levels: int,
    *,
    variance: Variance = "small",
    grid: GridKind = "trailing",
) -> Callable[..., Bound]:
    """Make the bound of a network, compiled once for all numbers of steps and evaluations.

    Args:
        diffusion: What the network means.
        num_levels: L, levels of a number of the image.
        variance: Of the reverse steps.
        grid: Of the times; trailing is k / n. Of karras and log_snr `sigma_min` sets t_1.

    Returns:
        `(model, images, condition, key, num_steps, evaluations=None, sigma_min=0.002,
        decoder_scale=1.0) -> Bound`; see `variational_bound`.

    Raises:
        ValueError: If there are fewer than two levels, or no learned variance to use; of what is
            returned, if it is asked for fewer than 2 steps, for more than a discrete process has,
            or for no evaluation, in numbers known before it runs.
    """
    process = diffusion.process
    if num_levels < 2:
        raise ValueError(f"`num_levels` must be at least 2; got {num_levels}. Bytes have 256.")
    if variance == "learned" and not diffusion.learned_variance:
        raise ValueError(
            "`variance` 'learned' needs a network that learns it; got diffusion.learned_variance "
            "False. Choose small or large."
        )

    @jax.jit
    def compiled(
        model: ImageModel,
        images: Float[Array, "b h w c"],
        condition: PyTree,
        key: Key[Array, " b"],
        num_steps: Count,
        evaluations: Count,
        sigma_min: Scalar,
        decoder_scale: Scalar,
    ) -> Bound:
        return variational_bound(
            diffusion.make_denoiser(model, condition),
            images,
            key,
            process=process,
            grid=make_grid(process, grid, sigma_min=sigma_min),
            num_steps=num_steps,
            num_levels=num_levels,
            evaluations=evaluations,
            variance=variance,
            decoder_scale=decoder_scale,
        )

    def bound(
        model: ImageModel,
        images: Float[Array, "b h w c"],
        condition: PyTree,
        key: Key[Array, " b"],
        num_steps: Count,
        evaluations: Count | None = None,
        sigma_min: Scalar = 0.002,
        decoder_scale: Scalar = 1.0,
    ) -> Bound:
        if isinstance(num_steps, int) and not 2 <= num_steps <= (process.num_steps or num_steps):
            raise ValueError(
                f"A bound has at least 2 steps, and at most those of a discrete process; got "
                f"{num_steps} with process.num_steps {process.num_steps}."
            )
        if isinstance(evaluations, int) and evaluations < 1:
            raise ValueError(f"`evaluations` must be at least 1; got {evaluations}.")
        evaluations = num_steps - 1 if evaluations is None else evaluations
        return compiled(
            model, images, condition, key, num_steps, evaluations, sigma_min, decoder_scale
        )

    return bound
