"""Whether a classifier can tell samples from real images, and what it learns from samples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.svm import SVC

from genai_jax.evaluation.features import check_features, check_same_width
from genai_jax.evaluation.neighbours import nearest


class TwoSample(NamedTuple):
    """Shares of images whose nearest neighbour is of their own set; 0.5 cannot be told apart.

    Attributes:
        accuracy: Over both sets. Two sets of n each from one distribution give 0.5 with a standard
            deviation of about 0.5 / sqrt(2 n). Near 1: the sets differ. Near 0: one repeats the
            other.
        real: Over the real images. Low where samples are nearer to them than other real images.
        samples: Over the samples. High where the samples crowd together.
    """

    accuracy: float
    real: float
    samples: float


def nearest_neighbour_accuracy(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]
) -> TwoSample:
    """Classify every image of both sets by its nearest neighbour among all others.

    Where a neighbour of each set is equally near, that counts as half.

    Args:
        samples: Features of the samples.
        real: Features of as many real images, so that chance is 0.5.

    Raises:
        ValueError: If the sets differ in size.

    Reference: Lopez-Paz and Oquab, arXiv:1610.06545, section 3, with the leave-one-out nearest
        neighbour of Xu et al., arXiv:1806.07755, section 2.
    """
    samples, real = check_features(samples, "sampled"), check_features(real, "real")
    check_same_width(samples, real)
    if len(samples) != len(real):
        raise ValueError(
            f"Both sets must have as many images; got {len(samples)} samples and {len(real)} real "
            f"images. Take {min(len(samples), len(real))} of each."
        )
    own_samples, own_real = nearest(samples).distances[:, 0], nearest(real).distances[:, 0]
    to_real = nearest(samples, real).distances[:, 0]
    to_samples = nearest(real, samples).distances[:, 0]
    of_samples, of_real = _share_nearer(own_samples, to_real), _share_nearer(own_real, to_samples)
    return TwoSample((of_samples + of_real) / 2, of_real, of_samples)


def _share_nearer(own: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean(np.where(own == other, 0.5, own < other)))


def train_on_samples_test_on_real(
    samples: Float[np.ndarray, "n d"],
    sample_labels: Int[np.ndarray, " n"],
    real: Float[np.ndarray, "m d"],
    real_labels: Int[np.ndarray, " m"],
) -> float:
    r"""Train a fixed simple learner on labelled samples and measure its accuracy on real images.

    The learner is a support vector machine with the kernel $e^{-\gamma |x - y|^2}$,
    $\gamma = 1 / (d\,\mathrm{Var}\,x)$, and C = 1: scikit-learn's defaults. Beside it belongs the
    accuracy after as many real images.

    Args:
        samples: Features of the samples.
        sample_labels: The class that each was asked to be.
        real: Features of held-out images.
        real_labels: Their classes.

    Returns:
        The share of the real images whose class is found; a single class is always guessed.

    Reference: Ravuri and Vinyals, arXiv:1905.10887 (classification accuracy score).
    """
    samples, real = check_features(samples, "sampled"), check_features(real, "real", least=1)
    check_same_width(samples, real)
    classes = np.unique(sample_labels)
    if len(classes) == 1:
        return float(np.mean(real_labels == classes[0]))
    learner = SVC(C=1.0, kernel="rbf", gamma="scale").fit(samples, sample_labels)
    return float(np.mean(learner.predict(real) == real_labels))
