"""What every run of post-training has in common: its options, and how it is opened."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import field
from typing import TypeVar

from genai_jax.evaluation.starting_points import (
    StartingPoint,
    fresh_start,
    refuse_itself,
    starting_point,
    trains,
)
from genai_jax.evaluation.text_runs import adopt
from genai_jax.models.lora import count_trained
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.parallel.cpu_devices import describe_devices
from genai_jax.training.optimizers import OptimizerConfig
from genai_jax.training.run_config import OBSERVATIONAL, RunConfig
from genai_jax.training.run_directory import RunDirectory, open_run
from genai_jax.training.schedules import ScheduleConfig
from genai_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class TuningConfig(RunConfig):
    """A run that begins with a language model.

    Attributes:
        init: Folder of the model that the run begins with: a run of ours, or a model of Hugging
            Face's. Its shape, its tokenizer and its chat template are taken.
        length: T, most tokens of a row: of a prompt and its answer, or of packed examples.
        model: How the model computes (dtype, remat, dropout); the shape is that of `init`.
        lora: The adapter; rank 0 trains all parameters.
        optimizer: How a gradient becomes an update.
        schedule: The learning rate over all updates; a warm-up of more than half of them is
            shortened.
    """

    init: str = ""
    length: int = 128
    ema_decay: float = 0.0
    model: TransformerConfig = field(default_factory=TransformerConfig)
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=0))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(1e-4, "linear", warmup_steps=20, final_fraction=0.0)
    )

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if self.length < 2:
            raise ValueError(f"`length` must be at least 2; got {self.length}.")


Config = TypeVar("Config", bound=TuningConfig)


@contextlib.contextmanager
def open_tuning(
    config: Config, *others: str, may_be_drawn: bool = False
) -> Iterator[tuple[Config, RunDirectory, StartingPoint]]:
    """Find what a run begins with, and open its folder.

    Args:
        config: What the command line said.
        others: More folders that it reads.
        may_be_drawn: Whether a run without `init` draws its parameters, and reads bytes.

    Yields:
        The options with the shape of what it begins with, the open run, and what it begins with.

    Raises:
        RunError: If there is nothing to begin with, or the folder is another run's.
        ValueError: If a row is longer than the context.
    """
    refuse_itself(config.workdir, config.init, *others)
    if may_be_drawn and not config.init:
        point = fresh_start(config.model)
    else:
        point = starting_point(config.init, "" if config.overwrite else config.workdir)
    config = dataclasses.replace(config, model=adopt(config.model, point.shape, config.length))
    with open_run(
        config.workdir, config, overwrite=config.overwrite, observational=OBSERVATIONAL
    ) as run:
        yield config, run, point


def describe_training(model: PyTree, lora: LoraConfig) -> str:
    """Say how many parameters there are, how many train, and where.

    Args:
        model: All that a state trains or holds frozen as its model.
        lora: Of its adapters.
    """
    trained, whole = count_trained(model, trains(lora) or (lambda name: True))
    return f"model: {whole:,} parameters, of which {trained:,} train, on {describe_devices()}"
