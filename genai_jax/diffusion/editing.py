"""Editing: parts of an image drawn anew, and what lies between two images.

Image to image needs nothing of its own: a sampler that is given an image, and settings that start
before t = 1.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from genai_jax.diffusion.denoiser import Denoise, Diffusion
from genai_jax.diffusion.grids import Grid
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.samplers import heun
from genai_jax.diffusion.sampling import Settings, check_rows, denoiser_of, grid_of
from genai_jax.diffusion.steps import (
    Count,
    Level,
    Samples,
    Scalar,
    forward_step,
    integrate,
    level_at,
    reverse_step,
    row_noise,
    signal_kept,
    start_from,
    starting_noise,
)
from genai_jax.parallel.sharding import over_rows
from genai_jax.types import PyTree

# What the noise within a step is for.
_STEP, _KNOWN, _BACK = 0, 1, 2


def inpaint(
    denoise: Denoise,
    x: Float[Array, "b h w c"],
    grid: Grid,
    key: Key[Array, " b"],
    *,
    process: Process,
    num_steps: Count,
    image: Float[Array, "b h w c"],
    known: Float[Array, "b h w #c"],
    resamples: Count = 10,
    frames: int | None = None,
) -> Samples:
    r"""Sample the unknown part of images, given the known one.

    Each step goes from t to s by the reverse chain (small variance), then puts the known part,
    $\alpha_s x + \sigma_s z$, in place. To bring both parts to agree it goes back to t by
    $q(x_t | x_s)$ and does so again.

    Args:
        denoise: The denoiser.
        x: At the first time of the grid.
        grid: Times.
        key: One a row.
        process: The process.
        num_steps: n, steps of the grid.
        image: Images whose known part is kept.
        known: 1 where the image is known, 0 where it is drawn.
        resamples: U, how often each step is done; the network is called U n - U + 1 times.
        frames: Estimates of x_0 to return; None returns none.

    Reference: Lugmayr et al., arXiv:2201.09865, algorithm 1 with jumps of length 1, for any process
        and grid.
    """

    def step(
        x: Array, here: Level, there: Level, i: Array, memory: None
    ) -> tuple[Array, Array, None]:
        keys = jax.vmap(lambda row: jax.random.fold_in(row, i))(key)
        times = jnp.where(there.t > 0, resamples, 1)
        rho = signal_kept(here, there)

        def once(u: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, _ = carry
            own = jax.vmap(lambda row: jax.random.fold_in(row, u))(keys)
            x_0 = denoise(x, here.t).x_0
            drawn = reverse_step(
                x,
                x_0,
                here,
                there,
                kept=there.sigma * rho,
                deviation=there.sigma * jnp.sqrt(1 - rho**2),
                noise=row_noise(own, _STEP, x),
            )
            given = start_from(image, row_noise(own, _KNOWN, x), there)
            joined = known * given + (1 - known) * drawn
            back = forward_step(joined, there, here, row_noise(own, _BACK, x))
            return jnp.where(u < times - 1, back, joined), x_0

        x, x_0 = jax.lax.fori_loop(0, times, once, (x, jnp.zeros_like(x)))
        return x, x_0, None

    return integrate(step, x, grid, process, num_steps, frames)


def encode(
    denoise: Denoise,
    image: Float[Array, "b ..."],
    grid: Grid,
    *,
    process: Process,
    num_steps: Count,
) -> Float[Array, "b ..."]:
    r"""Find the noise that a deterministic solver turns into an image: the ODE, upwards.

    Heun's method from the grid's last time before the data, where it starts from $\alpha x$: of the
    image, that forgets what is finer than the noise there.

    Args:
        denoise: The denoiser.
        image: Images.
        grid: Times, from noise to data, as for sampling.
        process: The process.
        num_steps: n, at least 2.

    Returns:
        Noise, of standard deviation 1 where the images are what the denoiser knows.

    Reference: Song et al., arXiv:2010.02502, section 4.3 and eq. 14; the solver is Karras et al.,
        arXiv:2206.00364, algorithm 2.
    """

    def upward(i: Array | int, n: Array | int) -> Array:
        return grid(n - i, n + 1)

    alpha, _ = process.alpha_sigma(upward(0, num_steps - 1))
    unused = jax.random.split(jax.random.key(0), image.shape[0])  # Heun without churn draws nothing
    steps: dict[str, Any] = {"process": process, "num_steps": num_steps - 1}
    x = heun(denoise, alpha * image, upward, unused, **steps).x
    _, sigma = process.alpha_sigma(grid(0, num_steps))
    return x / sigma


def slerp(
    first: Float[Array, "b ..."], second: Float[Array, "b ..."], fraction: Scalar
) -> Float[Array, "b ..."]:
    r"""Interpolate on the sphere: $\frac{\sin((1 - f)\theta)}{\sin\theta} a +
    \frac{\sin(f\theta)}{\sin\theta} b$, with $\theta$ the angle between a and b.

    Between two draws of noise, which are nearly orthogonal, this is noise of the same length; a
    straight line has less in the middle.

    Args:
        first: a; each row is a vector.
        second: b.
        fraction: f, in [0, 1].

    Reference: Song et al., arXiv:2010.02502, appendix D.5.
    """
    axes = tuple(range(1, first.ndim))
    dot = lambda a, b: jnp.sum(a * b, axes, keepdims=True)  # noqa: E731
    cosine = dot(first, second) / jnp.sqrt(dot(first, first) * dot(second, second))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    # Of (almost) the same direction, the limit: a straight line.
    near = jnp.sin(angle) < 1e-4
    sine = jnp.where(near, 1, jnp.sin(angle))
    weight = lambda part: jnp.where(near, part, jnp.sin(part * angle) / sine)  # noqa: E731
    return weight(1 - fraction) * first + weight(fraction) * second


@runtime_checkable
class Inpainter(Protocol):
    """A jitted function that draws parts of images anew."""

    def __call__(
        self,
        model: Any,
        key: Key[Array, " b"],
        condition: PyTree,
        settings: Settings,
        *,
        image: Float[Array, "b h w c"],
        known: Float[Array, "b h w #c"],
        resamples: Count,
    ) -> Samples:
        """Draw what is not known.

        Args:
            model: The network.
            key: One a row.
            condition: Of the rows, or None.
            settings: From `settings_of`; solver, eta and churn have no effect.
            image: Whose known part is kept.
            known: 1 where the image is known, 0 where it is drawn.
            resamples: How often each step is done; 1 is plain replacement.
        """


def make_inpainter(
    diffusion: Diffusion, mesh: Mesh | None = None, *, frames: int | None = None
) -> Inpainter:
    """Make the jitted inpainter: one executable for every setting.

    Args:
        diffusion: What the network means.
        mesh: Rows are dealt out over all of its devices; None is one device.
        frames: Estimates of the image on the way that are returned, too; None returns none.

    Returns:
        A function that gives images in [-1, 1].
    """
    process = diffusion.process

    def sample(
        model: Any,
        key: Array,
        condition: PyTree,
        settings: Settings,
        image: Array,
        known: Array,
        resamples: Array,
    ) -> Samples:
        grid = grid_of(process, settings)
        start = level_at(process, grid(0, settings.num_steps))
        x = start_from(jnp.zeros_like(image), starting_noise(key, image), start)
        samples = inpaint(
            denoiser_of(diffusion, model, condition, settings),
            x,
            grid,
            key,
            process=process,
            num_steps=settings.num_steps,
            image=image,
            known=known,
            resamples=resamples,
            frames=frames,
        )
        return jax.tree.map(lambda x: jnp.clip(x, -1, 1), samples)

    dealt = (False, True, True, False, True, True, False)

    @jax.jit
    def inpainter(
        model: Any,
        key: Array,
        condition: PyTree,
        settings: Settings,
        *,
        image: Array,
        known: Array,
        resamples: Array,
    ) -> Samples:
        check_rows(key.shape[0], mesh)
        run = sample if mesh is None else over_rows(sample, mesh, dealt)
        return run(model, key, condition, settings, image, known, resamples)

    return inpainter


@runtime_checkable
class Encoder(Protocol):
    """A jitted function that finds the noise of images."""

    def __call__(
        self,
        model: Any,
        image: Float[Array, "b h w c"],
        condition: PyTree,
        settings: Settings,
    ) -> Float[Array, "b h w c"]:
        """Find the noise that a deterministic solver turns into these images.

        Args:
            model: The network.
            image: The images.
            condition: Of the rows, or None.
            settings: From `settings_of`: steps, grid, guidance and range have an effect.
        """


def make_encoder(diffusion: Diffusion, mesh: Mesh | None = None) -> Encoder:
    """Make the jitted encoder: one executable for every setting.

    Args:
        diffusion: What the network means.
        mesh: Rows are dealt out over all of its devices; None is one device.
    """
    process = diffusion.process

    def find(model: Any, image: Array, condition: PyTree, settings: Settings) -> Array:
        denoise = denoiser_of(diffusion, model, condition, settings)
        steps: dict[str, Any] = {"process": process, "num_steps": settings.num_steps}
        return encode(denoise, image, grid_of(process, settings), **steps)

    @jax.jit
    def encoder(model: Any, image: Array, condition: PyTree, settings: Settings) -> Array:
        check_rows(image.shape[0], mesh)
        run = find if mesh is None else over_rows(find, mesh, (False, True, True, False))
        return run(model, image, condition, settings)

    return encoder
