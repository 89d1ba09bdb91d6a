"""One draw of images, measured in every way against a held-out split."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Integer

from genai_jax.data.image_labels import labels_of
from genai_jax.data.image_rows import float_to_levels, levels_to_float
from genai_jax.data.images import ImageData, SplitName
from genai_jax.evaluation.classes import Predict, agreement, make_predict
from genai_jax.evaluation.features import FeatureFunction, make_features, pixels
from genai_jax.evaluation.frechet import frechet_distance, moments_of
from genai_jax.evaluation.kernel_distance import kernel_distance
from genai_jax.evaluation.memorisation import Memorisation, memorisation
from genai_jax.evaluation.precision_recall import precision_recall
from genai_jax.evaluation.two_sample import (
    nearest_neighbour_accuracy,
    train_on_samples_test_on_real,
)
from genai_jax.models.classifier import Classifier


class LabelledImages(NamedTuple):
    """Images and what they are, or were asked to be.

    Attributes:
        images: In [-1, 1].
        labels: One an image, or one for each head of the classifier; None where there are none.
    """

    images: Float32[np.ndarray, "n h w c"]
    labels: Integer[np.ndarray, "n ..."] | None


class Measure(NamedTuple):
    """How a measure is written.

    Attributes:
        name: Of its line.
        scale: What a value is multiplied by.
        digits: After the point.
    """

    name: str
    scale: float = 100.0
    digits: int = 1

    def write(self, value: float) -> str:
        """Write a value, or its spread."""
        return f"{value * self.scale:.{self.digits}f}"


MEASURES: dict[str, Measure] = {
    "frechet": Measure("Fréchet, features", 1.0, 2),
    "frechet_pixels": Measure("Fréchet, pixels", 1.0, 2),
    "kernel": Measure("kernel (KID) × 1000, features", 1000.0),
    "precision": Measure("precision, features, %"),
    "recall": Measure("recall, features, %"),
    "agreement": Measure("class agreement, %"),
    "two_sample": Measure("1-NN accuracy, pixels, %"),
    "two_sample_features": Measure("1-NN accuracy, features, %"),
    "trained_on": Measure("trained on it, right on real, %"),
    "close": Measure("close to a training image, %"),
    "copied": Measure("equal to a training image, %"),
}
"""What is measured of a draw. Shares are in [0, 1], and written as per cent."""

CLOSE_PERCENTILE = 5.0
"""What is close to a training image: closer than so many per cent of the held-out images are."""


class Yardstick:
    """Measures draws against one held-out split.

    Samples are rounded to the levels of the data first: whatever is off them could be told apart by
    that alone.
    """

    def __init__(
        self,
        train: LabelledImages,
        held_out: LabelledImages,
        *,
        levels: int,
        features: FeatureFunction,
        predict: Predict,
    ) -> None:
        """Compute what all draws share.

        Args:
            train: What the model was trained on.
            held_out: What it was not; the reference.
            levels: L, values that a channel of a pixel has.
            features: What images are compared by, beside their pixels.
            predict: The classifier.
        """
        self.train, self.held_out, self.levels = train, held_out, levels
        self._features, self.predict = features, predict
        self._real_features = features(held_out.images)
        self._real_pixels, self._train_pixels = pixels(held_out.images), pixels(train.images)
        self._real_moments = moments_of(self._real_features)
        self._real_pixel_moments = moments_of(self._real_pixels)

    @property
    def count(self) -> int:
        """Images of every draw: as many as are held out."""
        return len(self.held_out.images)

    def on_levels(self, images: Float32[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n h w c"]:
        """Round images to the levels of the data."""
        return levels_to_float(float_to_levels(images, self.levels), self.levels)

    def frechet(self, images: Float32[np.ndarray, "n h w c"]) -> float:
        """Measure the Fréchet distance on features alone, as solvers are compared by."""
        features = self._features(self.on_levels(images))
        return frechet_distance(moments_of(features), self._real_moments)

    def nearest(self, images: Float32[np.ndarray, "n h w c"]) -> Memorisation:
        """Compare images with the training images that are nearest to them, on pixels."""
        flat = pixels(self.on_levels(images))
        return memorisation(
            flat, self._train_pixels, self._real_pixels, percentile=CLOSE_PERCENTILE
        )

    def measure(self, drawn: LabelledImages) -> dict[str, float]:
        """Measure one draw: a value for each of `MEASURES`, NaN where it has no labels to go by.

        Raises:
            ValueError: If there are not as many images as are held out.
        """
        if len(drawn.images) != self.count:
            raise ValueError(
                f"A draw must have as many images as are held out; got {len(drawn.images)} and "
                f"{self.count}. The Fréchet distance depends on it."
            )
        images = self.on_levels(drawn.images)
        features, flat = self._features(images), pixels(images)
        fidelity = precision_recall(features, self._real_features)
        near = self.nearest(images)
        told, taught = math.nan, math.nan
        if drawn.labels is not None:
            told = agreement(self.predict(images), drawn.labels)
            if drawn.labels.ndim == 1 and self.held_out.labels is not None:
                taught = train_on_samples_test_on_real(
                    flat, drawn.labels, self._real_pixels, self.held_out.labels
                )
        return {
            "frechet": frechet_distance(moments_of(features), self._real_moments),
            "frechet_pixels": frechet_distance(moments_of(flat), self._real_pixel_moments),
            "kernel": kernel_distance(features, self._real_features).value,
            "precision": fidelity.precision,
            "recall": fidelity.recall,
            "agreement": told,
            "two_sample": nearest_neighbour_accuracy(flat, self._real_pixels).accuracy,
            "two_sample_features": nearest_neighbour_accuracy(
                features, self._real_features
            ).accuracy,
            "trained_on": taught,
            "close": near.share_close,
            "copied": near.share_copied,
        }


def make_yardstick(
    data: ImageData,
    classifier: Classifier,
    *,
    split: SplitName = "test",
    most_held_out: int = 10_000,
    most_train: int = 20_000,
) -> Yardstick:
    """Make the measure that samples of a model are held against.

    Args:
        data: What the model was trained on.
        classifier: Judges classes; its last layer before the heads gives the features.
        split: The held-out split.
        most_held_out: Most images of it that are looked at: its first ones.
        most_train: Most training images that are looked at: the first ones.
    """

    def images_of(split: SplitName, most: int) -> LabelledImages:
        levels, labels = data.levels_of(split)[:most], labels_of(data, split)[:most]
        return LabelledImages(levels_to_float(levels, data.levels), labels)

    return Yardstick(
        images_of("train", most_train),
        images_of(split, most_held_out),
        levels=data.levels,
        features=make_features(Classifier.features, classifier),
        predict=make_predict(Classifier.__call__, classifier),
    )
