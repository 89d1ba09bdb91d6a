"""A run that begins with parameters of another instead of random ones."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import jax

from genai_jax.training.checkpoints import (
    DamagedCheckpoint,
    finished_steps,
    load_part,
    read_manifest,
)
from genai_jax.training.run_directory import RunError, read_run
from genai_jax.training.state import TrainState, abstract_like, first_average
from genai_jax.training.storage import StorageError
from genai_jax.types import PyTree

Part = Literal["ema", "model"]


class Initial(NamedTuple):
    """Parameters that a run begins with.

    Attributes:
        model: The parameters, in the dtypes and shardings that were asked for.
        about: Where they are from, in words.
        digest: Which ones they are, with a checksum, for the new run's identity.
    """

    model: PyTree
    about: str
    digest: str


Source = Callable[[PyTree], Initial]
"""Reads parameters, given the model (or its `jax.ShapeDtypeStruct`s) whose place they take."""


def load_initial(run_folder: str | Path, like: PyTree, *, prefer: Part = "ema") -> Initial:
    """Load the newest parameters of a run, for another one to begin with.

    Args:
        run_folder: Its `--workdir`.
        like: The model of the new run, or its `jax.ShapeDtypeStruct`s with shardings.
        prefer: ema takes the moving average, if it kept one; model the parameters as they were.

    Raises:
        RunError: If there is no run, or none with a checkpoint.
        StorageError: If its model is another one, naming the arrays that do not fit.
    """
    read_run(run_folder)
    folder = Path(run_folder) / "checkpoints"
    part = prefer if prefer in {name.split("/")[0] for name in newest_arrays(folder)} else "model"
    try:
        found = load_part(folder, {part: like})
    except StorageError as error:
        raise StorageError(
            f"a run can begin with the parameters of a run of the same model only; that of "
            f"{run_folder} is another: {error}"
        ) from error
    if found is None:
        raise RunError(
            f"a run must have a checkpoint for another one to begin with; {run_folder} has none "
            "yet. Wait for the first one (--save-every)."
        )
    step, parts = found
    about = f"{run_folder} after its step {step}"
    return Initial(parts[part], about, digest_of_part(folder, step, part))


def digest_of_part(folder: Path, step: int, part: str) -> str:
    """Say which arrays these are: part, step, and a checksum of what the checkpoint says of them.

    Args:
        folder: Of checkpoints.
        step: Of the checkpoint.
        part: What their names begin with.
    """
    arrays = read_manifest(folder / str(step))["arrays"]
    chosen = {name: arrays[name] for name in sorted(arrays) if name.startswith(f"{part}/")}
    return f"{part} {step} {crc32(json.dumps(chosen, sort_keys=True).encode()):08x}"


def newest_arrays(folder: Path) -> dict[str, Any]:
    """Say what the newest checkpoint consists of: shape and dtype by name, `model/embedding/table`.

    Args:
        folder: Of checkpoints.
    """
    for step in reversed(finished_steps(folder)):
        try:
            arrays: dict[str, Any] = read_manifest(folder / str(step))["arrays"]
        except DamagedCheckpoint:
            continue
        return arrays
    return {}


def begin_with(state: TrainState, model: PyTree) -> TrainState:
    """Put parameters into a state that has made no step; its averages begin with them too."""

    def like(average: PyTree) -> PyTree:
        fresh = first_average(model)
        return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), fresh, average)

    return dataclasses.replace(
        state,
        model=model,
        ema=None if state.ema is None else like(state.ema),
        traces=None if state.traces is None else {n: like(x) for n, x in state.traces.items()},
    )


Begin = Callable[[TrainState], tuple[TrainState, Initial]]
"""Puts into a state that has made no step what its run begins with."""


def begin_from(source: Source | None) -> Begin | None:
    """Make what begins with parameters from elsewhere; of no source, none."""
    if source is None:
        return None

    def begin(state: TrainState) -> tuple[TrainState, Initial]:
        initial = source(abstract_like(state.model))
        return begin_with(state, initial.model), initial

    return begin


def from_run(run_folder: str) -> Source | None:
    """Make what reads the newest parameters of a run; of no folder, none."""
    return functools.partial(load_initial, run_folder) if run_folder else None
