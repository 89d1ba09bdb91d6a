"""Runs of diffusion models and of classifiers, as other scripts read them back."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from genai_jax.data.images import ImageConfig, ImageData
from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.sampling import SamplerConfig
from genai_jax.evaluation.image_likelihood import BoundConfig
from genai_jax.models.classifier import Classifier, ClassifierConfig
from genai_jax.models.dit import DiT, DiTConfig
from genai_jax.models.unet import UNet
from genai_jax.models.unet_config import UNetConfig
from genai_jax.objectives.denoising import Condition
from genai_jax.training.checkpoints import load_part
from genai_jax.training.posthoc_ema import reconstruct
from genai_jax.training.run_directory import RunError, read_run
from genai_jax.training.saved_config import from_json
from genai_jax.types import PyTree

NetworkConfig = UNetConfig | DiTConfig


def make_network(config: NetworkConfig, key: jax.Array) -> UNet | DiT:
    """Draw the network that a configuration describes."""
    return UNet(config, key) if isinstance(config, UNetConfig) else DiT(config, key)


def fit_network(config: NetworkConfig, data: ImageData, condition: Condition) -> NetworkConfig:
    """Give a network the data's size, channels, and classes or words.

    Raises:
        ValueError: If the images are not square, or have nothing of the kind to be told.
    """
    height, width, channels = data.shape
    if height != width:
        raise ValueError(
            f"Diffusion models take square images; got {height} × {width}. Give --data.size."
        )
    told = {"none": 1, "label": data.num_classes, "tokens": data.vocab_size}[condition]
    if not told:
        raise ValueError(
            f"`condition` must be something that the images have; got {condition!r}, and "
            "they have no such thing. Choose --condition none."
        )
    sizes: dict[str, Any] = {"image_size": height, "channels": channels}
    if condition == "label":
        sizes["num_classes"] = told
    if condition == "tokens":
        if config.text is None:
            raise ValueError(
                "`condition` 'tokens' needs a network that reads captions; got one without an "
                "encoder of text. Start from the preset shapes."
            )
        sizes["text"] = dataclasses.replace(config.text, vocab_size=told)
    return dataclasses.replace(config, **sizes)


@dataclasses.dataclass(frozen=True)
class DiffusionRun:
    """What a run has come to.

    Attributes:
        model: The network; the average of its parameters where the run keeps one.
        step: Completed updates.
        diffusion: What it means.
        condition: What it is told of an image.
        network: Its shape.
        data: What it was trained on.
        sampler: How the run drew its pictures.
        bound: How the run measured likelihood.
        seed: Of the run.
    """

    model: Any
    step: int
    diffusion: Diffusion
    condition: Condition
    network: NetworkConfig
    data: ImageConfig
    sampler: SamplerConfig
    bound: BoundConfig
    seed: int


def load_diffusion_run(folder: str, sigma_rel: float = 0.0) -> DiffusionRun:
    """Load the newest parameters of a run of `image_diffusion.py`; its images are not needed.

    Args:
        folder: The `--workdir` of its training.
        sigma_rel: Length of an average to make from its snapshots; 0: the newest parameters (their
            average, where it keeps one).

    Raises:
        RunError: If there is no such run, or none with a checkpoint.
    """
    saved = _read(folder, "ImageDiffusionConfig", "image_diffusion.py")
    network = from_json(NetworkConfig, saved["network"])
    step, model = _load_model(
        folder, saved, lambda: make_network(network, jax.random.key(0)), sigma_rel
    )
    return DiffusionRun(
        model=model,
        step=step,
        diffusion=from_json(Diffusion, saved["diffusion"]),
        condition=saved["condition"],
        network=network,
        data=from_json(ImageConfig, saved["data"]),
        sampler=from_json(SamplerConfig, saved["sampler"]),
        bound=from_json(BoundConfig, saved["bound"]),
        seed=saved["seed"],
    )


def _read(folder: str, kind: str, script: str) -> Mapping[str, Any]:
    saved, _ = read_run(folder)
    if saved.get("_type") != kind:
        raise RunError(
            f"{folder} must be a run of {script}; it is one of another script "
            f"({saved.get('_type')}). Give the --workdir of {script}."
        )
    return saved


def _load_model(
    folder: str, saved: Mapping[str, Any], make: Callable[[], PyTree], sigma_rel: float = 0.0
) -> tuple[int, Any]:
    """Load parameters onto the first device: their average where the run keeps one."""
    part = "ema" if sigma_rel or saved["ema_decay"] else "model"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, "float32" if part == "ema" else x.dtype, sharding=device
        ),
        jax.eval_shape(make),
    )
    if sigma_rel:
        made = reconstruct(Path(folder) / "ema", like, sigma_rel)
        return made.step, made.model
    found = load_part(Path(folder) / "checkpoints", {part: like})
    if found is None:
        raise RunError(
            f"a run must have a checkpoint to be used; {folder} has none yet. Wait for the first "
            "one (--save-every), or train with the same command again."
        )
    step, parts = found
    return step, parts[part]


def load_classifier(folder: str) -> tuple[Classifier, ClassifierConfig, int]:
    """Load the newest parameters of a run of `image_classifier.py`, and their step.

    Raises:
        RunError: If there is no such run, or none with a checkpoint.
    """
    saved = _read(folder, "ImageClassifierConfig", "image_classifier.py")
    shape = from_json(ClassifierConfig, saved["model"])
    step, model = _load_model(folder, saved, lambda: Classifier(shape, jax.random.key(0)))
    return model, shape, step


def require_same_images(folder: str, digest: str) -> None:
    """Refuse to measure a model by other images than it was trained on.

    Args:
        folder: Of its run.
        digest: Of the images that there are now.

    Raises:
        RunError: If they differ.
    """
    trained = read_run(folder)[1].get("data")
    if trained != digest:
        raise RunError(
            f"a model must be measured by the images that it was trained on; {folder} was begun "
            f"with others (digest {str(trained)[:16]}, now {digest[:16]}). "
            "Give back the images that it had."
        )
