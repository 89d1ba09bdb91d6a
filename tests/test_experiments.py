"""The experiments as their users run them: through `main`, on tiny sizes, on eight devices."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import sys

import jax
import orbax.checkpoint as ocp
import pytest

from experiments import lm_pretrain, lm_sample
from genai_jax.models.lm import count_parameters
from genai_jax.training.checkpoints import read_manifest
from genai_jax.training.reporting import Reporter
from tests import kill_and_resume

STEPS = 6
TINY = (
    *("--steps", str(STEPS), "--batch-size", "16", "--length", "16", "--microbatches", "2"),
    *("--model.num-layers", "2", "--model.embed-dim", "16", "--model.num-heads", "2"),
    *("--model.mlp-dim", "32", "--model.max-length", "16", "--model.dropout", "0.1"),
    *("--data.tokenizer", "bytes", "--evaluate-every", "3", "--evaluation-rows", "16"),
    *("--sample-tokens", "4", "--save-every", "2", "--log-every", "2", "--no-compare-xz"),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return kill_and_resume.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def pretrain(monkeypatch, corpus, capsys):
    """Run the script; returns the exit code and what it printed to stdout and stderr."""

    def call(workdir, *flags, data=None):
        where = ["--workdir", str(workdir)]
        if "--data.sources" not in flags:
            where += ["--data.path", str(data or f"{corpus}/*.txt")]
        monkeypatch.setattr(sys, "argv", ["lm_pretrain.py", *TINY, *where, *flags])
        capsys.readouterr()
        code = lm_pretrain.main()
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    flags = ["--data.path", f"{corpus}/*.txt", "--workdir", str(workdir)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lm_pretrain.py", *TINY, *flags])
        assert lm_pretrain.main() == 0
    return workdir


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    arrays = [read_manifest(run / "checkpoints" / str(STEPS))["arrays"] for run in (one, other)]
    assert arrays[0] == arrays[1]


@pytest.mark.parametrize("name", lm_pretrain.PRESETS)
def test_presets_fit_together(name):
    """Whatever the tokenizer gives, the model can be built and its batch cut over two devices."""
    config = lm_pretrain.PRESETS[name][1]
    assert config.workdir == f"runs/{name}"
    assert config.batch_size % 2 == config.evaluation_rows % 2 == 0
    shape = lm_pretrain.lm.fit_vocabulary(config.model, 65)
    assert count_parameters(shape) > 100_000


def test_fast_recipe_has_as_many_parameters_and_tokens():
    slow, fast = (lm_pretrain.PRESETS[n][1] for n in ("shakespeare", "shakespeare-fast"))
    sizes = [
        count_parameters(dataclasses.replace(config.model, vocab_size=65))
        for config in (slow, fast)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert (fast.batch_size, fast.length) == (slow.batch_size, slow.length) == (12, 64)
    assert slow.steps == 2000


def test_a_run_leaves_what_it_promises(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    train = [r["step"] for r in records if "train/loss" in r]
    assert train == list(range(1, STEPS + 1))
    validated = {r["step"]: r for r in records if "val/loss" in r}
    assert list(validated) == [3, 6]
    assert validated[6]["val/loss"] < records[0]["train/loss"]
    # Bytes are the tokens; one more is predicted a document, its end: more bits than the loss's.
    bits = validated[6]["val/loss"] / 0.6931472
    assert bits < validated[6]["val/bits_per_byte"] < 1.01 * bits
    assert json.loads((finished / "config.json").read_text())["identity"].keys() == {
        "data",
        "tokenizer",
    }
    assert (finished / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (finished / "samples").iterdir()} == {
        "00000003.txt",
        "00000006.txt",
        "report.txt",
    }
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"4", "6"}
    manifest = read_manifest(finished / "checkpoints" / "6")
    assert manifest["provenance"]["versions"]["jax"] == jax.__version__
    assert manifest["provenance"]["identity"].keys() == {"data", "tokenizer"}


def test_the_same_command_again_says_so_and_changes_nothing(finished, pretrain):
    before = (finished / "metrics.jsonl").read_bytes()
    code, out, _ = pretrain(finished)
    assert code == 0
    assert "is finished: 6 steps" in out
    assert "nats per token" in out  # the report, again
    assert (finished / "metrics.jsonl").read_bytes() == before
    code, out, _ = pretrain(finished, "--log-every", "1", "--keep", "3")  # only how it is shown
    assert code == 0


def test_what_would_change_the_run_is_refused(finished, pretrain, tmp_path):
    before = (finished / "metrics.jsonl").read_bytes()
    code, _, err = pretrain(finished, "--schedule.peak", "0.5", "--seed", "1")
    assert code == 2
    assert "schedule.peak: 0.01 -> 0.5" in err
    assert "seed: 0 -> 1" in err
    code, _, err = pretrain(finished, "--data.tokenizer", "characters")
    assert code == 2
    assert "data.tokenizer: 'bytes' -> 'characters'" in err
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_other_text_under_the_same_name_is_refused(pretrain, tmp_path, corpus):
    text = shutil.copytree(corpus, tmp_path / "text")
    assert pretrain(tmp_path / "run", "--steps", "1", data=f"{text}/*.txt")[0] == 0
    (text / "3.txt").write_text("another text " * 200)
    code, _, err = pretrain(tmp_path / "run", "--steps", "1", data=f"{text}/*.txt")
    assert code == 2
    assert "the data changed" in err
    code, _, _ = pretrain(tmp_path / "run", "--steps", "1", "--overwrite", data=f"{text}/*.txt")
    assert code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_resumes(
    finished, pretrain, tmp_path, monkeypatch, number, code
):
    step = Reporter.step

    def interrupted(self, at, values):
        step(self, at, values)
        if at == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupted)
        ended, out, _ = pretrain(tmp_path / "run")
    assert ended == code
    assert "stopped; saved at step" in out
    assert "The same command resumes." in out
    ended, out, _ = pretrain(tmp_path / "run")
    assert ended == 0
    assert "resuming" in out
    assert_same_run(tmp_path / "run", finished)


def test_a_damaged_checkpoint_costs_a_few_steps_and_nothing_else(finished, pretrain, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for path in (run / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(bytes(content))
    code, out, err = pretrain(run)
    assert code == 0
    assert "is damaged" in err
    assert "resuming" in out
    assert "after step 4" in out
    assert (run / "checkpoints" / "6.damaged").is_dir()
    assert_same_run(run, finished)


def test_full_disk_is_survived_and_told(finished, pretrain, tmp_path, monkeypatch):
    save, calls = ocp.AsyncCheckpointer.save, []

    def full_once(self, *args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.AsyncCheckpointer, "save", full_once)
        code, out, err = pretrain(tmp_path / "run")
    assert code == 1
    assert "no checkpoint of step 4" in err
    assert "No space left on device" in err
    assert "Newest checkpoint: 2" in err
    assert f"step {STEPS}/{STEPS}" in out  # training went on
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"2", "6"}
    assert pretrain(tmp_path / "run")[0] == 0
    assert_same_run(tmp_path / "run", finished)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(pretrain, tmp_path):
    flags = ("--schedule.peak", "1e30", "--schedule.warmup-steps", "3", "--save-every", "1")
    code, _, err = pretrain(tmp_path / "run", *flags)
    assert code == 1
    assert "STOPPED: step " in err
    assert "the last good checkpoint is step" in err
    stopped_at = int(err.split("STOPPED: step ")[1].split(":")[0])
    saved = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved
    assert saved[-1] < stopped_at


BAD_INPUT = {
    "missing file": (("--data.path", "nowhere/*.txt"), "nowhere"),
    "heads": (("--model.num-kv-heads", "3"), "num_kv_heads"),
    "vocabulary": (("--model.vocab-size", "100"), "vocabulary must hold the tokenizer's; got 100"),
    "batch": (("--batch-size", "12"), "`batch_size` must be divisible by devices"),
    "context": (("--length", "32"), "`length` must not exceed `model.max_length`"),
    "evaluation": (("--evaluation-rows", "12"), "must be divisible by the devices"),
    "fsdp": (("--fsdp", "3"), "`fsdp` must divide the number of devices"),
    "set": (("--data.sources", "tfds:no_such_set_here"), "no_such_set_here"),
    "no steps": (("--steps", "0"), "`steps` must be at least 1"),
    "average": (("--ema-traces", "0.4"), "`sigma_rel` must be above 0"),
    "no run": (("--init", "nowhere"), "a run has a config.json; there is none in nowhere"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_words(pretrain, tmp_path, case):
    flags, words = BAD_INPUT[case]
    try:
        code, _, err = pretrain(tmp_path / "run", *flags)
    except SystemExit as error:  # told by the command line itself
        code, err = error.code, words
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing"),
        (b"short", "row"),
    ],
    ids=["empty", "short"],
)
def test_text_that_cannot_be_trained_on_is_refused(pretrain, tmp_path, content, words):
    (tmp_path / "text.txt").write_bytes(content)
    code, _, err = pretrain(tmp_path / "run", data=tmp_path / "text.txt")
    assert code == 2
    assert err.startswith("ERROR: ")
    assert "text.txt" in err or words in err


def test_malformed_text_is_counted_and_the_policy_is_a_flag(pretrain, tmp_path, corpus):
    text = shutil.copytree(corpus, tmp_path / "text")
    (text / "bad.txt").write_bytes(b"\xff\xfe broken \x80 bytes" * 50)
    (text / "nul.txt").write_bytes(b"a\x00b" * 100)
    flags = ("--steps", "1", "--sample-tokens", "0")
    code, out, _ = pretrain(tmp_path / "one", *flags, data=f"{text}/*.txt")
    assert code == 0
    assert "invalid UTF-8 repaired" in out
    code, _, err = pretrain(
        tmp_path / "two", *flags, "--data.invalid-utf8", "error", data=f"{text}/*.txt"
    )
    assert code == 2
    assert "bad.txt" in err


@pytest.mark.parametrize(
    ("words", "nearest"),
    [(["quickstrat"], "quickstart"), (["--batchsize", "3"], "--batch-size")],
)
def test_typing_errors_get_the_nearest_name(monkeypatch, capsys, words, nearest):
    monkeypatch.setattr(sys, "argv", ["lm_pretrain.py", *words])
    with pytest.raises(SystemExit) as stopped:
        lm_pretrain.main()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert nearest in out + err


@pytest.fixture
def write(monkeypatch, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["lm_sample.py", *flags])
        capsys.readouterr()
        code = lm_sample.main()
        return code, *capsys.readouterr()

    return call


def test_samples_are_a_function_of_the_seed(finished, write):
    flags = ("--model", str(finished), "--prompt", "alpha ", "--max-tokens", "8")
    code, first, err = write(*flags)
    assert code == 0
    assert first.startswith("alpha ")
    assert "step 6" in err
    assert write(*flags)[1] == first
    assert write(*flags, "--seed", "1")[1] != first
    _, both, _ = write(*flags, "--samples", "2")
    assert both == first + write(*flags, "--seed", "1")[1]


def test_every_control_of_drawing_is_a_flag(finished, write):
    forced = ("--forced", "97", "98", "--forbidden", "99", "--logit-bias", "100", "-inf")
    code, text, _ = write("--model", str(finished), "--max-tokens", "8", *forced)
    assert code == 0 and text.startswith("ab") and not set("cd") & set(text)
    code, _, err = write("--model", str(finished), "--max-tokens", "2", "--min-tokens", "3")
    assert code == 2 and "`min_tokens` must not exceed `max_tokens`" in err
    with pytest.raises(SystemExit) as stopped:
        write("--temperature", "-1")
    assert stopped.value.code == 2


def test_sampling_without_a_run_says_what_to_do(tmp_path, write, finished):
    code, _, err = write("--model", str(tmp_path / "none"))
    assert code == 2
    assert "a run has a config.json" in err
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    code, _, err = write("--model", str(run))
    assert code == 2
    assert "must have a checkpoint" in err


@pytest.fixture(scope="module")
def continued(tmp_path_factory, corpus, finished):
    """A run that began with the parameters of another, and keeps averages for later."""
    workdir = tmp_path_factory.mktemp("runs") / "continued"
    first = shutil.copytree(finished, workdir.with_name("first"))
    flags = ["--data.path", f"{corpus}/*.txt", "--workdir", str(workdir), "--init", str(first)]
    flags += ["--ema-traces", "0.05", "0.1", "--snapshot-every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lm_pretrain.py", *TINY, *flags])
        assert lm_pretrain.main() == 0
        before = (workdir / "metrics.jsonl").read_bytes()
        shutil.rmtree(first)
        assert lm_pretrain.main() == 0  # resumed: the other run is not looked for
    assert (workdir / "metrics.jsonl").read_bytes() == before
    return workdir


def test_a_run_begins_where_another_ended(finished, continued):
    losses = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (finished, continued)
    ]
    random_start, last = losses[0][0]["train/loss"], losses[0][-1]["val/loss"]
    assert abs(losses[1][0]["train/loss"] - last) < 0.5 * (random_start - last)
    saved = json.loads((continued / "config.json").read_text())
    assert saved["config"]["init"].endswith("first")
    assert saved["identity"]["init"].startswith("model 6 ")
    provenance = read_manifest(continued / "checkpoints" / "6")["provenance"]
    assert provenance["identity"] == saved["identity"]


def test_another_model_cannot_begin_with_it(finished, pretrain, tmp_path):
    code, _, err = pretrain(tmp_path / "run", "--init", str(finished), "--model.mlp-dim", "16")
    assert code == 2
    assert "misshapen: model/layers/mlp/up/kernel is float32[2, 16, 32], needed" in err


def test_averages_are_made_after_the_training_and_sampled(continued, finished, write):
    steps = sorted(int(p.name) for p in (continued / "ema").iterdir())
    assert steps == list(range(1, STEPS + 1))
    flags = ("--prompt", "alpha ", "--max-tokens", "8", "--ema-sigma-rel")
    code, text, err = write("--model", str(continued), *flags, "0.1")
    assert code == 0
    assert text.startswith("alpha ")
    assert "step 6" in err
    assert write("--model", str(continued), *flags, "0.08")[0] == 0
    code, _, err = write("--model", str(continued), *flags, "0.001")
    assert code == 2
    assert "The nearest that they can is" in err
    code, _, err = write("--model", str(finished), *flags, "0.1")
    assert code == 2
    assert "Train with --ema-traces" in err


def test_a_run_from_before_these_options_resumes(finished, pretrain, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    for name in ("init", "ema_traces", "snapshot_every"):
        del saved["config"][name]
    (run / "config.json").write_text(json.dumps(saved))
    code, out, _ = pretrain(run)
    assert code == 0
    assert "is finished: 6 steps" in out


def test_killed_processes_leave_no_trace(tmp_path):
    """Two kills of real processes; tests/kill_and_resume.py does as many as it is asked for."""
    chance = random.Random(1)
    text = kill_and_resume.write_text(tmp_path / "text")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    kill_and_resume.finish(text, undisturbed)
    for moment in ("training", "saving"):
        kill_and_resume.start_and_kill(text, killed, moment, chance)
    kill_and_resume.finish(text, killed)
    kill_and_resume.assert_equal(undisturbed, killed)
