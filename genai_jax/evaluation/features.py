"""What images are compared by: their pixels, or what a network makes of them."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float64

from genai_jax.types import PyTree

FeatureFunction = Callable[[np.ndarray], np.ndarray]
"""`images [n, h, w, c] -> features [n, d]`."""


def pixels(images: Float[np.ndarray, "n h w c"]) -> Float64[np.ndarray, "n d"]:
    """Take the pixels themselves, d = h·w·c."""
    return images.reshape(len(images), -1).astype(np.float64)


def apply_in_batches(
    function: Callable[[PyTree, Any], Any],
    model: PyTree,
    images: Float[np.ndarray, "n h w c"],
    *,
    batch_size: int = 256,
) -> Any:
    """Apply a jitted `function(model, images)` to images, a batch at a time, with one executable.

    Args:
        function: Treats every image by itself.
        model: Its parameters.
        images: Any number.
        batch_size: Images of a call; the last batch is filled up with copies of its last image.

    Returns:
        What the function returns, as NumPy arrays of n rows.
    """
    if not len(images):
        raise ValueError("There must be images to compute on; got none.")
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
        result = jax.device_get(function(model, filled))
        parts.append(jax.tree.map(operator.itemgetter(slice(len(part))), result))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def make_features(
    function: Callable[[Any, Any], jax.Array], model: PyTree, *, batch_size: int = 256
) -> FeatureFunction:
    """Make a feature function of a network: `lambda model, images: model.features(images)`.

    Args:
        function: `(model, images) -> [n, d]`.
        model: Its parameters.
        batch_size: Images of one call of it.
    """
    jitted = jax.jit(function)

    def features(images: np.ndarray) -> np.ndarray:
        return apply_in_batches(jitted, model, images, batch_size=batch_size).astype(np.float64)

    return features


def check_features(
    features: Float[np.ndarray, "n d"], name: str, *, least: int = 2
) -> Float64[np.ndarray, "n d"]:
    """Return features in float64, or refuse them.

    Args:
        features: One row an image.
        name: What they are of, for the message.
        least: Fewest rows that will do.

    Raises:
        ValueError: If there are too few, or if one is not finite.
    """
    if len(features) < least:
        raise ValueError(
            f"There must be at least {least} {name} images; got {len(features)}. Give more."
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Features must be finite; got {np.sum(~finite)} of {len(features)} {name} images with "
            f"others, the first at {int(np.argmin(finite))}. Look at these images."
        )
    return features.astype(np.float64)


def check_same_width(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"]) -> None:
    """Refuse two sets whose features are not of one kind.

    Raises:
        ValueError: If their widths differ.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"Both sets must have features of one width; got {a.shape[1]} and {b.shape[1]}. "
            "Compute them by the same function of images of the same size."
        )
