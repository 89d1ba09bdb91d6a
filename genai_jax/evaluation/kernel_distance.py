"""The kernel distance (KID): an unbiased comparison of two sets of features, with its error."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from genai_jax.evaluation.features import check_features, check_same_width

Sum = np.ndarray | np.float64


class KernelDistance(NamedTuple):
    """An estimate and what it is worth.

    Attributes:
        value: Of the squared discrepancy; can be negative, and is zero on average for two sets
            from one distribution.
        standard_error: Of the value.
    """

    value: float
    standard_error: float


def cubic_kernel(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    r"""Compute $k(x, y) = (x^\top y / d + 1)^3$, under which three moments are compared.

    Reference: Bińkowski et al., arXiv:1801.01401, section 4.
    """
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_discrepancy(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> KernelDistance:
    r"""Estimate the squared maximum mean discrepancy without bias, from all pairs.

    $$\frac{\sum_{i \ne j} k(x_i, x_j)}{n (n - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)}
    - \frac{2 \sum_{i, j} k(x_i, y_j)}{n m}$$

    Without bias where all rows are independent. Where both sets hold equally many of each class,
    pairs of one class are rarer within a set of n (a row makes no pair with itself) than across:
    two sets from one distribution give $2 (a - s) / (n - 1)$ on average, below zero, where s is the
    mean of k over pairs of one class and a over all, each class as frequent.

    The standard error is the jackknife's, over the rows of both sets: the spread of the estimate
    from one pair of sets to another.

    Args:
        x: Features of one set, at least three rows.
        y: Of the other.

    Reference: Gretton et al., "A kernel two-sample test", JMLR 13 (2012), eq. 3; jackknife for two
        samples: Arvesen, Ann. Math. Stat. 40 (1969), section 4.
    """
    x, y = check_features(x, "compared", least=3), check_features(y, "reference", least=3)
    check_same_width(x, y)
    n, m = len(x), len(y)
    within_x, within_y = _sums_of_rows(cubic_kernel(x, x)), _sums_of_rows(cubic_kernel(y, y))
    across = cubic_kernel(x, y)

    def estimate(total_x: Sum, n: int, total_y: Sum, m: int, total: Sum) -> Sum:
        return total_x / (n * (n - 1)) + total_y / (m * (m - 1)) - 2 * total / (n * m)

    sums = within_x.sum(), within_y.sum(), across.sum()
    value = estimate(sums[0], n, sums[1], m, sums[2])
    without_x = estimate(sums[0] - 2 * within_x, n - 1, sums[1], m, sums[2] - across.sum(axis=1))
    without_y = estimate(sums[0], n, sums[1] - 2 * within_y, m - 1, sums[2] - across.sum(axis=0))
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return KernelDistance(float(value), math.sqrt(variance))


def _sums_of_rows(kernel: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, " n"]:
    """Sum each row but for its element on the diagonal."""
    return kernel.sum(axis=1) - np.diagonal(kernel)


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Estimate the squared discrepancy as the mean over random subsets: KID, for sets of any size.

    Where the subsets would hold all of both sets, that is `squared_discrepancy` itself. Else the
    standard error is the spread over the subsets divided by the root of their number, as in the
    paper: it says how well the mean over all subsets is known, and less than all of the error
    where the subsets overlap.

    Args:
        x: Features of one set.
        y: Of the other.
        subsets: How many pairs of subsets; at least 2.
        subset_size: Rows of each, at most as many as the smaller set has; at least 3.
        seed: Of the choice of the subsets.

    Reference: Bińkowski et al., arXiv:1801.01401, section 4.
    """
    for name, least in (("subsets", 2), ("subset_size", 3)):
        if (value := {"subsets": subsets, "subset_size": subset_size}[name]) < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    if subset_size >= max(len(x), len(y)):
        return squared_discrepancy(x, y)
    size = min(subset_size, len(x), len(y))
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        part_x = x[random.choice(len(x), size, replace=False)]
        part_y = y[random.choice(len(y), size, replace=False)]
        values.append(squared_discrepancy(part_x, part_y).value)
    spread = np.std(values, ddof=1)
    return KernelDistance(float(np.mean(values)), float(spread / math.sqrt(subsets)))
