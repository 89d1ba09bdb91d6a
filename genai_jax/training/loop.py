"""The loop: next batch, step, record, evaluate, save. One for every model and objective.

The promise: a run that is killed at any moment and started again ends with the same bytes in
metrics.jsonl and the same parameters as one that never was. It rests on an order. What a checkpoint
of step s covers (the lines up to s, and the evaluation at s) is in metrics.jsonl before the
checkpoint can exist; whatever is in there beyond s is cut off when s is resumed, and written again.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.reporting import Reporter
from genai_jax.training.run_directory import RunDirectory
from genai_jax.training.signals import Stopped, StopRequest
from genai_jax.types import Batch, Metrics, PyTree

Evaluate = Callable[[Any], Mapping[str, float]]
Sample = Callable[[Any], Mapping[str, str | bytes]]

_MUST_BE_FINITE = ("loss", "grad_norm")
_STEPS_BETWEEN_AGREEMENTS = 10


class NonFiniteError(ArithmeticError):
    """The loss or the norm of the gradient of a step is infinite or not a number."""


class BatchError(RuntimeError):
    """The next batch cannot be made: the run is saved as it is, and ends."""


class StepError(RuntimeError):
    """What a step reports says that it was not what it should be; nothing after it is saved."""


def host_means(metrics: Metrics) -> dict[str, float]:
    """Divide sums by weights on the host, in float64: the same value on every machine.

    Waits for the step that computes them. A weight of zero gives NaN.
    """
    pairs = jax.device_get(metrics)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: float(np.float64(total) / np.float64(weight))
            for name, (total, weight) in pairs.items()
        }


def _is_of_nothing(metric: tuple[Any, Any]) -> bool:
    """Whether nothing of a batch counts, such as when no answer of a step has a reward."""
    total, weight = jax.device_get(metric)
    return bool(total == 0 == weight)


def parse_profile_steps(text: str | None) -> range:
    """Read `A:B` as the steps A, A+1, ..., B-1, counted from 1; None is no step at all.

    Raises:
        ValueError: If it is not of that form.
    """
    if text is None:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) < int(last)):
        raise ValueError(
            f"--profile-steps must be A:B with 1 <= A < B; got {text!r}. 10:13 is three steps."
        )
    return range(int(first), int(last))


@dataclasses.dataclass(frozen=True)
class Interludes:
    """What happens between the steps, and how often.

    Attributes:
        save_every: Steps between two checkpoints; 0 saves at the end only.
        evaluate_every: Steps between two evaluations; 0 evaluates at the end only.
        evaluate_first: Whether to evaluate before the first step, as step 0.
        evaluate: `state -> values`, written as `val/<name>`. May raise `Stopped` of `signals`.
        sample: `state -> {suffix: content}`, written to `samples/<step><suffix>`; likewise.
        snapshot_every: Steps between two snapshots of the traces; 0 makes one at the end only.
        snapshots: Takes `state.traces`; None takes none.
        profile_steps: Steps whose profile is written to `profile/`.
        loss_unit: Of the loss, for the axis of the plot.
        check: Is given the metrics of every step; may raise `StepError`.
    """

    save_every: int = 0
    evaluate_every: int = 0
    evaluate_first: bool = False
    evaluate: Evaluate | None = None
    sample: Sample | None = None
    snapshot_every: int = 0
    snapshots: Checkpoints | None = None
    profile_steps: range = range(0)
    loss_unit: str = "nats"
    check: Callable[[Mapping[str, float]], None] = lambda values: None


@dataclasses.dataclass
class _Ledger:
    """Writes down what a step leaves behind, in the order that the promise rests on."""

    run: RunDirectory
    checkpoints: Checkpoints
    reporter: Reporter
    interludes: Interludes
    whole: Callable[[Any], Any]
    in_flight: tuple[int, Metrics] | None = None

    @property
    def stores(self) -> list[Checkpoints]:
        """Whatever takes states or parts of them."""
        return [x for x in (self.checkpoints, self.interludes.snapshots) if x is not None]

    def wait(self) -> None:
        """Wait for the saves under way."""
        for store in self.stores:
            store.wait()

    def resume(self, start: int) -> bool:
        """Cut the metrics back to a step; returns whether its evaluation is still owed."""
        kept = self.run.metrics.cut(start)
        self.run.timing.cut(sys.maxsize)  # drops a partial last line
        if (kept[-1]["step"] if kept else 0) < start:
            message = f"WARNING: {self.run.metrics.path} lacks lines before step {start}"
            self.reporter.say(message, error=True)
        newest = [name for record in kept if record["step"] == start for name in record]
        evaluated = any(name.startswith("val/") for name in newest)
        # A signal may have ended the evaluation at the very step that was then saved.
        again = start > 0 and self._is_due(start, self.interludes.evaluate_every)
        due = again or (start == 0 and self.interludes.evaluate_first)
        return due and self.interludes.evaluate is not None and not evaluated

    def ask(self, next_batch: Callable[[Any, int], Batch], state: PyTree, step: int) -> PyTree:
        """Ask for the batch of a step; None if that was stopped inside."""
        try:
            with self.reporter.waiting():
                return next_batch(state, step - 1)
        except Stopped:
            return None
        except BatchError:
            self.record()  # a step that went wrong is why the next batch does: it is told instead
            raise

    def record(self) -> None:
        """Wait for the step in flight and write its line."""
        if self.in_flight is None:
            return
        (step, metrics), self.in_flight = self.in_flight, None
        values = host_means(metrics)
        for name in _MUST_BE_FINITE:
            if not math.isfinite(values.get(name, 0.0)) and not _is_of_nothing(metrics[name]):
                raise NonFiniteError(f"step {step}: {name} is {values[name]}")
        self.interludes.check(values)
        self.run.metrics.append({"step": step} | {f"train/{k}": v for k, v in values.items()})
        self.reporter.step(step, values)

    def close_step(self, step: int, state: PyTree) -> bool:
        """Evaluate, save and draw where that is due; False if the evaluation was stopped."""
        evaluating = self._is_due(step, self.interludes.evaluate_every)
        complete = not evaluating or self.evaluate_at(step, state)
        if not complete or self._is_due(step, self.interludes.save_every):
            self.save(step, state)
        self.snapshot(step, state)
        if evaluating and complete:
            with self.reporter.pause("plot", step):
                _draw_plots(self.run, self.interludes.loss_unit, self.reporter)
        return complete

    def evaluate_at(self, step: int, state: PyTree) -> bool:
        """Evaluate and sample; False if that was stopped inside, and has to be done again."""
        self.record()
        evaluate, sample = self.interludes.evaluate, self.interludes.sample
        try:
            with self.reporter.pause("evaluate", step):
                whole = self.whole(state)
                values = evaluate(whole) if evaluate else {}
                samples = sample(whole) if sample else {}
        except Stopped:
            return False
        # The line comes last: where it stands, the samples are there too.
        for suffix, content in samples.items():
            _write_sample(self.run, f"{step:08}{suffix}", content, self.reporter)
        if values:
            named = {f"val/{name}": float(value) for name, value in values.items()}
            self.run.metrics.append({"step": step, **named})
            self.reporter.evaluation(step, named)
        return True

    def save(self, step: int, state: PyTree) -> None:
        """Begin a checkpoint, once all that it covers is on the disk."""
        self.record()
        with self.reporter.pause("save", step):
            if self.interludes.snapshots is not None:
                self.interludes.snapshots.wait()  # whoever resumes here will not make them again
            if self.run.metrics.flush(to_disk=True):
                self.checkpoints.save(step, self.whole(state))
            else:
                self.checkpoints.failures.append(f"step {step}: metrics.jsonl cannot be written")

    def snapshot(self, step: int, state: Any) -> None:
        """Begin a snapshot, where one is due that does not stand yet.

        Whoever resumes this step makes it, if a kill did not let it end.
        """
        snapshots = self.interludes.snapshots
        if snapshots is None or not self._is_due(step, self.interludes.snapshot_every):
            return
        if step not in snapshots.steps():
            self.record()
            with self.reporter.pause("snapshot", step):
                snapshots.save(step, self.whole(state).traces)

    def _is_due(self, step: int, every: int) -> bool:
        return step == self.reporter.steps or (every > 0 and step % every == 0)


def train(
    state: PyTree,
    start: int,
    *,
    train_step: Callable[[Any, Batch], tuple[Any, Metrics]],
    next_batch: Callable[[Any, int], Batch],
    run: RunDirectory,
    checkpoints: Checkpoints,
    reporter: Reporter,
    stop: StopRequest,
    interludes: Interludes = Interludes(),
    whole: Callable[[Any], Any] = lambda state: state,
) -> tuple[PyTree, int]:
    """Run the steps after `start` up to `reporter.steps`.

    Args:
        state: The state after `start` completed steps, as `train_step` takes it; it is donated.
        start: Completed steps.
        train_step: `(state, batch) -> (state, metrics)`, jitted; metrics are (sum, weight).
        next_batch: `(state, completed steps) -> batch`; pure. May raise `BatchError` or `Stopped`.
        run: Takes the metrics, samples and plots.
        checkpoints: Takes the states.
        reporter: Takes whatever is for human eyes; knows how many steps there are.
        stop: Polled before every step.
        interludes: Evaluations, samples, checkpoints and profiles, and how often.
        whole: From a state to what interludes and checkpoints are given, where steps take leaves.

    Returns:
        The last state, as the steps have it, and the exit code: 0; 1 after a loss that is not
        finite or a save that failed; 130 or 143 after a signal.
    """
    steps = reporter.steps
    ledger = _Ledger(run, checkpoints, reporter, interludes, whole)
    owed = ledger.resume(start)
    with reporter, _Profiler(run, interludes.profile_steps) as profiler:
        if start:
            ledger.snapshot(start, state)
        if start >= steps and not owed:
            reporter.say(f"{run.path} is finished: {start} steps. Nothing to do.")
            _draw_plots(run, interludes.loss_unit, reporter, only_if_outdated=True)
            ledger.wait()
            return state, _exit_code(False, stop, ledger)
        if start:
            reporter.say(f"resuming {run.path} after step {start}")
        done = start
        try:
            stopping = owed and not ledger.evaluate_at(start, state)
            for step in range(start + 1, steps + 1):
                if stopping or (stopping := _agreed(stop, step)):
                    break
                profiler.before(step)
                batch = ledger.ask(next_batch, state, step)
                if stopping := batch is None:
                    break
                with reporter.dispatching(step, first=step == start + 1):
                    state, metrics = train_step(state, batch)
                # Of the step before: while the host writes its line, this one computes. Waiting
                # for it keeps one step in flight; more of them deadlock the CPU's collectives.
                ledger.record()
                ledger.in_flight, done = (step, metrics), step
                profiler.after(step, state)
                for store in ledger.stores:
                    store.poll()
                stopping = not ledger.close_step(step, state)
            if done > start:
                ledger.save(done, state)  # nothing new unless a signal came
        except BatchError as error:
            if done > start:
                ledger.save(done, state)
            ledger.wait()
            reporter.say(f"STOPPED: {error} All steps up to {done} are saved.", error=True)
            return state, 1
        except (NonFiniteError, StepError) as error:
            ledger.wait()
            reporter.say(_advice(error, checkpoints), error=True)
            return state, 1
        ledger.wait()
        reporter.finish(done)
    _draw_plots(run, interludes.loss_unit, reporter, only_if_outdated=True)
    return state, _exit_code(stopping, stop, ledger)


def _agreed(stop: StopRequest, step: int) -> bool:
    """Whether to stop before this step: as soon as asked; with several hosts, all at one step."""
    if jax.process_count() == 1:
        return bool(stop)
    if step % _STEPS_BETWEEN_AGREEMENTS:
        return False
    return bool(np.any(multihost_utils.process_allgather(np.array(bool(stop)))))


def _write_sample(run: RunDirectory, name: str, content: str | bytes, reporter: Reporter) -> None:
    if jax.process_index() != 0:
        return
    try:
        run.folder("samples").mkdir(exist_ok=True)
        write_atomically(run.folder("samples") / name, content)
    except OSError as error:
        reporter.say(f"WARNING: sample {name} cannot be written ({error})", error=True)


def _draw_plots(
    run: RunDirectory, loss_unit: str, reporter: Reporter, *, only_if_outdated: bool = False
) -> None:
    picture, source = run.folder("plots") / "loss.png", run.metrics.path
    if jax.process_index() != 0 or not source.exists():
        return
    drawn = picture.stat().st_mtime_ns if picture.exists() else -1
    if only_if_outdated and drawn >= source.stat().st_mtime_ns:
        return
    # Here, since matplotlib takes a second to import, and a run that ends at once needs none.
    from genai_jax.training import plots

    try:
        plots.draw_losses(source, picture, title=run.path.resolve().name, loss_unit=loss_unit)
    except OSError as error:
        reporter.say(f"WARNING: {picture} cannot be written ({error})", error=True)


def _advice(error: NonFiniteError | StepError, checkpoints: Checkpoints) -> str:
    saved = checkpoints.steps()
    last = f"the last good checkpoint is step {saved[-1]}" if saved else "there is no checkpoint"
    stopped = f"STOPPED: {error}. Nothing was saved after it; {last} in {checkpoints.directory}."
    if isinstance(error, StepError):
        return stopped
    return (
        f"{stopped} The same command would come to the same step again: lower the learning rate, "
        "clip the gradient harder, or look at the batch of that step."
    )


def _exit_code(stopping: bool, stop: StopRequest, ledger: _Ledger) -> int:
    failures = [failure for store in ledger.stores for failure in store.failures]
    for failure in failures:
        ledger.reporter.say(f"WARNING: a save failed: {failure}", error=True)
    if stopping:
        saved = ledger.checkpoints.steps()
        where = f"saved at step {saved[-1]}" if saved else "nothing was saved"
        ledger.reporter.say(f"stopped; {where}. The same command resumes.")
        return stop.exit_code or 143  # asked for on another host
    return 1 if failures else 0


class _Profiler:
    """Traces some of the steps."""

    def __init__(self, run: RunDirectory, steps: range) -> None:
        self._folder = run.folder("profile")
        self._steps = steps
        self._running = False

    def before(self, step: int) -> None:
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: PyTree) -> None:
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(state)
            self.__exit__()

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
