"""What a classifier says of images: accuracy by attribute, and which classes it confuses."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from genai_jax.evaluation.features import apply_in_batches
from genai_jax.types import PyTree

Predict = Callable[[np.ndarray], np.ndarray]
"""`images [n, h, w, c] -> classes [n, heads]`."""


def make_predict(
    logits: Callable[[Any, Any], Sequence[jax.Array]], model: PyTree, *, batch_size: int = 256
) -> Predict:
    """Make a function that says the likeliest class of every head.

    Args:
        logits: `(model, images) -> logits of every head`.
        model: Its parameters.
        batch_size: Images of one call of it.
    """

    @jax.jit
    def classes(model: PyTree, images: jax.Array) -> jax.Array:
        return jnp.stack([jnp.argmax(x, axis=-1) for x in logits(model, images)], axis=1)

    def predict(images: Float[np.ndarray, "n h w c"]) -> Int[np.ndarray, "n heads"]:
        return apply_in_batches(classes, model, images, batch_size=batch_size)

    return predict


def agreement(predicted: Int[np.ndarray, "n heads"], wanted: Int[np.ndarray, "n ..."]) -> float:
    """Compute the share of wanted labels that were predicted; -1 is not counted.

    Args:
        predicted: The likeliest class of every head.
        wanted: Labels [n] or [n, ...], one for each head.
    """
    wanted = wanted.reshape(predicted.shape)
    counted = wanted >= 0
    return float(np.mean((predicted == wanted)[counted]))


def confusion_counts(
    predicted: Int[np.ndarray, " n"], truth: Int[np.ndarray, " n"], num_classes: int
) -> Int[np.ndarray, "truth predicted"]:
    """Count the images of each class by the class that was predicted."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def describe_classes(
    predicted: Int[np.ndarray, "n 1"],
    truth: Int[np.ndarray, " n"],
    names: Sequence[str],
    *,
    most: int = 5,
) -> str:
    """Say how many images were told right, which class is hardest, and what is taken for what.

    Args:
        predicted: The likeliest class.
        truth: The right one.
        names: Of the classes.
        most: Pairs of classes to name, the most frequent mistakes first.
    """
    counts = confusion_counts(predicted[:, 0], truth, len(names))
    right, total = int(np.trace(counts)), len(truth)
    lines = [f"accuracy:      {right / total:.2%} ({right:,} of {total:,} images)"]
    of_class = counts.sum(1)
    recalls = np.where(of_class > 0, np.diag(counts) / np.maximum(of_class, 1), 1.0)
    hardest = int(np.argmin(recalls))
    lines.append(
        f"hardest class: {names[hardest]} ({counts[hardest, hardest]} of {of_class[hardest]} right)"
    )
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(i, wrong.shape) for i in order if wrong.flat[i]]
    mistakes = ", ".join(f"{names[i]} for {names[j]} {wrong[j, i]}x" for j, i in pairs)
    lines.append(f"taken:         {mistakes or 'none for another'}")
    return "\n".join(lines)


def describe_attributes(
    predicted: Int[np.ndarray, "n heads"],
    truth: Int[np.ndarray, "n heads"],
    names: Sequence[str],
) -> str:
    """Say how often each attribute was told right, and how many images entirely.

    Args:
        predicted: The likeliest class of every head: all attributes of a cell, cell by cell.
        truth: The right ones; -1 is not counted.
        names: Of the attributes.
    """
    guessed, wanted = (x.reshape(len(x), -1, len(names)) for x in (predicted, truth))
    counted = wanted >= 0
    right = (guessed == wanted) & counted
    lines = []
    for i, name in enumerate(names):
        hits, total = int(right[..., i].sum()), int(counted[..., i].sum())
        lines.append(f"{name + ':':14} {hits / total:.2%} right ({hits:,} of {total:,})")
    whole = int((right == counted).all(axis=(1, 2)).sum())
    lines.append(
        f"{'all of it:':14} {whole / len(truth):.2%} of images ({whole:,} of {len(truth):,})"
    )
    return "\n".join(lines)
