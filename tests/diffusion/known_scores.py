"""Distributions whose noisy versions are known: what an ideal network would say of them.

A mixture of Gaussians stays one when it is scaled and noise is added. So its log-density and the
mean of the image given a noisy one are known at every noise level, in any number of dimensions. An
image [h, w, c] is a vector of its d numbers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genai_jax.diffusion.denoiser import Denoise, Diffusion
from genai_jax.diffusion.predictions import Prediction, input_scale, like, make_target
from genai_jax.diffusion.process import Process, alpha_sigma


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """K Gaussians in d dimensions.

    Attributes:
        weights: Probability of each, [K].
        means: [K, d].
        variances: Along the axes of each, [K, d].
        axes: Orthonormal rows, [K, d, d].
    """

    weights: Any
    means: Any
    variances: Any
    axes: Any

    def _along_axes(self, x, alpha, sigma):
        """Offsets from each mean along its axes, and their variances, at a noise level."""
        alpha, sigma = jnp.asarray(alpha, x.dtype), jnp.asarray(sigma, x.dtype)
        alpha, sigma = (jnp.reshape(level, (-1, 1, 1)) for level in (alpha, sigma))
        offsets = jnp.einsum("kij,bkj->bki", self.axes, x[:, None] - alpha * self.means)
        return offsets, alpha**2 * self.variances + sigma**2, alpha

    def log_joint(self, x, alpha=1.0, sigma=0.0, labels=None):
        """log p(x_t, component), [b, K], in nats; with labels [b], given that component.

        A label of K says nothing.
        """
        offsets, variances, _ = self._along_axes(x, alpha, sigma)
        log_weights = jnp.log(self.weights)
        if labels is not None:
            chosen = jax.nn.one_hot(labels, len(self.weights), dtype=x.dtype)
            known = labels[:, None] < len(self.weights)
            log_weights = jnp.where(known, jnp.log(chosen), log_weights)
        squares = jnp.square(offsets) / variances + jnp.log(2 * jnp.pi * variances)
        return log_weights - jnp.sum(squares, -1) / 2

    def log_density(self, x, alpha=1.0, sigma=0.0, labels=None):
        """log p(x_t), [b], in nats, of x_t = alpha x_0 + sigma eps, [b, d]."""
        return jax.nn.logsumexp(self.log_joint(x, alpha, sigma, labels), axis=-1)

    def denoise(self, x, alpha, sigma, labels=None):
        """E[x_0 | x_t], [b, d]; alpha and sigma are scalars or [b], and either may be 0."""
        offsets, variances, alpha = self._along_axes(x, alpha, sigma)
        shrunk = alpha * self.variances / variances * offsets
        means = self.means + jnp.einsum("kij,bki->bkj", self.axes, shrunk)
        share = jax.nn.softmax(self.log_joint(x, alpha, sigma, labels), axis=-1)
        return jnp.einsum("bk,bkj->bj", share, means)

    def sample(self, key, rows):
        """Draw [rows, d]."""
        pick, noise = jax.random.split(key)
        k = jax.random.choice(pick, len(self.weights), (rows,), p=self.weights)
        eps = jax.random.normal(noise, (rows, self.means.shape[1]), self.means.dtype)
        return self.means[k] + jnp.einsum(
            "bi,bij->bj", jnp.sqrt(self.variances[k]) * eps, self.axes[k]
        )

    def mean(self):
        """Of the whole, [d]."""
        return jnp.einsum("k,kd->d", self.weights, self.means)

    def covariance(self):
        """Of the whole, [d, d]."""
        inside = jnp.einsum("k,kia,ki,kib->ab", self.weights, self.axes, self.variances, self.axes)
        offsets = self.means - self.mean()
        return inside + jnp.einsum("k,ka,kb->ab", self.weights, offsets, offsets)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Product:
    """Independent mixtures, side by side in one vector."""

    parts: tuple[Mixture, ...]

    def split(self, x):
        """Cut [b, d] into what belongs to each."""
        return jnp.split(x, np.cumsum([part.means.shape[1] for part in self.parts])[:-1], axis=-1)

    def denoise(self, x, alpha, sigma, labels=None):
        """E[x_0 | x_t], [b, d]."""
        pairs = zip(self.parts, self.split(x), strict=True)
        return jnp.concatenate([part.denoise(y, alpha, sigma, labels) for part, y in pairs], -1)


def make_mixture(dimensions, components=1, *, seed=0, spread=0.5, scale=0.3, dtype=np.float32):
    """Draw a mixture: means by `spread`, deviations of at most `scale`, axes in all directions.

    One component is a Gaussian.
    """
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, components)
    axes = np.linalg.qr(rng.standard_normal((components, dimensions, dimensions)))[0]
    arrays = (
        weights / weights.sum(),
        spread * rng.standard_normal((components, dimensions)),
        np.square(scale * rng.uniform(0.3, 1.0, (components, dimensions))),
        axes,
    )
    return Mixture(*(jnp.asarray(array, dtype) for array in arrays))


def make_denoiser(mixture: Mixture | Product, process: Process, labels=None) -> Denoise:
    """Make the exact `(x_t [b, ...], t) -> Prediction`, for images of any shape."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha_sigma(t)
        flat = mixture.denoise(x_t.reshape(x_t.shape[0], -1), alpha, sigma, labels)
        return Prediction(flat.reshape(x_t.shape))

    return denoise


@dataclasses.dataclass(frozen=True, eq=False)
class AnyOf(Process):
    """One of several processes, by an index that may be traced: one executable for them all."""

    processes: tuple[Process, ...] = ()
    index: Any = 0

    def choose(self, of):
        """Ask the one that is meant."""
        asked = [functools.partial(of, process) for process in self.processes]
        return jax.lax.switch(self.index, asked)

    def log_snr(self, t):
        return self.choose(lambda process: process.log_snr(t))

    def time_at(self, log_snr):
        return self.choose(lambda process: process.time_at(log_snr))

    def alpha_sigma(self, t):
        return self.choose(lambda process: process.alpha_sigma(t))

    def snap(self, t):
        return self.choose(lambda process: process.snap(t))

    def noise_level(self, t):
        return self.choose(lambda process: process.noise_level(t))


def level_told(process: Process, noise_level):
    """What alpha and sigma a network is told of."""
    if isinstance(process, AnyOf):
        return process.choose(lambda process: level_told(process, noise_level))
    if process.schedule == "edm":
        return alpha_sigma(process.geometry, -8 * noise_level)
    if process.num_steps:
        return process.alpha_sigma((noise_level + 1) / process.num_steps)
    return process.alpha_sigma(noise_level / 1000)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mixture"], meta_fields=["diffusion", "fraction"]
)
@dataclasses.dataclass(frozen=True)
class IdealNetwork:
    """A network without parameters that says exactly what an ideal one would, for any target.

    Conversions are on trial with it: it is called as a network is, by the noise level, on scaled
    input, and answers in the target's units.

    Attributes:
        mixture: What the images are drawn from; class k is its component k.
        diffusion: Process and target.
        fraction: v, where the diffusion has it learn variances.
    """

    mixture: Mixture | Product
    diffusion: Diffusion
    fraction: float = 0.0

    def __call__(self, x, noise_level, condition=None, key=None):
        process, target = self.diffusion.process, self.diffusion.target
        sigma_data = self.diffusion.sigma_data
        alpha, sigma = level_told(process, noise_level)
        x_t = x / like(input_scale(target, alpha, sigma, sigma_data), x)
        x_0 = self.mixture.denoise(x_t.reshape(x.shape[0], -1), alpha, sigma, condition)
        x_0 = x_0.reshape(x.shape)
        eps = (x_t - like(alpha, x) * x_0) / like(sigma, x)
        said = make_target(target, x_0, eps, alpha, sigma, sigma_data)
        if not self.diffusion.learned_variance:
            return said
        return jnp.concatenate([said, jnp.full_like(said, 2 * self.fraction - 1)], axis=-1)

    def null_condition(self, condition):
        return jnp.full_like(condition, len(self.mixture.weights))
