"""The first state and the step of a run, from its options: what most experiments begin with."""

from collections.abc import Callable, Sequence

from jax.sharding import Mesh, PartitionSpec

from genai_jax.training.ema import EMAConfig
from genai_jax.training.named_arrays import MatrixAxes
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.partition import Trains
from genai_jax.training.passes import ONE_PASS, Passes
from genai_jax.training.run_config import RunConfig
from genai_jax.training.schedules import ScheduleConfig, fit_warmup, make_schedule
from genai_jax.training.state import TrainState, init_state
from genai_jax.training.step import TrainStep, make_train_step
from genai_jax.types import Batch, Objective, PyTree


def set_up_training(
    options: RunConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    mesh: Mesh,
    init_model: Callable[[], PyTree],
    objective: Objective,
    *,
    rules: Sequence[tuple[str, PartitionSpec]],
    decays: Callable[[str], bool],
    muon: Callable[[str], MatrixAxes | None],
    context: PyTree | Callable[[], PyTree] = None,
    trains: Trains = None,
    batch_means: Objective | None = None,
    passes: Passes = ONE_PASS,
    next_context: Callable[[PyTree, Batch], PyTree] | None = None,
) -> tuple[TrainState, TrainStep]:
    """Make the first state, and the step: optimizer, schedule, model, objective.

    The schedule goes over all updates; a warm-up of more than half of them is shortened.

    Args:
        options: Of the run.
        optimizer: How a gradient becomes an update.
        schedule: The learning rate over the run.
        mesh: The devices.
        init_model: Draws the model; traced.
        objective: What is trained on.
        rules: Sharding rules, as the model's file has them.
        decays: What decays, likewise.
        muon: What Muon takes, likewise.
        context: As `init_state` has it.
        trains: As `make_train_step` has it, like the rest.
        batch_means: Means over the batch that come first.
        passes: Updates of a step.
        next_context: What the context becomes.
    """
    updates = options.steps * passes.updates
    rate = make_schedule(fit_warmup(schedule, updates), updates)
    rule = make_optimizer(optimizer, rate, decays=decays, muon=muon, mesh=mesh)
    ema = EMAConfig(options.ema_decay) if options.ema_decay else None
    state = init_state(
        init_model,
        rule,
        mesh,
        rules,
        ema=ema is not None,
        context=context,
        trains=trains,
    )
    step = make_train_step(
        objective,
        rule,
        mesh,
        state,
        seed=options.seed,
        microbatches=options.microbatches,
        clip_norm=options.clip_norm or None,
        ema=ema,
        trains=trains,
        batch_means=batch_means,
        passes=passes,
        next_context=next_context,
    )
    return state, step
