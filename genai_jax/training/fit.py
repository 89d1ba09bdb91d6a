"""A run from its first state to its last: console, checkpoints and data around the loop.

What experiments have in common once they have made a state, a step and data.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.initialise import Begin
from genai_jax.training.loop import Interludes, parse_profile_steps, train
from genai_jax.training.reporting import Reporter, make_writers
from genai_jax.training.run_config import RunConfig
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.signals import StopRequest
from genai_jax.training.state import TrainState, abstract_like
from genai_jax.training.step import TrainStep
from genai_jax.types import Batch

Say = Callable[[str], None]
"""Prints lines above the progress bar."""


@runtime_checkable
class Batches(contextlib.AbstractContextManager[Any], Protocol):
    """Where batches come from: a `Loader`, or a policy's answers."""

    def batch(self, step: int, state: Callable[[], TrainState]) -> Batch:
        """Give the batch of a step.

        Args:
            step: Completed steps.
            state: Gives the state after them, of which the batch may be a function.
        """


def fit(
    options: RunConfig,
    run: RunDirectory,
    state: TrainState,
    train_step: TrainStep,
    batches: Batches,
    *,
    stop: StopRequest,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    sample: Callable[[TrainState, Say], Mapping[str, str | bytes]] | None = None,
    unit: str,
    units_per_row: int = 1,
    flops_per_unit: float | None = None,
    loss_unit: str,
    init: Begin | None = None,
    snapshot_every: int = 0,
    check: Callable[[Mapping[str, float]], None] = lambda values: None,
) -> tuple[TrainState, int]:
    """Train from the newest checkpoint of the run, if there is one, to the last step.

    Args:
        options: How many steps, and how often what happens.
        run: Takes everything that is written.
        state: The first state; donated.
        train_step: The jitted step.
        batches: Gives the batch of a step; closed at the end.
        stop: Polled before every step.
        evaluate: `state -> values`, written as `val/<name>`; `state.averaged` is the model.
        sample: `(state, say) -> {suffix: content}`, written to `samples/<step><suffix>`.
        unit: What a batch is counted in: "tokens", "images".
        units_per_row: How many of them a row has.
        flops_per_unit: Model FLOPs of training on one.
        loss_unit: Of the loss, for the axis of the plot.
        init: Puts into the first state what the run begins with; None leaves it as it is.
        snapshot_every: Steps between two snapshots of the traces, to `ema`; 0: at the end only.
        check: Is given the metrics of every step; may raise `loop.StepError`.

    Returns:
        The last state and the exit code, as `loop.train` gives them.
    """
    units = options.batch_size * units_per_row
    reporter = Reporter(
        run,
        steps=options.steps,
        log_every=options.log_every,
        unit=unit,
        units_per_step=units,
        flops_per_step=None if flops_per_unit is None else units * flops_per_unit,
        writers=make_writers(run, tensorboard=options.tensorboard, wandb=options.wandb),
    )
    checkpoints = Checkpoints(
        run.folder("checkpoints"), keep=options.keep, provenance=run.provenance()
    )
    with checkpoints, batches:
        start, state = _resume_or_begin(run, checkpoints, state, init, reporter.say)
        with _open_snapshots(run, state) as snapshots:
            leaves, exit_code = train(
                train_step.leaves(state),
                start,
                train_step=train_step.on_leaves,
                whole=train_step.whole,
                next_batch=lambda x, step: batches.batch(step, lambda: train_step.whole(x)),
                run=run,
                checkpoints=checkpoints,
                reporter=reporter,
                stop=stop,
                interludes=Interludes(
                    save_every=options.save_every,
                    evaluate_every=options.evaluate_every,
                    evaluate_first=options.evaluate_first,
                    evaluate=evaluate,
                    sample=None if sample is None else lambda s: sample(s, reporter.say),
                    snapshot_every=snapshot_every,
                    snapshots=snapshots,
                    profile_steps=parse_profile_steps(options.profile_steps),
                    loss_unit=loss_unit,
                    check=check,
                ),
            )
            return train_step.whole(leaves), exit_code


def _resume_or_begin(
    run: RunDirectory, checkpoints: Checkpoints, state: TrainState, init: Begin | None, say: Say
) -> tuple[int, TrainState]:
    """Find the state to go on from; `init` is not asked but by a first start."""
    found = checkpoints.restore(abstract_like(state))
    if found is not None:
        return found
    if init is not None:
        state, initial = init(state)
        run.require_identity({"init": initial.digest})
        checkpoints.provenance = run.provenance()
        say(f"beginning with {initial.about}")
    return 0, state


def _open_snapshots(
    run: RunDirectory, state: TrainState
) -> contextlib.AbstractContextManager[Checkpoints | None]:
    if state.traces is None:
        return contextlib.nullcontext()
    return Checkpoints(run.folder("ema"), keep=None, provenance=run.provenance())
