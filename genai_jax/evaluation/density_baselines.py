r"""What simple densities make of images: the bits per dimension that a diffusion model must beat.

All are in the convention of discretised bins: the probability of an image is the mass of the unit
cube around its levels, whose outermost bins extend to infinity. What has to be chosen is chosen on
validation images; test images are looked at once.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Float, Integer
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from genai_jax.diffusion.likelihood import Estimate, mean_with_error
from genai_jax.evaluation.box_mass import LEAST_MASS, log_box_masses

Images = Integer[np.ndarray, "n d"]
"""Images as levels 0 ... L - 1, one a row."""

Masses = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Log-probabilities of images in nats, and their standard errors."""

LogMasses = Callable[[Images, int], Masses]
"""`(images, draws) -> masses` of a fitted density; draws are of simulated masses."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A simple density, and what it makes of the test images.

    Attributes:
        name: What it is.
        bits: Bits per dimension of the test images.
        validation_bits: Those of the validation images.
        tuned: The constants that were chosen on these.
        simulation_error: Standard error of the mean that comes from simulated masses, in bits per
            dimension; 0 where they are exact. It is part of the error of `bits`.
    """

    name: str
    bits: Estimate
    validation_bits: float
    tuned: Mapping[str, float]
    simulation_error: float


@dataclasses.dataclass(frozen=True)
class Splits:
    """Images as levels, to fit, to choose by, and to report on.

    Attributes:
        train: To fit.
        validation: To choose constants by.
        test: To report on.
        num_levels: L; levels are 0 ... L - 1.
        seed: Of fits that begin at random, and of simulated masses.
        draws: Of simulated masses, of the test images; an eighth of it is used to choose.
    """

    train: Integer[np.ndarray, "train d"]
    validation: Integer[np.ndarray, "validation d"]
    test: Integer[np.ndarray, "test d"]
    num_levels: int
    seed: int = 0
    draws: int = 1024

    def __post_init__(self) -> None:
        """Refuse what is not levels."""
        if self.num_levels < 2:
            raise ValueError(f"`num_levels` must be at least 2; got {self.num_levels}.")
        if self.draws < 16:
            raise ValueError(f"`draws` must be at least 16; got {self.draws}. Try 1024.")
        for name in ("train", "validation", "test"):
            images = getattr(self, name)
            if len(images) < 2:
                raise ValueError(f"`{name}` must have at least 2 images; got {len(images)}.")
            if images.min() < 0 or images.max() >= self.num_levels:
                raise ValueError(
                    f"Levels of `{name}` must be in 0 ... {self.num_levels - 1}; got "
                    f"{images.min()} ... {images.max()}. Choose another `num_levels`."
                )


def measure_baselines(splits: Splits) -> tuple[Baseline, ...]:
    """Measure them all."""
    return (
        pixel_histogram(splits),
        full_gaussian(splits),
        gaussian_mixture(splits, "diag"),
        gaussian_mixture(splits, "full"),
        kernel_density(splits),
    )


def pixel_histogram(
    splits: Splits, pseudo_counts: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
) -> Baseline:
    """Measure independent pixels, each with the histogram of its levels.

    Args:
        splits: Images.
        pseudo_counts: See `histogram_masses`; to choose from.
    """
    candidates = (
        ({"pseudo_count": count}, histogram_masses(splits.train, splits.num_levels, count))
        for count in pseudo_counts
    )
    return _choose("independent-pixel histogram", candidates, splits)


def full_gaussian(
    splits: Splits,
    shrinkages: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    ridges: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
) -> Baseline:
    r"""Measure one Gaussian of covariance $(1 - s) S + s\,\mathrm{diag}\,S + r I$.

    S is the covariance of the training images, in squared levels.

    Args:
        splits: Images.
        shrinkages: s, to choose from.
        ridges: r, to choose from.
    """
    means = splits.train.mean(axis=0, keepdims=True)
    covariance = np.atleast_2d(np.cov(splits.train, rowvar=False, bias=True))
    diagonal = np.diag(np.diag(covariance))

    def candidates() -> Iterable[tuple[dict[str, float], LogMasses]]:
        for s in shrinkages:
            for r in ridges:
                shrunk = (1 - s) * covariance + s * diagonal + r * np.eye(len(diagonal))
                fitted = np.ones(1), means, shrunk[None]
                density = mixture_masses(*fitted, splits.num_levels, splits.seed)
                yield {"shrinkage": s, "ridge": r}, density

    return _choose("full Gaussian", candidates(), splits)


def gaussian_mixture(
    splits: Splits,
    covariance: Literal["diag", "full"],
    components: Sequence[int] | None = None,
    ridges: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
) -> Baseline:
    """Measure a mixture of Gaussians, fitted to the levels by expectation maximisation.

    Args:
        splits: Images.
        covariance: diag (masses are exact) or full (simulated).
        components: How many, to choose from; more than half of the training images are never
            tried. None: 10 to 160 of diag, 2 to 10 of full.
        ridges: What the fit adds to variances, in squared levels, to choose from.
    """
    if components is None:
        components = (10, 20, 40, 80, 160) if covariance == "diag" else (2, 3, 5, 7, 10)

    def candidates() -> Iterable[tuple[dict[str, float], LogMasses]]:
        for count in (c for c in components if c <= len(splits.train) // 2):
            for ridge in ridges:
                fit = GaussianMixture(
                    count, covariance_type=covariance, reg_covar=ridge, random_state=splits.seed
                )
                with warnings.catch_warnings():  # wherever it stops, it is measured
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    fit.fit(splits.train.astype(np.float64))
                fitted = fit.weights_, fit.means_, fit.covariances_
                density = mixture_masses(*fitted, splits.num_levels, splits.seed)
                yield {"components": count, "ridge": ridge}, density

    return _choose(f"Gaussian mixture, {covariance} covariances", candidates(), splits)


def kernel_density(
    splits: Splits,
    bandwidths: Sequence[float] = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0),
) -> Baseline:
    """Measure a Gaussian around every training image, of one variance in all directions.

    Args:
        splits: Images.
        bandwidths: Its deviation, in levels, to choose from.
    """
    candidates = (
        ({"bandwidth": width}, kernel_masses(splits.train, splits.num_levels, width))
        for width in bandwidths
    )
    return _choose("kernel density estimate", candidates, splits)


def _choose(
    name: str, candidates: Iterable[tuple[dict[str, float], LogMasses]], splits: Splits
) -> Baseline:
    """Measure the test images by the density that validation images like best."""
    bits = splits.train.shape[1] * math.log(2)
    found = []
    for tuned, log_masses in candidates:
        nats, _ = log_masses(splits.validation, splits.draws // 8)
        found.append((-float(nats.mean()) / bits, tuned, log_masses))
    if not found:
        raise ValueError(f"There must be constants to choose from; got none for the {name}.")
    validation_bits, tuned, log_masses = min(found, key=lambda one: one[0])
    nats, errors = log_masses(splits.test, splits.draws)
    simulation_error = float(np.sqrt(np.square(errors).sum()) / len(nats) / bits)
    return Baseline(name, mean_with_error(-nats / bits), validation_bits, tuned, simulation_error)


def histogram_masses(train: Images, num_levels: int, pseudo_count: float) -> LogMasses:
    r"""Make the density of independent pixels: $p(x_j = l) = (n_{jl} + a) / (n + aL)$.

    Args:
        train: Images.
        num_levels: L.
        pseudo_count: a.
    """
    counts = (train[:, :, None] == np.arange(num_levels)).sum(axis=0)
    table = np.log(counts + pseudo_count) - math.log(len(train) + pseudo_count * num_levels)

    def log_masses(x: Images, draws: int) -> Masses:
        return _exact(table[np.arange(x.shape[1]), x].sum(axis=1))

    return log_masses


def kernel_masses(train: Images, num_levels: int, bandwidth: float) -> LogMasses:
    """Make the density that is a Gaussian around every image.

    Args:
        train: Images.
        num_levels: L.
        bandwidth: Deviation of the Gaussian, in levels.
    """
    levels = np.arange(num_levels)
    # Of a level, around a level.
    table = _log_bin_masses(levels[:, None], levels, bandwidth, num_levels)

    def log_masses(x: Images, draws: int) -> Masses:
        kernels = np.stack([table[row, train].sum(axis=1) for row in x])
        return _exact(_log_sum_exp(kernels) - math.log(len(train)))

    return log_masses


def mixture_masses(
    weights: Float[np.ndarray, " k"],
    means: Float[np.ndarray, "k d"],
    covariances: Float[np.ndarray, "k d *d"],
    num_levels: int,
    seed: int = 0,
) -> LogMasses:
    """Make the density of a mixture of Gaussians: exact of variances, simulated of covariances.

    Args:
        weights: Probability of each.
        means: In levels.
        covariances: In squared levels: variances [k, d], or matrices [k, d, d].
        num_levels: L.
        seed: Of simulated masses.
    """

    def exact(x: Images, draws: int) -> Masses:
        parts = [
            _log_bin_masses(x, mean, np.sqrt(variance), num_levels).sum(axis=1)
            for mean, variance in zip(means, covariances, strict=True)
        ]
        return _exact(_log_sum_exp(np.log(weights) + np.stack(parts, axis=1)))

    def simulated(x: Images, draws: int) -> Masses:
        bins = _bins(x, num_levels)
        masses, errors = log_box_masses(*bins, means, covariances, draws=draws, seed=seed)
        joint = np.log(weights) + masses
        total = _log_sum_exp(joint)
        shares = np.exp(joint - total[:, None])
        return total, np.sqrt(np.square(shares * errors).sum(axis=1))

    return exact if covariances.ndim == 2 else simulated


def _bins(x: Images, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the bins of levels."""
    low = np.where(x == 0, -np.inf, x - 0.5)
    return low, np.where(x == num_levels - 1, np.inf, x + 0.5)


def _log_bin_masses(
    x: Integer[np.ndarray, "..."],
    mean: Float[np.ndarray, "..."] | Integer[np.ndarray, "..."],
    deviation: Float[np.ndarray, "..."] | float,
    num_levels: int,
) -> Float[np.ndarray, "..."]:
    """Logarithm of how much of a Gaussian is in the bin of a level, in nats; -690 at the least."""
    a, b = ((end - mean) / deviation for end in _bins(x, num_levels))
    # Of a bin above the mean its mirror image, where masses are small numbers.
    low, high = np.where(a > 0, -b, a), np.where(a > 0, -a, b)
    with jax.enable_x64(True):
        masses = np.asarray(ndtr(jnp.asarray(high)) - ndtr(jnp.asarray(low)))
    return np.log(np.maximum(masses, LEAST_MASS))


def _exact(nats: Float[np.ndarray, " n"]) -> Masses:
    return nats, np.zeros_like(nats)


def _log_sum_exp(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    highest = x.max(axis=1, keepdims=True)
    return (highest + np.log(np.exp(x - highest).sum(axis=1, keepdims=True)))[:, 0]
