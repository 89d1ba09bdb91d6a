"""Nearest neighbours in float64, exact where images coincide."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

# 2^22 float64 are 32 MiB.
_CHUNK = 2**22

# Of |x|^2 + |y|^2: below this fraction of it a squared distance has lost half of its digits.
_CLOSE = 1e-8


class Neighbours(NamedTuple):
    """The k nearest of every row, nearest first.

    Attributes:
        distances: Euclidean.
        indices: Rows of the set that was searched; of equally near ones any.
    """

    distances: Float64[np.ndarray, "n k"]
    indices: Int[np.ndarray, "n k"]


def squared_distances(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float64[np.ndarray, "n m"]:
    r"""Compute $|x_i - y_j|^2$ as $|x_i|^2 + |y_j|^2 - 2 x_i^\top y_j$, one product of matrices.

    What is close to zero, and would lose its digits so, is computed from the difference: equal
    rows have the distance 0.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    norms = (x**2).sum(1)[:, None] + (y**2).sum(1)
    squares = np.maximum(norms - 2 * (x @ y.T), 0)
    rows, columns = np.nonzero(squares <= _CLOSE * norms)
    step = max(1, _CHUNK // max(1, x.shape[1]))
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        squares[i, j] = ((x[i] - y[j]) ** 2).sum(1)
    return squares


def nearest(
    x: Float[np.ndarray, "n d"],
    among: Float[np.ndarray, "m d"] | None = None,
    k: int = 1,
) -> Neighbours:
    """Find the k nearest rows of another set, or of the same one without the row itself.

    Args:
        x: Whose neighbours.
        among: Where to look; None looks in `x`, where no row is its own neighbour.
        k: How many, at most as many as there are.

    Raises:
        ValueError: If there are fewer than k.
    """
    within = among is None
    others = x if among is None else among
    if not 1 <= k <= len(others) - within:
        raise ValueError(
            f"k must be at least 1 and at most the number of images to choose from; got {k} and "
            f"{len(others) - within}. Give more images, or a smaller k."
        )
    distances, indices = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
    step = max(1, _CHUNK // len(others))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        squares = squared_distances(x[rows], others)
        if within:
            squares[np.arange(rows.stop - start), np.arange(start, rows.stop)] = np.inf
        chosen = np.argpartition(squares, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(squares, chosen, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        distances[rows] = np.sqrt(np.take_along_axis(found, order, axis=1))
        indices[rows] = np.take_along_axis(chosen, order, axis=1)
    return Neighbours(distances, indices)
