"""Draws any number of images, each a function of its own number and the seed; and shows them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Integer

from genai_jax.data.images import ImageData
from genai_jax.data.shape_captions import decode_caption
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.sampling import SamplerConfig, Solver, make_sampler, settings_of
from genai_jax.evaluation.pictures import captioned_png, grid_png
from genai_jax.objectives.denoising import Condition
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.step import row_keys
from genai_jax.types import PyTree

Told = Integer[np.ndarray, "n ..."] | None
"""What each image should be: class labels, tokens of captions, or nothing."""


class Drawer:
    """Draws with any solver and settings; every solver is compiled once."""

    def __init__(
        self, diffusion: Diffusion, shape: tuple[int, int, int], mesh: Mesh, *, batch_size: int = 80
    ) -> None:
        """Compile nothing yet.

        Args:
            diffusion: What the network means.
            shape: Height, width and channels of an image.
            mesh: Images are dealt out over its devices.
            batch_size: Images of a call, rounded up to a multiple of the devices.
        """
        self.diffusion, self._shape, self._mesh = diffusion, shape, mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._samplers: dict[tuple[Solver, int | None], Callable[..., Any]] = {}

    def __call__(
        self,
        model: PyTree,
        count: int,
        told: Told,
        config: SamplerConfig,
        *,
        seed: int = 0,
        weaker: PyTree = None,
        frames: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "n ..."]:
        """Draw images.

        Image i depends on the seed, on i, on its condition and on the settings, whatever the
        devices and the batches.

        Args:
            model: The network.
            count: n, how many.
            told: What each should be.
            config: Solver and settings.
            seed: Of the noise.
            weaker: A network to guide by.
            frames: Estimates of the image on the way to return instead, [n, frames, h, w, c].
            check: Called between batches; may raise to stop.

        Returns:
            Images in [-1, 1], [n, h, w, c].
        """
        sampler = self._samplers.get((config.solver, frames))
        if sampler is None:
            sampler = make_sampler(
                self.diffusion, self._shape, config.solver, self._mesh, frames=frames
            )
            self._samplers[config.solver, frames] = sampler
        settings, size, found = settings_of(config), self._batch_size, []
        for first in range(0, count, size):
            check()
            numbers = np.arange(first, first + size)
            chosen = None if told is None else told[numbers % count]
            keys = row_keys(seed, 0, size, "draw", first=first)
            keys, chosen = jax.device_put((keys, chosen), batch_sharding(self._mesh))
            samples = sampler(model, keys, chosen, settings, weaker=weaker)
            drawn = samples.x if frames is None else samples.trajectory
            found.append(jax.device_get(drawn)[: count - first])
        return np.concatenate(found)


def some_conditions(data: ImageData, condition: Condition, count: int) -> Told:
    """Choose what images should be: every class in turn, or captions of the validation split."""
    if condition == "none":
        return None
    if condition == "label":
        return np.arange(count, dtype=np.int32) % data.num_classes
    tokens = data.field_of("validation", "tokens")
    return tokens[np.arange(count) % len(tokens)]


def picture_of(images: Float[np.ndarray, "n h w c"], told: Told, num_classes: int) -> bytes:
    """Lay images out as PNG: a column a class where there are few, or each with its caption."""
    if told is not None and told.ndim == 2:
        return captioned_png(images, [decode_caption(tokens) for tokens in told], columns=8)
    return grid_png(images, columns=num_classes if 2 <= num_classes <= 20 else 10)
