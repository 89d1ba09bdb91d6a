"""Cross-entropy of a classifier with one head or several, on images moved and mirrored at random.

B rows, images [B, H, W, C], labels [B] or [B, heads]. A label of -1 is not counted: what has no
colour, say, has no right answer for it.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from genai_jax.types import Batch, Term, Terms


@runtime_checkable
class ClassifierModel(Protocol):
    """What the objective needs of a model."""

    def __call__(
        self, images: Float[Array, "b h w c"], key: Key[Array, " b"] | None = None
    ) -> Sequence[Float[Array, "b classes"]]:
        """Compute the logits of every head; `key` is for dropout, and None switches it off."""


def classification(
    model: ClassifierModel,
    batch: Batch,
    context: Any = None,
    *,
    label_smoothing: float = 0.0,
    shift: int = 0,
    flip: bool = False,
    training: bool = True,
) -> Terms:
    r"""Compute the mean cross-entropy of the counted labels, in nats.

    $-(1 - s) \log p_y - \frac{s}{K} \sum_k \log p_k$ for a head of K classes.

    Args:
        model: A classifier.
        batch: `image`, `label`, one `key` a row where something is random, and `weight`
            (1 = counted) where some rows are filler.
        context: Not read.
        label_smoothing: s, in [0, 1].
        shift: Most pixels that an image is moved along each axis; its edge is repeated.
        flip: Whether half of the images are mirrored, left to right.
        training: Whether there are dropout, smoothing, moving and mirroring.

    Returns:
        `loss`, and as a metric `accuracy`; both are means over all counted labels.

    Reference: smoothing: Szegedy et al., arXiv:1512.00567, section 7.
    """
    image = batch["image"]
    labels = batch["label"].reshape(len(image), -1)
    keys: dict[str, Key[Array, " b"]] = {}
    if training and "key" in batch:
        for number, name in enumerate(("shift", "flip", "dropout")):
            keys[name] = jax.vmap(lambda row, n=number: jax.random.fold_in(row, n))(batch["key"])
    if training and shift:
        image = jax.vmap(lambda x, key: _moved(x, key, shift))(image, keys["shift"])
    if training and flip:
        mirrored = jax.vmap(jax.random.bernoulli)(keys["flip"])
        image = jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    heads = model(image, keys.get("dropout"))
    counted = batch.get("weight", jnp.ones(len(image)))
    smoothing = label_smoothing if training else 0.0

    sums = jnp.zeros((3,))
    for logits, truth in zip(heads, labels.T, strict=True):
        sums += _sums_of_head(logits, truth, counted * (truth >= 0), smoothing)
    loss, correct, weight = sums
    return {"loss": Term(loss, weight), "accuracy": Term(correct, weight, 0.0)}


def _sums_of_head(
    logits: Float[Array, "b k"],
    truth: Int[Array, " b"],
    counted: Float[Array, " b"],
    smoothing: float,
) -> Float[Array, "3"]:
    """Sum the loss, the right answers and the counted labels of one head."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_truth = jnp.take_along_axis(log_p, jnp.maximum(truth, 0)[:, None], axis=1)[:, 0]
    loss = -(1 - smoothing) * of_truth - smoothing * log_p.mean(-1)
    correct = is_correct(logits, truth)
    return jnp.stack([jnp.sum(counted * loss), jnp.sum(counted * correct), counted.sum()])


def is_correct(logits: Float[Array, "b k"], truth: Int[Array, " b"]) -> Bool[Array, " b"]:
    """Whether the likeliest class is the right one; of equally likely ones the first counts."""
    return jnp.argmax(logits, axis=-1) == truth


def _moved(image: Float[Array, "h w c"], key: PRNGKeyArray, most: int) -> Float[Array, "h w c"]:
    """Move an image by up to `most` pixels along each axis; its edge is repeated."""
    padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
    corner = jax.random.randint(key, (2,), 0, 2 * most + 1)
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)
