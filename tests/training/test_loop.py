"""The loop, with a model of one number whose every value is known."""

import errno
import shutil

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from genai_jax.training.checkpoints import Checkpoints, finished_steps, load_step
from genai_jax.training.json_lines import read_json_lines
from genai_jax.training.loop import (
    BatchError,
    Interludes,
    StepError,
    host_means,
    parse_profile_steps,
    train,
)
from genai_jax.training.reporting import Reporter
from genai_jax.training.run_directory import open_run
from genai_jax.training.signals import Stopped, StopRequest
from genai_jax.training.state import TrainState

STEPS = 7


@jax.jit
def train_step(state, batch):
    """Add the batch to the state; the loss is the sum."""
    state = state + batch
    return state, {"loss": (state * 2.0, jnp.float32(2)), "grad_norm": (batch, jnp.float32(1))}


class World:
    """A run in a folder, with everything that the loop is handed."""

    def __init__(self, folder):
        self.folder = folder
        self.stop = StopRequest()
        self.batches = []
        self.evaluations = []

    def next_batch(self, state, step):
        self.batches.append(step)
        return jnp.float32(step + 1)

    def evaluate(self, state):
        self.evaluations.append(float(state))
        return {"loss": float(state) / 10}

    def run(self, *, steps=STEPS, next_batch=None, train_step=train_step, **interludes):
        settings = {
            "save_every": 2,
            "evaluate_every": 3,
            "evaluate": self.evaluate,
            "sample": lambda state: {".txt": f"state {float(state)}"},
        }
        with (
            open_run(self.folder, {"steps": steps}) as run,
            Checkpoints(run.folder("checkpoints")) as checkpoints,
        ):
            found = checkpoints.restore(jnp.float32(0))
            start, state = found or (0, jnp.float32(0))
            reporter = Reporter(run, steps=steps, log_every=1, unit="rows", units_per_step=1)
            state, code = train(
                state,
                start,
                train_step=train_step,
                next_batch=next_batch or self.next_batch,
                run=run,
                checkpoints=checkpoints,
                reporter=reporter,
                stop=self.stop,
                interludes=Interludes(**settings | interludes),
            )
        return float(state), code

    @property
    def metrics(self):
        return read_json_lines(self.folder / "metrics.jsonl")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "run")


def test_everything_in_its_order(world):
    assert world.run() == (28.0, 0)
    assert world.batches == list(range(STEPS))
    assert world.evaluations == [6.0, 21.0, 28.0]  # steps 3, 6 and the last
    expected = []
    for step in range(1, STEPS + 1):
        total = step * (step + 1) / 2
        expected.append({"step": step, "train/loss": total, "train/grad_norm": float(step)})
        if step in (3, 6, 7):
            expected.append({"step": step, "val/loss": total / 10})
    assert world.metrics == expected
    samples = {p.name: p.read_text() for p in (world.folder / "samples").iterdir()}
    assert samples == {
        "00000003.txt": "state 6.0",
        "00000006.txt": "state 21.0",
        "00000007.txt": "state 28.0",
    }
    assert {p.name for p in (world.folder / "checkpoints").iterdir()} == {"6", "7"}
    assert (world.folder / "plots" / "loss.png").exists()


def test_a_finished_run_does_nothing_again(world, capsys):
    world.run()
    before = (world.folder / "metrics.jsonl").read_bytes()
    assert world.run() == (28.0, 0)
    assert "Nothing to do" in capsys.readouterr().out
    assert len(world.batches) == STEPS
    assert (world.folder / "metrics.jsonl").read_bytes() == before


def test_a_stop_saves_at_the_next_step_and_the_rest_follows(world, tmp_path, capsys):
    def stopping(state, step):
        if step == 4:
            world.stop.signal_number = 15
        return world.next_batch(state, step)

    assert world.run(next_batch=stopping) == (15.0, 143)
    assert "stopped; saved at step 5" in capsys.readouterr().out
    world.stop = StopRequest()
    assert world.run() == (28.0, 0)
    assert world.batches == list(range(STEPS))
    undisturbed = World(tmp_path / "other")
    undisturbed.run()
    assert world.metrics == undisturbed.metrics


def test_a_stop_inside_an_evaluation_evaluates_again_on_resume(world, tmp_path):
    def stopped(state):
        world.stop.signal_number = 2
        raise Stopped

    assert world.run(evaluate=stopped) == (6.0, 130)
    assert not any("val/loss" in record for record in world.metrics)
    world.stop = StopRequest()
    assert world.run() == (28.0, 0)
    undisturbed = World(tmp_path / "other")
    undisturbed.run()
    assert world.metrics == undisturbed.metrics


def test_what_a_run_begins_with_is_evaluated_once_where_asked_for(world):
    def stopped(state):
        world.stop.signal_number = 2
        raise Stopped

    assert world.run(evaluate_first=True, evaluate=stopped) == (0.0, 130)
    assert world.batches == world.metrics == []
    world.stop = StopRequest()

    def killed(state, step):  # between this evaluation and the first checkpoint
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(evaluate_first=True, next_batch=killed)
    assert world.run(evaluate_first=True) == (28.0, 0)
    assert world.evaluations == [0.0, 6.0, 21.0, 28.0]
    assert world.metrics[0] == {"step": 0, "val/loss": 0.0}
    assert (world.folder / "samples" / "00000000.txt").read_text() == "state 0.0"


def test_lines_beyond_the_checkpoint_are_written_again(world, tmp_path):
    """As after a kill between a checkpoint and the next."""
    world.run()
    before = world.metrics
    shutil.rmtree(world.folder / "checkpoints" / "7")
    assert world.run() == (28.0, 0)
    assert world.metrics == before
    assert world.batches == [*range(STEPS), 6]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(world, bad, capsys):
    def spoilt(state, step):
        return jnp.float32(bad if step == 4 else step + 1)

    assert world.run(next_batch=spoilt)[1] == 1
    err = capsys.readouterr().err
    assert f"STOPPED: step 5: loss is {bad}" in err
    assert "the last good checkpoint is step 4" in err
    assert [r["step"] for r in world.metrics if "train/loss" in r] == [1, 2, 3, 4]
    assert {p.name for p in (world.folder / "checkpoints").iterdir()} == {"2", "4"}


@jax.jit
def step_that_counts(state, batch):
    """As `train_step`; a batch of 0 counts nothing."""
    state = state + batch
    weight = jnp.where(batch == 0, 0.0, 1.0)
    return state, {"loss": (weight * state, weight), "grad_norm": (batch, jnp.float32(1))}


def test_a_step_of_which_nothing_counts_is_no_fault(world):
    def left_out(state, step):
        return jnp.float32(0 if step == 2 else step + 1)

    assert world.run(next_batch=left_out, train_step=step_that_counts) == (25.0, 0)
    losses = [r["train/loss"] for r in world.metrics if "train/loss" in r]
    assert losses == [1.0, 3.0, None, 7.0, 12.0, 18.0, 25.0]


@pytest.mark.parametrize("at", [1, 4, 5])
def test_a_batch_that_cannot_be_made_ends_a_saved_run(world, tmp_path, capsys, at):
    def broken(state, step):
        if step == at - 1:
            raise BatchError("the grader is away.")
        return world.next_batch(state, step)

    total = (at - 1) * at / 2
    assert world.run(next_batch=broken) == (total, 1)
    words = f"STOPPED: the grader is away. All steps up to {at - 1} are saved."
    assert words in capsys.readouterr().err
    assert finished_steps(world.folder / "checkpoints")[-1:] == ([at - 1] if at > 1 else [])
    assert world.run() == (28.0, 0)
    undisturbed = World(tmp_path / "other")
    undisturbed.run()
    assert world.metrics == undisturbed.metrics


def test_a_batch_that_fails_inside_an_evaluation_is_evaluated_again(world, tmp_path):
    def broken(state):
        raise BatchError("the grader is away.")

    assert world.run(evaluate=broken) == (6.0, 1)
    assert world.run() == (28.0, 0)
    undisturbed = World(tmp_path / "other")
    undisturbed.run()
    assert world.metrics == undisturbed.metrics


def test_a_loss_that_is_not_finite_is_told_before_the_batch_that_fails_after_it(world, capsys):
    """What wrote the batch had no numbers left: the loss of the step before says why."""

    def broken(state, step):
        if step == 5:
            raise BatchError("probabilities differ by nan.")
        return jnp.float32(float("nan") if step == 4 else step + 1)

    assert world.run(next_batch=broken)[1] == 1
    err = capsys.readouterr().err
    assert "STOPPED: step 5: loss is nan" in err and "probabilities" not in err
    assert finished_steps(world.folder / "checkpoints") == [2, 4]


def test_a_stop_inside_a_batch_saves_what_was_before_it(world, tmp_path, capsys):
    def stopped(state, step):
        if step == 4:
            world.stop.signal_number = 2
            raise Stopped
        return world.next_batch(state, step)

    assert world.run(next_batch=stopped, save_every=0) == (10.0, 130)
    assert "stopped; saved at step 4" in capsys.readouterr().out
    world.stop = StopRequest()
    assert world.run() == (28.0, 0)
    assert world.batches == list(range(STEPS))
    undisturbed = World(tmp_path / "other")
    undisturbed.run()
    assert world.metrics == undisturbed.metrics


def test_a_step_that_was_not_what_it_should_be_is_not_saved(world, capsys):
    def check(values):
        if values["grad_norm"] == 4:
            raise StepError("rows were written by others")

    assert world.run(check=check)[1] == 1
    err = capsys.readouterr().err
    assert "STOPPED: rows were written by others. Nothing was saved after it" in err
    assert "the last good checkpoint is step 2" in err and "learning rate" not in err
    assert [r["step"] for r in world.metrics if "train/loss" in r] == [1, 2, 3]
    assert finished_steps(world.folder / "checkpoints") == [2]
    assert world.run() == (28.0, 0)


def test_without_interludes_it_saves_and_evaluates_at_the_end(world):
    world.run(save_every=0, evaluate_every=0)
    assert world.evaluations == [28.0]
    assert {p.name for p in (world.folder / "checkpoints").iterdir()} == {"7"}


@jax.jit
def step_of_traces(state, batch):
    """As `train_step`, in a state that keeps its sum as a trace too."""
    total = state.model + batch
    metrics = {"loss": (total, jnp.float32(1))}
    return TrainState(state.step + 1, total, None, traces={"0.1": total}), metrics


class WorldOfTraces(World):
    """A run that makes snapshots at the steps 3, 6 and 7."""

    def run(self, *, next_batch=None, **interludes):
        zero = jnp.float32(0)
        first = TrainState(jnp.int32(0), zero, None, traces={"0.1": zero})
        with (
            open_run(self.folder, {"steps": STEPS}) as run,
            Checkpoints(run.folder("checkpoints")) as checkpoints,
            Checkpoints(run.folder("ema"), keep=None) as snapshots,
        ):
            start, state = checkpoints.restore(first) or (0, first)
            return train(
                *(state, start),
                train_step=step_of_traces,
                next_batch=next_batch or self.next_batch,
                run=run,
                checkpoints=checkpoints,
                reporter=Reporter(run, steps=STEPS, log_every=1, unit="rows", units_per_step=1),
                stop=self.stop,
                interludes=Interludes(
                    **{"save_every": 2} | interludes, snapshot_every=3, snapshots=snapshots
                ),
            )[1]

    @property
    def snapshots(self):
        """Their contents and when they were written, by step."""
        found = {}
        for step in finished_steps(folder := self.folder / "ema"):
            value = float(load_step(folder, step, {"0.1": jnp.float32(0)})["0.1"])
            written = folder / str(step) / "manifest" / "manifest.json"
            found[step] = (value, written.stat().st_mtime_ns)
        return found


SNAPSHOTS = {3: 6.0, 6: 21.0, 7: 28.0}


def contents(world):
    return {step: value for step, (value, _) in world.snapshots.items()}


def test_snapshots_are_made_on_their_cadence_and_all_kept(tmp_path):
    world = WorldOfTraces(tmp_path / "run")
    assert world.run() == 0
    assert contents(world) == SNAPSHOTS
    assert {p.name for p in (world.folder / "checkpoints").iterdir()} == {"6", "7"}
    before = world.snapshots
    assert world.run() == 0  # finished
    assert world.snapshots == before


@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_a_resumed_run_makes_the_snapshots_that_are_missing_and_no_other(tmp_path, stopped_at):
    world = WorldOfTraces(tmp_path / "run")

    def stopping(state, step):
        if step == stopped_at - 1:
            world.stop.signal_number = 15
        return world.next_batch(state, step)

    assert world.run(next_batch=stopping) == 143
    before = world.snapshots
    assert contents(world) == {s: x for s, x in SNAPSHOTS.items() if s <= stopped_at}
    world.stop = StopRequest()
    assert world.run() == 0
    assert contents(world) == SNAPSHOTS
    assert before.items() <= world.snapshots.items()


def test_a_kill_between_a_checkpoint_and_its_snapshot_loses_none(tmp_path):
    """What is resumed is step 6 or 7, saved before the snapshot of the same step."""
    world = WorldOfTraces(tmp_path / "run")
    world.run()
    for lost, resumed in (("7", "7"), ("6", "6")):
        for later in ("6", "7"):
            if later > resumed:
                shutil.rmtree(world.folder / "checkpoints" / later)
        shutil.rmtree(world.folder / "ema" / lost)
        assert world.run() == 0
        assert contents(world) == SNAPSHOTS


def test_no_checkpoint_begins_before_the_snapshots_of_earlier_steps_stand(tmp_path, monkeypatch):
    world, save, seen = WorldOfTraces(tmp_path / "run"), Checkpoints.save, {}

    def noting(self, step, state):
        if self.directory.name == "checkpoints":
            seen[step] = set(finished_steps(self.directory.parent / "ema"))
        return save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", noting)
    world.run(save_every=1)
    for step, standing in seen.items():
        assert standing >= {s for s in SNAPSHOTS if s < step}


def test_a_snapshot_that_fails_is_told_and_made_by_whoever_still_can(tmp_path, monkeypatch, capsys):
    world, save = WorldOfTraces(tmp_path / "run"), ocp.AsyncCheckpointer.save

    def full(self, directory, **options):
        if directory.parent.name == "ema":
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, directory, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, "save", full)
        assert world.run() == 1
    assert "step 3: OSError: [Errno 28] No space left" in capsys.readouterr().err
    assert contents(world) == {}
    assert world.run() == 0
    assert contents(world) == {7: 28.0}  # of the others the states are gone


def test_samples_may_be_pictures(world):
    picture = bytes(range(256))
    world.run(sample=lambda state: {"-grid.png": picture, ".txt": "é"}, evaluate_every=0)
    samples = {p.name: p.read_bytes() for p in (world.folder / "samples").iterdir()}
    assert samples == {"00000007-grid.png": picture, "00000007.txt": "é".encode()}


def test_profile_is_written(world):
    world.run(profile_steps=parse_profile_steps("2:4"))
    assert any(p.is_file() for p in (world.folder / "profile").rglob("*"))


def test_means_are_divided_in_double_precision():
    thirds = host_means({"a": (jnp.float32(1), jnp.float32(3)), "none": (jnp.float32(0),) * 2})
    assert thirds["a"] == 1 / 3
    assert thirds["none"] != thirds["none"]


def test_profile_steps():
    assert parse_profile_steps(None) == range(0)
    assert parse_profile_steps("10:13") == range(10, 13)
    for wrong in ("5", "0:3", "4:4", "a:b", "1:-1"):
        with pytest.raises(ValueError, match="must be A:B with 1 <= A < B"):
            parse_profile_steps(wrong)
