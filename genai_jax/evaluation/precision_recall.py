"""Precision and recall of samples: how many look real, and how much of the real they cover."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genai_jax.evaluation.features import check_features, check_same_width
from genai_jax.evaluation.neighbours import nearest, squared_distances

_CHUNK = 2**22


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        precision: Of the samples, those within the manifold of the real images.
        recall: Of the real images, those within the manifold of the samples.
    """

    precision: float
    recall: float


def precision_recall(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Measure improved precision and recall.

    The manifold of a set is the union of balls around its points, each of which reaches to the
    k-th nearest other point of the set.

    Args:
        samples: Features of the samples, more than k.
        real: Features of the real images, more than k.
        k: Neighbour that a ball reaches to.

    Reference: Kynkäänniemi et al., arXiv:1904.06991, eqs. 1 and 2, with their k of 3.
    """
    samples = check_features(samples, "sampled", least=k + 1)
    real = check_features(real, "real", least=k + 1)
    check_same_width(samples, real)
    return PrecisionRecall(
        precision=_share_within(samples, real, k), recall=_share_within(real, samples, k)
    )


def _share_within(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    radii = nearest(centres, k=k).distances[:, -1]
    step = max(1, _CHUNK // len(centres))
    within = [
        (np.sqrt(squared_distances(points[start : start + step], centres)) <= radii).any(axis=1)
        for start in range(0, len(points), step)
    ]
    return float(np.concatenate(within).mean())
