"""From a network to a denoiser: what is added to x_t and undone around it.

A model is called as `model(x, noise_level, condition, key)`; a denoiser as `denoise(x_t, t)`.
Training, samplers and likelihoods all see the network through this file alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from genai_jax.diffusion.predictions import Prediction, Target, input_scale, like, solve
from genai_jax.diffusion.process import Process
from genai_jax.types import PyTree

Denoise = Callable[[Array, Array], Prediction]
"""`(x_t [b, ...], t [] or [b]) -> Prediction`."""


@runtime_checkable
class ImageModel(Protocol):
    """What diffusion needs of a network."""

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_level: Float[Array, " b"],
        condition: Any = None,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Compute the target, and behind it, where it is learned, as many channels of variance."""

    def null_condition(self, condition: Any) -> Any:
        """Make the condition, of the same shape, that says nothing."""


# In nats: at lower ones float32 has lost the image within the noise.
_LEAST_LOG_SNR_OF_EPS = -24


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """What a network of this run means.

    Attributes:
        process: How an image turns into noise.
        target: What the network says: the noise (eps), the image (x_0), v, the velocity of the
            flow, or EDM's preconditioned output (edm).
        sigma_data: Standard deviation of the data, of edm.
        learned_variance: Whether the network also says the variance of a reverse step.
    """

    process: Process = dataclasses.field(default_factory=Process)
    target: Target = "v"
    sigma_data: float = 0.5
    learned_variance: bool = False

    def __post_init__(self) -> None:
        """Refuse a target that says nothing of the image at t = 1."""
        if self.sigma_data <= 0:
            raise ValueError(f"`sigma_data` must be positive; got {self.sigma_data}. Try 0.5.")
        if self.target == "eps" and self.process.last_log_snr < _LEAST_LOG_SNR_OF_EPS:
            raise ValueError(
                "`target` 'eps' says nothing of the image where no signal is left; got a process "
                f"that ends so ({self.process.schedule!r}). Choose v, x_0 or flow, or give "
                "process.log_snr_min -15."
            )
        if self.learned_variance and not self.process.num_steps:
            raise ValueError(
                "`learned_variance` belongs to a discrete process; got process.num_steps 0. "
                "Give num_steps 1000."
            )

    def run(
        self,
        model: ImageModel,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, "*b"],
        condition: PyTree = None,
        key: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Call the network on noisy images as it wants to be called.

        Args:
            model: The network.
            x_t: Noisy images.
            t: Time, one for all or one a row.
            condition: Class labels, captions, or None.
            key: One key a row for dropout; None switches it off.

        Returns:
            What it says, in the units of the target.
        """
        t = jnp.broadcast_to(t, x_t.shape[:1])
        alpha, sigma = self.process.alpha_sigma(t)
        scale = input_scale(self.target, alpha, sigma, self.sigma_data)
        return model(like(scale, x_t) * x_t, self.process.noise_level(t), condition, key)

    def split(
        self, output: Float[Array, "b h w out"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"] | None]:
        """Split what the network says into the target and the fraction of the log-variance."""
        if not self.learned_variance:
            return output, None
        said, raw = jnp.split(output, 2, axis=-1)
        return said, (raw + 1) / 2

    def make_denoiser(self, model: ImageModel, condition: PyTree = None) -> Denoise:
        """Make `(x_t, t) -> Prediction` of a network and what its images should be."""

        def denoise(x_t: Array, t: Array) -> Prediction:
            said, fraction = self.split(self.run(model, x_t, t, condition))
            alpha, sigma = self.process.alpha_sigma(t)
            x_0, _ = solve(self.target, said, x_t, alpha, sigma, self.sigma_data)
            return Prediction(x_0, fraction)

        return denoise
