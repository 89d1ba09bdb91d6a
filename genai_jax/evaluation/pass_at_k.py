"""How likely one of k samples is right: pass@k of tasks, without bias, with an interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from genai_jax.data.random_order import random_bits


class PassAtK(NamedTuple):
    """An estimate.

    Attributes:
        k: Samples that may be tried.
        mean: Over tasks, the estimated probability that at least one of k samples is right.
        low: Lower end of the interval.
        high: Its upper end.
    """

    k: int
    mean: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""Estimate the probability that at least one of k samples is right, without bias.

    $\text{pass@}k = 1 - \binom{n - c}{k} / \binom{n}{k} = 1 - \prod_{i=n-c+1}^{n} (1 - k / i)$: of
    all choices of k among the n samples, the share with a right one. The product has no large
    numbers in it.

    Args:
        samples: n, drawn independently.
        correct: c, how many of them are right.
        k: How many may be tried; at most n.

    Raises:
        ValueError: Unless 0 <= c <= n and 1 <= k <= n.

    Reference: Chen et al., "Evaluating large language models trained on code", arXiv:2107.03374,
    eq. 1 and fig. 3.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(
            "pass@k needs 0 <= correct <= samples and 1 <= k <= samples; got "
            f"{correct} correct of {samples} samples, and k {k}. Draw at least k samples a task."
        )
    if samples - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(samples - correct + 1, samples + 1)))


def estimate_pass_at_k(
    counts: Sequence[tuple[int, int]],
    k: int,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> PassAtK:
    """Average pass@k over tasks, with a bootstrap interval over tasks.

    The interval is from percentile to percentile of the means of as many tasks, drawn with
    replacement: what other tasks of the same kind would have given. It has no width where all tasks
    have the same estimate, which says little where they are few.

    Args:
        counts: Of each task, (samples, correct).
        k: How many samples may be tried.
        seed: Of the resampling.
        level: Share of the resampled means within the interval, in (0, 1).
        resamples: How many means.

    Raises:
        ValueError: If there is no task, a task has fewer than k samples, or `level` or `resamples`
            is out of range.

    Reference: Efron and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3.
    """
    if not counts:
        raise ValueError("pass@k needs at least one task; got none.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            "`level` must lie in (0, 1) and `resamples` be at least 1; got "
            f"{level} and {resamples}. Choose 0.95 and 2000."
        )
    values = np.array([pass_at_k(samples, correct, k) for samples, correct in counts])
    ends = np.quantile(_resampled(values, seed, resamples), [(1 - level) / 2, (1 + level) / 2])
    return PassAtK(k, float(values.mean()), float(ends[0]), float(ends[1]))


def _resampled(
    values: Float64[np.ndarray, " tasks"], seed: int, resamples: int
) -> Float64[np.ndarray, " resamples"]:
    """Compute means of as many values, drawn with replacement."""
    counters = np.arange(resamples * len(values), dtype=np.uint64)
    drawn = random_bits(seed, "bootstrap over tasks", counters) % np.uint64(len(values))
    return values[drawn].reshape(resamples, -1).mean(-1)
