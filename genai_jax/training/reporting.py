"""What a run says while it runs: a line every N steps, a progress bar, and what the clock says."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from genai_jax.training.run_directory import RunDirectory

# Dense bf16 FLOP/s of a JAX device, by the beginning of its `device_kind`; the first that fits.
# NVIDIA: data sheets' tensor-core figures, halved where they are given "with sparsity".
# T4 has no bf16: its fp16 figure. TPU: cloud.google.com/tpu/docs, per chip; a chip is one device
# from v4 on, two before that.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("Tesla T4", 65e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L40", 181e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200 NVL", 835e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Look up a device's peak dense bf16 FLOP/s; None where it is not known (every CPU)."""
    return next((peak for start, peak in PEAK_FLOPS if device_kind.startswith(start)), None)


def peak_memory() -> int | None:
    """Read the most bytes that were ever in use: of the first accelerator, or of this process."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    if sys.platform == "win32":  # has no getrusage
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def with_prefix(value: float, unit: str = "") -> str:
    """Write a number to three digits with its SI prefix: `52.1 ktokens/s` is `52.1 k` + unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def as_duration(seconds: float) -> str:
    """Write a time as `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@runtime_checkable
class Writer(Protocol):
    """Somewhere else for scalars to go: TensorBoard, Weights & Biases."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a step."""

    def close(self) -> None:
        """Finish."""


class Reporter:
    """Counts steps and time, and tells the console, `timing.jsonl` and the writers.

    Args:
        run: Whose `timing.jsonl` is written.
        steps: Length of the whole run, in steps.
        log_every: Steps between two lines.
        unit: What a batch is counted in: "tokens", "images".
        units_per_step: How many of them a global batch holds.
        flops_per_step: Model FLOPs of a step, counted analytically, without recomputation.
        peak: Peak FLOP/s of one device; None looks it up by the device's name.
        writers: Where else the scalars go.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        steps: int,
        log_every: int,
        unit: str,
        units_per_step: float,
        flops_per_step: float | None = None,
        peak: float | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        """Print nothing yet."""
        if log_every < 1:
            raise ValueError(f"`log_every` must be at least 1; got {log_every}. Choose 10.")
        self.steps = steps
        self.log_every = log_every
        self._timing = run.timing
        self._unit, self._units_per_step = unit, units_per_step
        self._flops_per_step = flops_per_step
        device_peak = peak or peak_flops(jax.devices()[0].device_kind)
        self._peak = device_peak * jax.device_count() if device_peak else None
        self._is_writer = jax.process_index() == 0
        self._writers = writers if self._is_writer else ()
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: Any = None
        self._origin = time.perf_counter()
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_start = time.perf_counter()
        self._waited = 0.0
        self._paused = 0.0
        self._losses: list[float] = []

    def __enter__(self) -> "Reporter":
        """Show the progress bar, on a terminal."""
        if self._is_writer and self._console.is_terminal:
            self._progress = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=30),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("compiling ...", total=self.steps)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Remove the progress bar and finish the writers."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for writer in self._writers:
            writer.close()

    def say(self, message: str, *, error: bool = False) -> None:
        """Print a line (above the progress bar, if there is one); errors go to stderr."""
        if not self._is_writer:
            return
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr if error else sys.stdout, flush=True)

    @contextlib.contextmanager
    def dispatching(self, step: int, *, first: bool) -> Iterator[None]:
        """Time the first call of the step, nearly all of which is compilation."""
        before = time.perf_counter()
        yield
        if first:
            self._compiled(step, time.perf_counter() - before)

    def _compiled(self, step: int, seconds: float) -> None:
        self.say(f"step {step} compiled in {seconds:.1f} s")
        if self._flops_per_step and self._peak:
            self.say(
                f"MFU = model FLOPs / (time x peak): {with_prefix(self._flops_per_step, 'FLOP')} a "
                f"step, without recomputation; peak {with_prefix(self._peak, 'FLOP/s')} "
                f"({jax.device_count()} x {jax.devices()[0].device_kind})"
            )
        self._record(step, event="compile", seconds=seconds)
        self._begin_window()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextlib.contextmanager
    def pause(self, event: str, step: int) -> Iterator[None]:
        """Keep the time inside (evaluation, saving) out of the rates, and note it by name."""
        before = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - before
            self._paused += seconds
            self._record(step, event=event, seconds=seconds)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Count a finished step; every `log_every` steps, and after the last, print a line."""
        self._losses.append(values.get("loss", float("nan")))
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
        if step % self.log_every and step != self.steps:
            return
        elapsed = max(time.perf_counter() - self._window_start - self._paused, 1e-9)
        per_second = len(self._losses) / elapsed
        loss = sum(self._losses) / len(self._losses)
        remaining = (self.steps - step) / per_second
        timing: dict[str, float] = {
            "steps_per_second": per_second,
            f"{self._unit}_per_second": per_second * self._units_per_step,
            "data_wait_share": self._waited / elapsed,
        }
        parts = [f"step {step:>{len(str(self.steps))}}/{self.steps}", f"loss {loss:.4f}"]
        if "grad_norm" in values:
            parts.append(f"grad norm {values['grad_norm']:.3g}")
        parts.append(with_prefix(per_second * self._units_per_step, f"{self._unit}/s"))
        if self._flops_per_step:
            timing["flops_per_second"] = per_second * self._flops_per_step
            parts.append(with_prefix(timing["flops_per_second"], "FLOP/s"))
            if self._peak:
                timing["mfu"] = timing["flops_per_second"] / self._peak
                parts.append(f"MFU {timing['mfu']:.1%}")
        parts += [f"data wait {timing['data_wait_share']:.0%}", f"ETA {as_duration(remaining)}"]
        self.say("  ".join(parts))
        if self._progress is not None:
            self._progress.update(self._task, description=f"{parts[1]}  {parts[-1]}")
        self._record(step, **timing)
        means = {f"train/{name}": value for name, value in values.items()} | {"train/loss": loss}
        self._write(step, means | {f"time/{name}": value for name, value in timing.items()})
        self._begin_window()

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Print and forward the values of an evaluation, whose names are complete ("val/loss")."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"step {step:>{len(str(self.steps))}}/{self.steps}  {shown}")
        self._write(step, values)

    def finish(self, step: int) -> None:
        """Say how long this process took since it was made to report, and its peak memory."""
        text = f"{as_duration(time.perf_counter() - self._origin)} since the start"
        values = {}
        if (memory := peak_memory()) is not None:
            values["peak_memory_bytes"] = memory
            text += f", peak memory {memory / 2**20:,.0f} MiB"
        self.say(text)
        self._record(step, event="finish", **values)

    def _record(self, step: int, **values: Any) -> None:
        since_start = time.perf_counter() - self._origin
        self._timing.append({"step": step, "since_start": since_start, **values})

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, values)


class _FunctionWriter:
    """A writer made of two functions."""

    def __init__(self, write: Callable[..., Any], close: Callable[[], Any]) -> None:
        self.write = write
        self.close = close


def _import_extra(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the {extra} writer needs the extra [{extra}]; `{module}` cannot be imported. "
            f"Install it: pip install 'genai_jax[{extra}]'"
        ) from error


def make_writers(run: RunDirectory, *, tensorboard: bool, wandb: str | None) -> list[Writer]:
    """Open TensorBoard, and the given project of Weights & Biases, where they are asked for.

    Raises:
        ImportError: If an extra is not installed, naming it.
    """
    writers = []
    if tensorboard:
        writers.append(tensorboard_writer(run.folder("tensorboard")))
    if wandb:
        name = run.path.resolve().name
        writers.append(
            wandb_writer(run.folder("wandb"), project=wandb, name=name, config=run.config)
        )
    return writers


def tensorboard_writer(folder: Path) -> Writer:
    """Make a writer of TensorBoard event files.

    Raises:
        ImportError: If the extra is not installed, naming it.
    """
    events = _import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")
    messages = _import_extra("tensorboard.compat.proto.event_pb2", "tensorboard")
    summaries = _import_extra("tensorboard.compat.proto.summary_pb2", "tensorboard")
    file = events.EventFileWriter(str(folder))

    def write(step: int, values: Mapping[str, float]) -> None:
        scalars = [
            summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        summary = summaries.Summary(value=scalars)
        file.add_event(messages.Event(wall_time=time.time(), step=step, summary=summary))

    return _FunctionWriter(write, file.close)


def wandb_writer(folder: Path, *, project: str, name: str, config: Any) -> Writer:
    """Make a writer to Weights & Biases; a resumed run goes on as the same one.

    Raises:
        ImportError: If the extra is not installed, naming it.
    """
    wandb = _import_extra("wandb", "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "id"
    if not id_file.exists():
        id_file.write_text(wandb.util.generate_id(), encoding="utf-8")
    run_id = id_file.read_text(encoding="utf-8")
    session = wandb.init(
        project=project, name=name, id=run_id, resume="allow", config=config, dir=str(folder)
    )
    return _FunctionWriter(
        lambda step, values: session.log(dict(values), step=step), session.finish
    )
