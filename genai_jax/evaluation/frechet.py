r"""The Fréchet distance between the Gaussians that have the moments of two sets of features.

It is biased: with n samples it is too large by about $C / n$, where C depends on the distribution
(Chong and Forsyth, arXiv:1911.07023). So two distances can be compared only where both
have as many samples and the same reference; how far real images are from real images, measured in
the same way, says what the best value is. It sees means and covariances alone: a Gaussian with
those of the data is at distance zero, whatever its samples look like.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from genai_jax.evaluation.features import check_features, check_same_width


class Moments(NamedTuple):
    r"""Number, mean and covariance of features, in float64; they add up exactly over parts.

    The covariance is kept as a factor, which never has more rows than there are features or
    dimensions: of a few images with many pixels it is small.

    Attributes:
        rows: n.
        mean: $\mu$.
        factor: A with $A^\top A = \sum_i (x_i - \mu)(x_i - \mu)^\top$.
    """

    rows: int
    mean: Float64[np.ndarray, " d"]
    factor: Float64[np.ndarray, "r d"]

    @property
    def root(self) -> Float64[np.ndarray, "r d"]:
        r"""R with $R^\top R = \Sigma$, the unbiased estimate of the covariance.

        Raises:
            ValueError: If there are fewer than two rows.
        """
        if self.rows < 2:
            raise ValueError(f"A covariance takes at least 2 images; got {self.rows}. Give more.")
        return self.factor / np.sqrt(self.rows - 1)


def moments_of(features: Float[np.ndarray, "n d"]) -> Moments:
    """Compute the moments of one set, at least one row."""
    x = check_features(features, "compared", least=1)
    mean = x.mean(0)
    return Moments(len(x), mean, _shorten(x - mean))


def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Compute the moments of two sets together.

    With $\delta = \mu_b - \mu_a$ and $n = n_a + n_b$: $\mu = \mu_a + \delta n_b / n$, and the
    factor is $A_a$ upon $A_b$ upon $\delta\sqrt{n_a n_b / n}$.

    Reference: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979, eqs. 2.1, in several dimensions.
    """
    rows = a.rows + b.rows
    delta = b.mean - a.mean
    between = delta[None] * np.sqrt(a.rows * b.rows / rows)
    factor = np.concatenate([a.factor, b.factor, between])
    return Moments(rows, a.mean + delta * (b.rows / rows), _shorten(factor))


def _shorten(factor: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "r d"]:
    """Find a factor of the same product with at most as many rows as columns."""
    rows, width = factor.shape
    return np.asarray(np.linalg.qr(factor, mode="r")) if rows > width else factor


def stream_moments(parts: Iterable[Float[np.ndarray, "n d"]]) -> Moments:
    """Compute the moments of features that come part by part, holding one part at a time.

    Raises:
        ValueError: If there is no part.
    """
    total: Moments | None = None
    for part in parts:
        new = moments_of(part)
        total = new if total is None else merge_moments(total, new)
    if total is None:
        raise ValueError("There must be features to take moments of; got no part.")
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Compute $|\mu_a - \mu_b|^2 + \mathrm{tr}(\Sigma_a + \Sigma_b - 2(\Sigma_a\Sigma_b)^{1/2})$.

    With $\Sigma_a = R_a^\top R_a$ and $\Sigma_b = R_b^\top R_b$ the trace of the root is the sum of
    the singular values of $R_a R_b^\top$, since the eigenvalues of $\Sigma_a \Sigma_b$ are their
    squares (and zeros): no root of a rounding error is taken, however few samples there are.

    Args:
        a: Moments of at least two rows.
        b: The same, of the other set.

    Returns:
        The squared distance, never negative; zero for equal moments, up to rounding.

    Raises:
        ValueError: If one has fewer than two rows, or if the widths differ.

    Reference: Dowson and Landau, J. Multivariate Analysis 12 (1982), eq. 4; of images: Heusel et
        al., arXiv:1706.08500, eq. 6.
    """
    check_same_width(a.mean[None], b.mean[None])
    root_a, root_b = a.root, b.root
    trace_of_root = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    distance = np.sum((a.mean - b.mean) ** 2) + traces - 2 * trace_of_root
    return float(max(distance, 0.0))
