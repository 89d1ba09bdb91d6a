"""What a run says of itself, with a clock that the test holds."""

import json
import sys
from types import SimpleNamespace

import jax
import pytest

from genai_jax.training import reporting
from genai_jax.training.json_lines import read_json_lines
from genai_jax.training.reporting import (
    Reporter,
    as_duration,
    make_writers,
    peak_flops,
    peak_memory,
    with_prefix,
)
from genai_jax.training.run_directory import open_run


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def time(self):
        return self.now


class Recorder:
    def __init__(self):
        self.written, self.closed = [], False

    def write(self, step, values):
        self.written.append((step, dict(values)))

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run", {}) as run:
        yield run


def test_rates_are_those_of_the_steps_alone(run, clock, capsys):
    """10 steps a second of 100 tokens; evaluation does not count, waiting for data does."""
    recorder = Recorder()
    with Reporter(
        run,
        steps=20,
        log_every=10,
        unit="tokens",
        units_per_step=100,
        flops_per_step=5e9,
        peak=1e11 / jax.device_count(),
        writers=[recorder],
    ) as reporter:
        with reporter.dispatching(1, first=True):
            clock.now += 7
        for step in range(1, 11):
            with reporter.waiting():
                clock.now += 0.02
            clock.now += 0.08
            if step == 5:
                with reporter.pause("evaluate", step):
                    clock.now += 50
            reporter.step(step, {"loss": float(step), "grad_norm": 0.5})
        reporter.evaluation(10, {"val/loss": 2.5})
        clock.now += 3
        reporter.finish(10)
    out = capsys.readouterr().out
    assert "step 1 compiled in 7.0 s" in out
    assert "MFU = model FLOPs / (time x peak): 5 GFLOP a step" in out
    assert (
        "step 10/20  loss 5.5000  grad norm 0.5  1 ktokens/s  50 GFLOP/s  MFU 50.0%  "
        "data wait 20%  ETA 0:00:01" in out
    )
    assert "step 10/20  val/loss 2.5000" in out
    assert "0:01:01 since the start, peak memory " in out
    timing = {r.get("event", "rates"): r for r in read_json_lines(run.timing.path)}
    assert timing["compile"]["seconds"] == pytest.approx(7)
    assert timing["evaluate"] == {
        "step": 5,
        "since_start": pytest.approx(57.5),
        "event": "evaluate",
        "seconds": pytest.approx(50),
    }
    assert timing["rates"]["tokens_per_second"] == pytest.approx(1000)
    assert timing["rates"]["mfu"] == pytest.approx(0.5)
    assert timing["finish"]["peak_memory_bytes"] > 2**20
    assert recorder.closed
    assert [step for step, _ in recorder.written] == [10, 10]
    assert recorder.written[0][1]["train/loss"] == 5.5
    assert recorder.written[1][1] == {"val/loss": 2.5}


def test_every_line_stands_for_the_steps_since_the_one_before(run, clock, capsys):
    with Reporter(run, steps=5, log_every=2, unit="images", units_per_step=1) as reporter:
        for step in range(1, 6):
            clock.now += step
            reporter.step(step, {"loss": float(step)})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 2/5", "loss 1.5000"],
        ["step 4/5", "loss 3.5000"],
        ["step 5/5", "loss 5.0000"],
    ]
    assert "0.2 images/s" in lines[-1]


def test_errors_go_to_stderr(run, capsys):
    reporter = Reporter(run, steps=1, log_every=1, unit="tokens", units_per_step=1)
    reporter.say("trouble", error=True)
    assert capsys.readouterr() == ("", "trouble\n")


def test_a_line_every_nought_steps_is_refused(run):
    with pytest.raises(ValueError, match="`log_every` must be at least 1; got 0"):
        Reporter(run, steps=1, log_every=0, unit="tokens", units_per_step=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 "), (52_123.0, "52.1 k"), (999.4, "999 "), (999.6, "1 k"), (1.2e15, "1.2 P")],
)
def test_prefixes(value, text):
    assert with_prefix(value) == text


def test_durations():
    assert [as_duration(s) for s in (0.0, 59.6, 3723.0)] == ["0:00:00", "0:01:00", "1:02:03"]


def test_peaks_are_those_of_the_data_sheets():
    assert peak_flops("TPU v4") == 275e12
    assert peak_flops("TPU v4 lite") == 138e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("cpu") is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory()
    block = bytearray(before + 2**26)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    assert peak_memory() >= before + 2**25


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"tensorboard": True, "wandb": None}, "tensorboard"),
        ({"tensorboard": False, "wandb": "p"}, "wandb"),
    ],
)
def test_a_missing_extra_is_named(run, monkeypatch, options, extra):
    for module in ("tensorboard.summary.writer.event_file_writer", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'genai_jax\[{extra}\]'"):
        make_writers(run, **options)


def test_wandb_is_told_what_it_needs_and_resumes_as_the_same_run(run, monkeypatch):
    calls = []

    class Session:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options["id"])
        return Session()

    ids = iter("ab")
    util = SimpleNamespace(generate_id=lambda: next(ids))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, util=util))
    for _ in range(2):
        (writer,) = make_writers(run, tensorboard=False, wandb="project")
        writer.write(3, {"train/loss": 1.0})
        writer.close()
    assert calls == ["a", (3, {"train/loss": 1.0}), "finished"] * 2
    assert json.dumps(calls)
