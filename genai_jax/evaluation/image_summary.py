"""What a diffusion model has come to, in a few lines, at the end of its training."""

from collections.abc import Callable
from typing import Any

import numpy as np

from genai_jax.diffusion.likelihood import Estimate
from genai_jax.diffusion.sampling import SamplerConfig
from genai_jax.evaluation.drawing import Drawer
from genai_jax.evaluation.image_report import draw_training_images, measure_draws
from genai_jax.evaluation.yardstick import LabelledImages, Yardstick

_DRAWS = 3


def describe_bits(bits: Estimate, split: str) -> str:
    """Say what held-out images cost."""
    return (
        f"held-out images:  at most {bits.mean:.3f} ± {bits.standard_error:.3f} bits per dimension "
        f"({bits.images:,} of the {split} split, discretised bins)"
    )


def describe_samples(
    yardstick: Yardstick,
    drawer: Drawer,
    model: Any,
    sampler: SamplerConfig,
    *,
    labels: np.ndarray | None,
    seed: int,
    check: Callable[[], None],
) -> str:
    """Compare a few draws with real images.

    Args:
        yardstick: The held-out split, and the classifier.
        drawer: Draws.
        model: The network.
        sampler: How.
        labels: Classes to draw, as many as are held out; None where the model is told nothing.
        seed: Of the first draw.
        check: Called now and then; may raise to stop.
    """
    seeds = range(seed, seed + _DRAWS)

    def draw(seed: int) -> LabelledImages:
        images = drawer(model, yardstick.count, labels, sampler, seed=seed, check=check)
        return LabelledImages(images, labels)

    samples = measure_draws("samples", draw, yardstick, seeds)
    copies = draw_training_images(yardstick.train, yardstick.count, yardstick.held_out.labels)
    real = measure_draws("training images", copies, yardstick, seeds)

    def shown(measure: str, form: str) -> str:
        mean, spread = samples.mean(measure), samples.spread(measure)
        return f"{mean:{form}} ± {spread:{form}} ({real.mean(measure):{form}} of training images)"

    lines = [f"Fréchet distance: {shown('frechet', '.3f')}, on the classifier's features"]
    if labels is not None:
        lines.append(
            f"class agreement:  {shown('agreement', '.1%')}, guidance {sampler.guidance_scale:g}"
        )
    lines.append(f"1-NN accuracy:    {shown('two_sample', '.1%')}; 50% is what cannot be told")
    lines.append(
        f"                  {_DRAWS} draws of {yardstick.count} images against the "
        f"{yardstick.count} of the test split; mean ± standard deviation"
    )
    return "\n".join(lines)
