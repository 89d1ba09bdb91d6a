"""A run is a directory: continued by what began it, refused to everything else, never damaged."""

import dataclasses
import json
import subprocess
import sys

import pytest

from genai_jax.training.run_directory import RunError, open_run, read_run, source_commit


@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 5
    log_every: int = 10
    optimizer: Optimizer = Optimizer()


SAME = {"observational": ("log_every",)}


def contents(folder):
    return {p.name: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def begin(folder, **options):
    with open_run(folder, Config(), **options) as run:
        run.metrics.append({"step": 1})


def test_a_run_without_a_step_may_be_put_right(tmp_path):
    """As after an error in the data: nothing would be lost."""
    open_run(tmp_path, Config(), identity={"data": "a"}).close()
    with open_run(tmp_path, Config(steps=6), identity={"data": "b"}) as run:
        assert not run.resumed
        assert run.config["steps"] == 6
    assert read_run(tmp_path)[1] == {"data": "b"}


def test_same_configuration_resumes(tmp_path):
    with open_run(tmp_path / "run", Config(), identity={"data": "a"}) as run:
        assert not run.resumed
        run.metrics.append({"step": 1})
    with open_run(tmp_path / "run", Config(log_every=3), identity={"data": "a"}, **SAME) as run:
        assert run.resumed
        assert run.identity == {"data": "a"}
        assert run.config["optimizer"]["rate"] == 0.1
    config, identity = read_run(tmp_path / "run")
    assert (config["steps"], identity) == (5, {"data": "a"})


def test_a_run_from_before_a_field_was_there_resumes_with_its_default(tmp_path):
    begin(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["steps"], saved["config"]["optimizer"]["rate"]
    path.write_text(json.dumps(saved))
    with open_run(tmp_path, Config()) as run:
        assert run.resumed
    with pytest.raises(RunError, match=r"steps: 5 -> 6"):
        open_run(tmp_path, Config(steps=6))


def test_changed_configuration_is_refused_field_by_field(tmp_path):
    begin(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RunError) as refused:
        open_run(tmp_path, Config(steps=6, optimizer=Optimizer(0.2)), **SAME)
    assert "steps: 5 -> 6" in str(refused.value)
    assert "optimizer.rate: 0.1 -> 0.2" in str(refused.value)
    assert contents(tmp_path) == before


def test_other_data_are_refused(tmp_path):
    begin(tmp_path, identity={"data": "a", "tokenizer": "t"})
    with pytest.raises(RunError, match="the data changed"):
        open_run(tmp_path, Config(), identity={"data": "b", "tokenizer": "t"})
    open_run(tmp_path, Config(), identity={"data": "a", "tokenizer": "t"}).close()  # unlocked


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    with open_run(tmp_path, Config(), identity={"data": "a"}) as run:
        run.metrics.append({"step": 1})
        run.metrics.flush()
        for name in ("checkpoints", "samples"):
            run.folder(name).mkdir()
    (tmp_path / "thoughts.md").write_text("mine")
    (tmp_path / "mine").mkdir()
    with open_run(tmp_path, Config(steps=9), overwrite=True) as run:
        assert not run.resumed
        assert run.identity == {}
    assert (tmp_path / "thoughts.md").read_text() == "mine"
    left = {p.name for p in tmp_path.iterdir()}
    assert {"mine", "config.json"} <= left
    assert not {"checkpoints", "samples"} & left
    assert not (tmp_path / "metrics.jsonl").exists()


def test_foreign_folders_are_not_touched(tmp_path):
    (tmp_path / "novel.txt").write_text("once")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"must be empty, missing, or hold a run.*novel\.txt"):
            open_run(tmp_path, Config(), overwrite=overwrite)
    assert contents(tmp_path) == {"novel.txt": b"once"}
    (tmp_path / "config.json").write_text('{"name": "another program"}')
    with pytest.raises(RunError, match="must be the configuration of a run"):
        open_run(tmp_path, Config(), overwrite=True)
    assert (tmp_path / "novel.txt").exists()


def test_one_process_at_a_time(tmp_path):
    with open_run(tmp_path, Config()), pytest.raises(RunError, match="another one is writing"):
        open_run(tmp_path, Config())
    open_run(tmp_path, Config()).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a'); "
        "fcntl.flock(f, fcntl.LOCK_EX); os._exit(9)"
    )
    open_run(tmp_path, Config()).close()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False)
    open_run(tmp_path, Config()).close()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="must be a directory that can be written"):
        open_run(tmp_path / "file" / "run", Config())


def test_reading_nothing_says_so(tmp_path):
    with pytest.raises(RunError, match="there is none"):
        read_run(tmp_path)


def test_unknown_folder_is_refused(tmp_path):
    with open_run(tmp_path, Config()) as run, pytest.raises(ValueError, match="got 'chekpoints'"):
        run.folder("chekpoints")


def test_provenance_is_json_and_names_versions_and_commit(tmp_path):
    with open_run(tmp_path, Config(), identity={"data": "a"}) as run:
        provenance = json.loads(json.dumps(run.provenance()))
    assert provenance["identity"] == {"data": "a"}
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= provenance["versions"].keys()
    commit = source_commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 40
