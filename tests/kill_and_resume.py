"""Kills a training run at random moments, and checks that nothing of it shows in the end.

    python tests/kill_and_resume.py --kills 20

Trains once undisturbed. Trains again, killed by SIGKILL again and again (while it starts, compiles,
trains, evaluates, saves, makes snapshots, and after its last step) and started anew each time. Then
metrics.jsonl must have the same bytes, and every array of the last checkpoint and of all snapshots
the same bits.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
FLAGS = (
    *("--steps", str(STEPS), "--batch-size", "16", "--length", "32", "--microbatches", "2"),
    *("--model.num-layers", "2", "--model.embed-dim", "32", "--model.num-heads", "2"),
    *("--model.mlp-dim", "64", "--model.max-length", "32"),
    *("--model.dropout", "0.1", "--model.attention-dropout", "0.1", "--ema-decay", "0.9"),
    *("--data.tokenizer", "bytes", "--evaluate-every", "6", "--evaluation-rows", "16"),
    *("--sample-tokens", "8", "--save-every", "4", "--log-every", "4", "--no-compare-xz"),
    *("--ema-traces", "0.05", "0.1", "--snapshot-every", "3"),
)


def write_text(folder: Path) -> Path:
    """Write a few documents to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, words = random.Random(0), ["alpha", "beta", "gamma", "delta", "epsilon"]
    for number in range(12):
        text = " ".join(chance.choices(words, k=300))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def command(text: Path, workdir: Path) -> list[str]:
    """Return the command line of the run."""
    script = ROOT / "experiments" / "lm_pretrain.py"
    return [
        *(sys.executable, str(script), *FLAGS),
        *("--data.path", f"{text}/*.txt", "--workdir", str(workdir)),
    ]


def moments(workdir: Path, log: Path, chance: random.Random) -> dict[str, Callable[[], bool]]:
    """Name the moments to kill at: each a question to ask again and again until it says yes."""
    started = time.monotonic()
    delay = chance.uniform(0.0, 3.0)
    middle = chance.randrange(2, STEPS)

    def said(words: str) -> bool:
        return log.exists() and words in log.read_text(encoding="utf-8", errors="replace")

    def lines() -> int:
        metrics = workdir / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def saving(name: str) -> bool:
        folder = workdir / name
        return folder.is_dir() and any(".orbax-checkpoint-tmp" in p.name for p in folder.iterdir())

    def last_step() -> bool:
        metrics = workdir / "metrics.jsonl"
        return metrics.exists() and f'"step": {STEPS},'.encode() in metrics.read_bytes()

    return {
        "starting": lambda: time.monotonic() - started > delay,
        "compiling": lambda: said("parameters on"),
        "training": lambda: said("compiled in") and lines() >= middle,
        "evaluating": lambda: (workdir / "samples").is_dir() and lines() >= middle,
        "saving": lambda: saving("checkpoints"),
        "making a snapshot": lambda: saving("ema"),
        "after the last step": last_step,
    }


def start_and_kill(text: Path, workdir: Path, moment: str, chance: random.Random) -> bool:
    """Start the run and kill it at a moment; returns whether it was killed before its end.

    Raises:
        AssertionError: If it fails on its own.
    """
    log = workdir.with_suffix(".log")
    log.unlink(missing_ok=True)
    is_now = moments(workdir, log, chance)[moment]
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command(text, workdir), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None and not is_now():
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.1))
        killed = process.poll() is None
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    assert code in (0, -signal.SIGKILL), log.read_text(encoding="utf-8")
    return killed


def finish(text: Path, workdir: Path) -> None:
    """Run to the end, undisturbed."""
    subprocess.run(command(text, workdir), check=True, capture_output=True, text=True)


def assert_equal(one: Path, other: Path) -> None:
    """Compare metrics.jsonl byte by byte, the last checkpoints and all snapshots bit by bit."""
    from genai_jax.training.checkpoints import finished_steps, read_manifest

    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    arrays = [read_manifest(run / "checkpoints" / str(STEPS))["arrays"] for run in (one, other)]
    assert arrays[0] == arrays[1]  # shapes, dtypes and CRC-32 of all of the state
    assert any(name.startswith("ema/") for name in arrays[0])
    due = [*range(3, STEPS + 1, 3)]
    assert finished_steps(one / "ema") == finished_steps(other / "ema") == due
    for step in due:
        snapshots = [read_manifest(run / "ema" / str(step))["arrays"] for run in (one, other)]
        assert snapshots[0] == snapshots[1]


def main() -> int:
    """Kill as often as asked, compare, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for the runs")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    chance = random.Random(options.seed)
    text = write_text(options.folder / "text")
    undisturbed = options.folder / "undisturbed"
    finish(text, undisturbed)
    print(f"undisturbed run: {STEPS} steps", flush=True)

    kills, rounds = 0, 0
    while kills < options.kills:
        rounds += 1
        workdir = options.folder / f"killed-{rounds}"
        names = list(moments(workdir, workdir, chance))
        chance.shuffle(names)
        for moment in names[: options.kills - kills]:
            killed = start_and_kill(text, workdir, moment, chance)
            kills += killed
            print(f"{workdir.name}: {'killed' if killed else 'ended before'} {moment}", flush=True)
        finish(text, workdir)
        assert_equal(undisturbed, workdir)
        print(f"{workdir.name}: the same bytes as the undisturbed run", flush=True)
    print(f"{kills} kills in {rounds} runs: nothing shows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
