"""Trains a classifier of images: the judge of what diffusion models draw."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import field, replace

import jax
from jax.sharding import Mesh

from genai_jax.command_line import parse_command_line
from genai_jax.data.image_labels import ATTRIBUTES, LabelledRows, head_names, labels_of
from genai_jax.data.image_rows import check_batch_fits, levels_to_float
from genai_jax.data.images import ImageConfig, ImageData, load_images
from genai_jax.data.loader import Loader
from genai_jax.evaluation.classes import describe_attributes, describe_classes, make_predict
from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.evaluation.pictures import captioned_png
from genai_jax.evaluation.text_report import kept_text
from genai_jax.models import classifier
from genai_jax.models.classifier import Classifier, ClassifierConfig
from genai_jax.objectives.classification import classification
from genai_jax.parallel.cpu_devices import describe_devices
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.ema import EMAConfig
from genai_jax.training.fit import fit
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.run_config import OBSERVATIONAL, RunConfig
from genai_jax.training.run_directory import RunDirectory, open_run
from genai_jax.training.schedules import ScheduleConfig, fit_warmup, make_schedule
from genai_jax.training.script import run_script
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, init_state
from genai_jax.training.step import TrainStep, check_rows, make_train_step


@dataclasses.dataclass(frozen=True)
class ImageClassifierConfig(RunConfig):
    """A run that trains a classifier.

    Attributes:
        model: The network; its image size, channels and heads are the data's where they are not
            given.
        data: The images.
        label_smoothing: Share of the probability that is spread over all classes, in training.
        shift: Most pixels that an image is moved along each axis, in training.
        flip: Whether half of the images are mirrored, left to right, in training.
        optimizer: How a gradient becomes an update.
        schedule: The learning rate over the run; a warm-up of more than half of it is shortened.
    """

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: ImageConfig = field(default_factory=ImageConfig)
    label_smoothing: float = 0.05
    shift: int = 0
    flip: bool = False
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(weight_decay=0.05, beta2=0.99)
    )
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(2e-3, warmup_steps=50, final_fraction=0.0)
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(
                f"`label_smoothing` must be in [0, 1]; got {self.label_smoothing}. Try 0.05."
            )
        if self.shift < 0:
            raise ValueError(f"`shift` must not be negative; got {self.shift}. 0 moves nothing.")


_MISTAKES_SHOWN = 24

PRESETS: dict[str, tuple[str, ImageClassifierConfig]] = {
    "digits": (
        "the 8x8 digits, a minute on a laptop",
        ImageClassifierConfig(workdir="runs/digits-classifier", shift=1, log_every=100),
    ),
    "shapes": (
        "drawn shapes: what, what colour and how large, by place; minutes on a laptop",
        ImageClassifierConfig(
            workdir="runs/shapes-classifier",
            steps=400,
            model=ClassifierConfig(widths=(16, 32, 32, 64), feature_dim=128, dropout=0.1),
            data=ImageConfig(source="shapes"),
            label_smoothing=0.0,
            evaluate_every=100,
            save_every=200,
        ),
    ),
}

_MAY_DIFFER = (*OBSERVATIONAL, "data.cache_dir", "data.cache_megabytes", "data.data_dir")


def run_training(config: ImageClassifierConfig, stop: StopRequest) -> int:
    """Train; returns the exit code."""
    data = load_images(config.data, seed=config.seed)
    print(data.summary, flush=True)
    check_batch_fits(data.train, config.batch_size)
    config = replace(config, model=fit_model(config.model, data.shape, head_names(data)))
    with open_run(
        config.workdir, config, overwrite=config.overwrite, observational=_MAY_DIFFER
    ) as run:
        run.require_identity({"data": data.content_digest})
        return train_classifier(config, run, data, stop)


def fit_model(
    config: ClassifierConfig, data_shape: tuple[int, int, int], heads: Sequence[Sequence[str]]
) -> ClassifierConfig:
    """Give the network the data's size, channels and heads, where it has none of its own.

    Args:
        config: The network.
        data_shape: (h, w, c) of the images.
        heads: Names of the classes of every head.

    Raises:
        ValueError: If the images are not square.
    """
    height, width, channels = data_shape
    if height != width:
        raise ValueError(f"The classifier takes square images; got {height} × {width}. Cut them.")
    return replace(
        config,
        image_size=config.image_size or height,
        channels=config.channels or channels,
        heads=config.heads or tuple(map(len, heads)),
    )


def make_training(config: ImageClassifierConfig, mesh: Mesh) -> tuple[TrainState, TrainStep]:
    """Make the first state, and the step: model, objective, optimizer."""
    schedule = make_schedule(fit_warmup(config.schedule, config.steps), config.steps)
    optimizer = make_optimizer(
        config.optimizer,
        schedule,
        decays=classifier.decays,
        muon=classifier.hidden_matrix,
        mesh=mesh,
    )
    ema = EMAConfig(config.ema_decay) if config.ema_decay else None
    state = init_state(
        lambda: Classifier(config.model, jax.random.key(config.seed)),
        optimizer,
        mesh,
        classifier.SHARDING_RULES,
        ema=ema is not None,
    )
    objective = functools.partial(
        classification,
        label_smoothing=config.label_smoothing,
        shift=config.shift,
        flip=config.flip,
    )
    train_step = make_train_step(
        objective,
        optimizer,
        mesh,
        state,
        seed=config.seed,
        microbatches=config.microbatches,
        unroll=True,  # the gradient of a convolution is slow in a loop
        clip_norm=config.clip_norm or None,
        ema=ema,
    )
    return state, train_step


def train_classifier(
    config: ImageClassifierConfig, run: RunDirectory, data: ImageData, stop: StopRequest
) -> int:
    """Train, and say what came of it; returns the exit code."""
    mesh = make_mesh(config.fsdp)
    check_rows(config.batch_size, mesh, config.microbatches)
    state, train_step = make_training(config, mesh)
    print(
        f"model: {sum(x.size for x in jax.tree.leaves(state.model)):,} parameters on "
        f"{describe_devices()}, mesh {dict(mesh.shape)}",
        flush=True,
    )
    evaluator = make_evaluator(
        functools.partial(classification, training=False),
        mesh,
        LabelledRows(data.validation),
        config.evaluation_rows,
    )
    state, exit_code = fit(
        config,
        run,
        state,
        train_step,
        Loader(LabelledRows(data.train), config.batch_size, sharding=batch_sharding(mesh)),
        stop=stop,
        evaluate=lambda state: evaluator(state.averaged, stop.check),
        unit="images",
        loss_unit="nats per label",
    )
    if exit_code == 0:
        report = run.folder("samples") / "report.txt"
        print(kept_text(report, lambda: final_report(run, data, state.averaged)))
    return exit_code


def final_report(run: RunDirectory, data: ImageData, model: Classifier) -> str:
    """Say how well the images of the test split are told apart, and draw those that are not."""
    images = levels_to_float(data.levels_of("test"), data.levels)
    truth, heads = labels_of(data, "test"), head_names(data)
    predicted = make_predict(Classifier.__call__, model)(images)
    if len(heads) == 1:
        told = describe_classes(predicted, truth, heads[0])
    else:
        told = describe_attributes(predicted, truth, ATTRIBUTES)
    lines = [f"test split:    {len(images):,} images, seen once, at the end", told]
    wanted = truth.reshape(predicted.shape)
    missed = (predicted != wanted) & (wanted >= 0)
    wrong = missed.any(axis=1).nonzero()[0]
    if len(wrong):
        shown = wrong[:_MISTAKES_SHOWN]
        captions = [
            "; ".join(
                f"{heads[h][wanted[i, h]]} taken for {heads[h][predicted[i, h]]}"
                for h in missed[i].nonzero()[0]
            )
            for i in shown
        ]
        picture = run.folder("samples") / "mistakes.png"
        picture.parent.mkdir(exist_ok=True)
        write_atomically(
            picture, captioned_png(images[shown], captions, columns=min(6, len(shown)))
        )
        lines.append(f"mistakes:      {picture} ({len(shown)} of {len(wrong)})")
    lines.append(f"loss curve:    {run.folder('plots') / 'loss.png'}")
    return "\n".join(lines)


def main() -> int:
    """Read the command line and run."""
    config = parse_command_line(PRESETS, description=__doc__ or "")
    return run_script(config, run_training)


if __name__ == "__main__":
    sys.exit(main())
