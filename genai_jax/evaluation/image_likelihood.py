"""Bits per dimension of held-out images under a diffusion model: its bound, or its ODE's."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Integer

from genai_jax.data.image_rows import levels_to_float
from genai_jax.data.images import ImageData, SplitName
from genai_jax.diffusion.denoiser import Denoise, Diffusion
from genai_jax.diffusion.grids import make_grid
from genai_jax.diffusion.likelihood import Estimate, mean_with_error
from genai_jax.diffusion.ode_likelihood import make_ode_likelihood
from genai_jax.diffusion.variational_bound import variational_bound
from genai_jax.objectives.denoising import Condition
from genai_jax.parallel.sharding import batch_sharding, over_rows
from genai_jax.training.step import row_keys
from genai_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class BoundConfig:
    """How the variational bound is computed.

    Attributes:
        num_steps: n, steps of the reverse process, as far from each other in log-SNR.
        evaluations: Steps that are looked at for each image, one in each part of all of them.
        sigma_min: sigma / alpha of the least noisy version, from which the image is decoded;
            chosen on validation images.
        decoder_scale: Factor on the decoder's deviation; chosen on validation images.
        images: Most images of a split that are looked at: its first ones.
    """

    num_steps: int = 1000
    evaluations: int = 100
    sigma_min: float = 0.05
    decoder_scale: float = 1.0
    images: int = 1000

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 1 <= self.evaluations < self.num_steps:
            raise ValueError(
                "`evaluations` must be at least 1 and fewer than `num_steps`; got "
                f"{self.evaluations} and {self.num_steps}. Choose 100 and 1000."
            )
        if self.images < 2:
            raise ValueError(f"`images` must be at least 2; got {self.images}.")
        for name in ("sigma_min", "decoder_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)}.")


BitsOf = Callable[[Any, Array, Any, Array], Array]
"""`(model, images, condition, keys) -> bits` per dimension, one of each for each image."""


def make_bound(diffusion: Diffusion, num_levels: int, config: BoundConfig) -> BitsOf:
    """Make the variational bound of images on `num_levels` levels, in discretised bins.

    Args:
        diffusion: What the network means.
        num_levels: L.
        config: How.
    """
    grid = make_grid(diffusion.process, "log_snr", sigma_min=config.sigma_min)

    def within_range(denoise: Denoise) -> Denoise:
        def clipped(x_t: Array, t: Array) -> Any:
            said = denoise(x_t, t)
            return said._replace(x_0=jnp.clip(said.x_0, -1, 1))

        return clipped

    def bits_of(model: Any, images: Array, condition: Any, key: Array) -> Array:
        return variational_bound(
            within_range(diffusion.make_denoiser(model, condition)),
            images,
            key,
            process=diffusion.process,
            grid=grid,
            num_steps=config.num_steps,
            num_levels=num_levels,
            evaluations=config.evaluations,
            variance="learned" if diffusion.learned_variance else "small",
            decoder_scale=config.decoder_scale,
        ).bits

    return bits_of


def make_ode_bits(diffusion: Diffusion, num_levels: int, *, num_steps: int = 64) -> BitsOf:
    """Make the bits by the ODE's likelihood of uniformly dequantised images.

    Not comparable with those of bins: they bound them from above, and a network that was trained on
    levels alone expects no numbers between them.

    Args:
        diffusion: What the network means.
        num_levels: L.
        num_steps: Steps of the Runge-Kutta method, four evaluations and one random sign each.
    """
    likelihood = make_ode_likelihood(diffusion, num_levels)
    return lambda model, images, condition, key: likelihood(
        model, images, condition, key, num_steps
    )


def held_out_bits(
    bits_of: BitsOf,
    model: PyTree,
    images: Float[np.ndarray, "n h w c"],
    condition: Integer[np.ndarray, "n ..."] | None,
    *,
    num_classes: int,
    mesh: Mesh,
    seed: int = 0,
    batch_size: int = 120,
    check: Callable[[], None] = lambda: None,
) -> Estimate:
    r"""Average the bits per dimension of images.

    Where the model is told the class y of an image, $\log_2 C / d$ is added: naming one of C
    classes, then the image given its class, is a code for the image, $p(x) \ge p(x | y) / C$.

    Args:
        bits_of: `make_bound` or `make_ode_bits` of the model.
        model: The network.
        images: In [-1, 1], on their levels.
        condition: What the network is told of each; None tells it nothing.
        num_classes: C; 0 where the condition is no class.
        mesh: Rows are dealt out over its devices.
        seed: Of the noise.
        batch_size: Images of a call, rounded up to a multiple of the devices.
        check: Called between batches; may raise to stop.

    Returns:
        The mean, with its standard error over images and noise.
    """
    compiled = jax.jit(over_rows(bits_of, mesh, (False, True, True, True)))
    size = -(-min(batch_size, len(images)) // mesh.size) * mesh.size
    found = []
    for first in range(0, len(images), size):
        check()
        numbers = np.arange(first, first + size) % len(images)  # the last batch is filled up
        keys = row_keys(seed, 0, size, "bound", first=first)
        told = None if condition is None else condition[numbers]
        placed = jax.device_put((images[numbers], told, keys), batch_sharding(mesh))
        found.append(jax.device_get(compiled(model, *placed))[: len(images) - first])
    bits = mean_with_error(np.concatenate(found))
    naming = math.log2(num_classes) / images[0].size if num_classes and told is not None else 0.0
    return bits._replace(mean=bits.mean + naming)


def split_bits(
    bits_of: BitsOf,
    model: PyTree,
    data: ImageData,
    split: SplitName,
    condition: Condition,
    *,
    images: int,
    mesh: Mesh,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Estimate:
    """Average the bits per dimension of a split's first images, of all where there are fewer."""
    told = None if condition == "none" else data.field_of(split, condition)[:images]
    return held_out_bits(
        bits_of,
        model,
        levels_to_float(data.levels_of(split)[:images], data.levels),
        told,
        num_classes=data.num_classes if condition == "label" else 0,
        mesh=mesh,
        seed=seed,
        check=check,
    )
