"""The training objective of diffusion: predict what was mixed from an image and noise.

B rows, images [B, H, W, C]. All noise of a row comes from its own key, and its time from the strata
of the global batch, so that neither devices nor microbatches show.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from genai_jax.diffusion.denoiser import Diffusion, ImageModel
from genai_jax.diffusion.likelihood import hybrid_kl
from genai_jax.diffusion.predictions import like, make_target, solve
from genai_jax.diffusion.weightings import LevelConfig, draw_times, loss_weight
from genai_jax.types import Batch, Objective, PyTree, Term, Terms

Condition = Literal["none", "label", "tokens"]
"""The field of a batch that says what an image should be."""


def condition_of(batch: Batch, condition: Condition) -> Any:
    """Take the class labels or the captions of a batch; None where there are to be none."""
    return None if condition == "none" else batch[condition]


def drop(condition: PyTree, null: PyTree, dropped: Bool[Array, " b"]) -> PyTree:
    """Replace the condition of some rows by the one that says nothing."""
    return jax.tree.map(lambda c, n: jnp.where(like(dropped, c), n, c), condition, null)


def make_denoising(
    diffusion: Diffusion,
    levels: LevelConfig,
    *,
    condition: Condition = "none",
    condition_dropout: float = 0.1,
    flip: bool = False,
    vlb_weight: float = 1e-3,
    num_levels: int = 256,
    training: bool = True,
) -> Objective:
    r"""Make the loss $E_{t,\epsilon}[w(t)\,\|y_\theta(x_t, t) - y\|^2]$ of noisy images $x_t$.

    y is the target of `diffusion`; the square is the mean over pixels and channels. Where the
    network learns the variance of a reverse step, `vlb_weight` times the variational term of t
    is added, in nats per dimension, through which only the variance is trained.

    Args:
        diffusion: What the network means.
        levels: Which times are drawn, and their weights w.
        condition: What the network is told of an image.
        condition_dropout: Probability that it is told nothing, for guidance.
        flip: Whether half of the images are mirrored, left to right.
        vlb_weight: Weight of the variational term.
        num_levels: L of the images, for the variational term.
        training: Whether there are dropout, mirroring and dropped conditions. The loss without
            them, on noise that depends on the row alone, is what is compared between steps.

    Returns:
        An objective: batches have `image`, one `key` a row, `stratified` uniform numbers, the
        field that `condition` names, and `weight` (1 = counted) where some rows are filler. Its
        terms are `loss` and, as a metric, `mse`, the squared error before it is weighted; with a
        learned variance also `vlb`.

    Reference: Ho et al., arXiv:2006.11239, eq. 14 and algorithm 1; strata: Kingma et al.,
        arXiv:2107.00630, appendix I.1; dropped conditions: Ho and Salimans, arXiv:2207.12598,
        algorithm 1; learned variance: Nichol and Dhariwal, arXiv:2102.09672, eq. 16.
    """
    process = diffusion.process

    def denoising(model: ImageModel, batch: Batch, context: Any = None) -> Terms:
        image, told = batch["image"], condition_of(batch, condition)
        keys = {name: _keys(batch["key"], i) for i, name in enumerate(_PURPOSES)}
        if training and flip:
            mirrored = _happens(keys["flip"], 0.5)
            image = jnp.where(like(mirrored, image), image[:, :, ::-1], image)
        if training and told is not None and condition_dropout:
            dropped = _happens(keys["drop"], condition_dropout)
            told = drop(told, model.null_condition(told), dropped)

        t = draw_times(levels, process, batch["stratified"])
        alpha, sigma = process.alpha_sigma(t)
        eps = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:], image.dtype))(keys["noise"])
        x_t = like(alpha, image) * image + like(sigma, image) * eps
        target = make_target(diffusion.target, image, eps, alpha, sigma, diffusion.sigma_data)

        output = diffusion.run(model, x_t, t, told, keys["dropout"] if training else None)
        said, fraction = diffusion.split(output)
        said = said.astype(jnp.float32)
        error = jnp.square(said - target).mean(axis=(1, 2, 3))
        weighted = loss_weight(levels, process, diffusion.target, t, diffusion.sigma_data) * error

        counted = batch.get("weight", jnp.ones_like(error))
        weight = counted.sum()
        terms = {"mse": Term(jnp.sum(counted * error), weight, 0.0)}
        if fraction is not None:
            x_0, _ = solve(diffusion.target, said, x_t, alpha, sigma, diffusion.sigma_data)
            fraction = fraction.astype(jnp.float32)
            vlb = hybrid_kl(process, image, t, x_0, fraction, num_levels)
            terms["vlb"] = Term(jnp.sum(counted * vlb), weight, 0.0)
            weighted = weighted + vlb_weight * vlb
        return {"loss": Term(jnp.sum(counted * weighted), weight)} | terms

    return denoising


_PURPOSES = ("noise", "dropout", "drop", "flip")


def _keys(key: Key[Array, " b"], purpose: int) -> Key[Array, " b"]:
    return jax.vmap(lambda row: jax.random.fold_in(row, purpose))(key)


def _happens(key: Key[Array, " b"], probability: float) -> Bool[Array, " b"]:
    return jax.vmap(lambda row: jax.random.bernoulli(row, probability))(key)
