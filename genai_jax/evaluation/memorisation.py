"""Whether samples are copies of training images: their distances beside those of held-out images.

A held-out image cannot be a copy, so the distances of held-out images to their nearest training
image say how near is natural. Real duplicates between the splits are part of that.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from genai_jax.evaluation.features import check_features, check_same_width
from genai_jax.evaluation.neighbours import nearest
from genai_jax.evaluation.pictures import grid_png


class Memorisation(NamedTuple):
    """How near samples are to training images.

    Attributes:
        share_close: Of the samples, those nearer to a training image than all but `percentile`
            per cent of the held-out images are. About `percentile` / 100 where samples are as new
            as held-out images; 1 for copies.
        share_copied: Of the samples, those equal to a training image, bit by bit.
        ratio: Median distance of the samples over that of the held-out images; 1 is natural.
        threshold: The distance below which a sample counts as close.
        distances: Of every sample to its nearest training image.
        indices: Which training image that is.
    """

    share_close: float
    share_copied: float
    ratio: float
    threshold: float
    distances: Float64[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]


def memorisation(
    samples: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "m d"],
    held_out: Float[np.ndarray, "h d"],
    *,
    percentile: float = 5.0,
) -> Memorisation:
    """Compare the distances of samples to their nearest training image with held-out images'.

    Args:
        samples: Features of the samples.
        train: Features of all images that were trained on.
        held_out: Features of images that were not.
        percentile: Of the held-out distances, in (0, 100): what is called close.

    Raises:
        ValueError: If the percentile is out of range.
    """
    if not 0 < percentile < 100:
        raise ValueError(f"`percentile` must be in (0, 100); got {percentile}. Choose 5.")
    samples = check_features(samples, "sampled", least=1)
    train = check_features(train, "training", least=1)
    held_out = check_features(held_out, "held-out", least=1)
    check_same_width(samples, train)
    check_same_width(held_out, train)
    natural = nearest(held_out, train).distances[:, 0]
    found = nearest(samples, train)
    distances = found.distances[:, 0]
    threshold = float(np.percentile(natural, percentile))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.median(distances) / np.median(natural))
    return Memorisation(
        share_close=float(np.mean(distances < threshold)),
        share_copied=float(np.mean(distances == 0)),
        ratio=ratio,
        threshold=threshold,
        distances=distances,
        indices=found.indices[:, 0],
    )


def nearest_pairs_png(
    samples: Float[np.ndarray, "n h w c"],
    train: Float[np.ndarray, "m h w c"],
    found: Memorisation,
    *,
    pairs: int = 10,
) -> bytes:
    """Draw the samples that are nearest to a training image, nearest first, each above that image.

    Args:
        samples: The images that `found` was measured on.
        train: The training images.
        found: What `memorisation` says of them.
        pairs: How many to draw.

    Returns:
        A PNG file.
    """
    order = np.argsort(found.distances, kind="stable")[:pairs]
    rows = [samples[order], train[found.indices[order]]]
    return grid_png(np.concatenate(rows), columns=len(order))
