"""The options that every run of training has, whatever it trains."""

import dataclasses
from typing import ClassVar

from genai_jax.training.loop import parse_profile_steps

OBSERVATIONAL = (
    *("workdir", "overwrite", "cpu_devices", "microbatches", "keep", "log_every"),
    *("profile_steps", "tensorboard", "wandb"),
)
"""Fields that change no number but by rounding: they may differ when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run.

    Attributes:
        least_microbatches: What `microbatches` may be at least: 0 where the script can choose.
        workdir: Folder of the run; the same command again resumes what is in it.
        overwrite: Begin anew: delete the run that is in `workdir`.
        steps: Updates of the parameters in all.
        batch_size: Rows of an update, over all devices and microbatches.
        microbatches: Parts that a batch is computed in, one after the other, to save memory.
        seed: Of the parameters, the order of the data, and all noise.
        clip_norm: Longest global norm of a gradient; 0 never clips.
        ema_decay: Decay of a moving average of the parameters, which is then what is evaluated and
            used; 0 keeps none.
        fsdp: Devices that parameters and optimizer state are cut over; 1 replicates, -1 is all.
        cpu_devices: On a CPU, number of devices to make of it; 0 is one a core, as far as they
            divide the batch. 1 is faster where few rows meet many parameters: threads share them.
        evaluate_every: Steps between two evaluations of the validation split; 0: at the end.
        evaluate_first: Whether to evaluate before the first step, too: what the run begins with.
        evaluation_rows: Rows of one call of the evaluation, over all devices.
        save_every: Steps between two checkpoints; 0 saves at the end only.
        keep: Newest checkpoints to keep.
        log_every: Steps between two lines on the console.
        profile_steps: A:B writes a profile of the steps A to B-1 to the run's folder `profile`.
        tensorboard: Whether to write for TensorBoard (needs the extra `tensorboard`).
        wandb: Project of Weights & Biases to write to (needs the extra `wandb`); none writes none.
    """

    least_microbatches: ClassVar[int] = 1

    workdir: str
    overwrite: bool = False
    steps: int = 1000
    batch_size: int = 64
    microbatches: int = 1
    seed: int = 0
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    fsdp: int = 1
    cpu_devices: int = 0
    evaluate_every: int = 250
    evaluate_first: bool = False
    evaluation_rows: int = 64
    save_every: int = 500
    keep: int = 2
    log_every: int = 50
    profile_steps: str | None = None
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        least_of = dict.fromkeys(("steps", "batch_size", "evaluation_rows", "keep"), 1)
        for name, least in (least_of | {"microbatches": self.least_microbatches}).items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        parse_profile_steps(self.profile_steps)

    @property
    def rows_at_once(self) -> int:
        """Rows of a microbatch, which devices share."""
        return self.batch_size // (self.microbatches or 1)
