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
    r"""Number, mean and scatter of features, in float64; they add up exactly over parts.

    Attributes:
        rows: n.
        mean: $\mu$.
        scatter: $\sum_i (x_i - \mu)(x_i - \mu)^\top$.
    """

    rows: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased estimate, scatter / (n - 1)."""
        return self.scatter / (self.rows - 1)


def moments_of(features: Float[np.ndarray, "n d"]) -> Moments:
    """Compute the moments of one set, at least one row."""
    x = check_features(features, "compared", least=1)
    mean = x.mean(0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Compute the moments of two sets together.

    With $\delta = \mu_b - \mu_a$ and $n = n_a + n_b$: $\mu = \mu_a + \delta n_b / n$, and the
    scatter is $S_a + S_b + \delta\delta^\top n_a n_b / n$.

    Reference: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979, eqs. 2.1, in several dimensions.
    """
    rows = a.rows + b.rows
    delta = b.mean - a.mean
    between = np.outer(delta, delta) * (a.rows * b.rows / rows)
    return Moments(rows, a.mean + delta * (b.rows / rows), a.scatter + b.scatter + between)


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

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric matrix
    $\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2}$, which has those of $\Sigma_a \Sigma_b$: real and not
    negative but for rounding, however few samples there are.

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
    for one in (a, b):
        if one.rows < 2:
            raise ValueError(f"A covariance takes at least 2 images; got {one.rows}. Give more.")
    check_same_width(a.mean[None], b.mean[None])
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    trace_of_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    distance = np.sum((a.mean - b.mean) ** 2) + traces - 2 * trace_of_root
    return float(max(distance, 0.0))
