"""Checkpoints: what is read is what was written, or it is said and the one before is taken."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.checkpoints import (
    Checkpoints,
    DamagedCheckpoint,
    load_part,
    load_step,
    read_manifest,
)
from genai_jax.training.storage import StorageError

# Orbax leaves a damaged checkpoint at the first array; TensorStore still tells of the others.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. None[\s\S]*Event loop is closed:"
    "pytest.PytestUnraisableExceptionWarning"
)


def state(value=0.0):
    mesh = make_mesh(8)
    cut = jax.device_put(jnp.arange(16.0) + value, NamedSharding(mesh, PartitionSpec("fsdp")))
    return {"model": {"cut": cut, "half": jnp.full((3,), value, jnp.bfloat16)}, "step": 7}


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints", provenance={"commit": "abc"}) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, state(step))
    return tmp_path / "checkpoints"


def files(checkpoint):
    return [p for p in sorted(checkpoint.rglob("*")) if p.is_file()]


def test_newest_is_read_back_bit_by_bit_into_its_shardings(saved):
    with Checkpoints(saved) as checkpoints:
        step, restored = checkpoints.restore(state())
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, restored, state(2))
    assert restored["model"]["cut"].sharding == state()["model"]["cut"].sharding
    assert restored["model"]["half"].dtype == jnp.bfloat16
    assert read_manifest(saved / "2")["provenance"] == {"commit": "abc"}


def test_other_meshes_read_the_same_numbers(saved):
    like = state()
    like["model"]["cut"] = jnp.zeros(16)
    with Checkpoints(saved) as checkpoints:
        _, restored = checkpoints.restore(like)
    np.testing.assert_array_equal(restored["model"]["cut"], np.arange(16.0) + 2)


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 5, 10, 100):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [10, 100]
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"10", "100"}


def test_all_are_kept_where_none_is_to_go(tmp_path):
    with Checkpoints(tmp_path / "c", keep=None) as checkpoints:
        for step in (1, 5, 10, 100):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 5, 10, 100]


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    """A saved array is overwritten in place at once; the checkpoint holds what it was."""
    overwrite = jax.jit(lambda x: x * 0, donate_argnums=0)
    value = jnp.arange(1 << 20, dtype=jnp.float32)
    expected = np.array(value)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": value})
        overwrite(value).block_until_ready()
        _, restored = checkpoints.restore({"x": jnp.zeros(1 << 20)})
    np.testing.assert_array_equal(restored["x"], expected)


def flip(checkpoint):
    """Flip a bit of the arrays, which are small enough for one file."""
    (path,) = (checkpoint / "state" / "d").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "manifest gone": lambda c: shutil.rmtree(c / "manifest"),
    "manifest altered": lambda c: (c / "manifest" / "manifest.json").write_text(
        (c / "manifest" / "manifest.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "manifest empty": lambda c: (c / "manifest" / "manifest.json").write_text(""),
    "arrays gone": lambda c: shutil.rmtree(c / "state"),
    "a bit flipped": flip,
    "cut short": lambda c: max(files(c), key=lambda p: p.stat().st_size).write_bytes(b""),
    "link": lambda c: (c / "link").symlink_to("/"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_the_one_before_is_taken(saved, damage, capsys):
    DAMAGE[damage](saved / "2")
    with Checkpoints(saved) as checkpoints:
        step, restored = checkpoints.restore(state())
    assert step == 1
    np.testing.assert_array_equal(restored["model"]["cut"], state(1)["model"]["cut"])
    assert f"{saved / '2'} is damaged" in capsys.readouterr().err
    assert {p.name for p in saved.iterdir()} == {"1", "2.damaged"}


def test_without_a_good_one_there_is_none(saved, capsys):
    for step in ("1", "2"):
        (saved / step / "manifest" / "manifest.json").unlink()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.restore(state()) is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_another_model_is_refused_and_the_checkpoint_stays(saved):
    like = state() | {"other": jnp.zeros(2)}
    with Checkpoints(saved) as checkpoints, pytest.raises(StorageError, match="missing: other"):
        checkpoints.restore(like)
    assert {p.name for p in saved.iterdir()} == {"1", "2"}


def test_leftovers_of_killed_saves_are_removed(saved):
    for name in ("3.orbax-checkpoint-tmp", "0.deleted"):
        (saved / name).mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert {p.name for p in saved.iterdir()} == {"1", "2"}


def test_a_save_that_cannot_be_written_is_told_and_the_next_one_succeeds(tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    directory.write_text("a file where the directory should be")
    with Checkpoints(directory) as checkpoints:
        assert not checkpoints.save(1, state(1))
        directory.unlink()
        assert checkpoints.save(2, state(2))
        checkpoints.wait()
        assert checkpoints.steps() == [2]
    assert len(checkpoints.failures) == 1
    assert checkpoints.failures[0].startswith("step 1: ")
    assert "Training goes on" in capsys.readouterr().err


def test_a_part_is_read_without_the_rest(saved, capsys):
    like = {"model": state()["model"]}
    step, part = load_part(saved, like)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, part, {"model": state(2)["model"]})
    flip(saved / "2")
    step, _ = load_part(saved, like)
    assert step == 1
    assert "checkpoint 2 is damaged" in capsys.readouterr().err
    assert {p.name for p in saved.iterdir()} == {"1", "2"}  # a reader changes nothing
    assert load_part(saved / "none", like) is None


def test_a_part_is_cast_and_must_be_all_of_it(saved):
    model = state()["model"]
    wider = {"model": model | {"half": jnp.zeros(3, jnp.float32)}}
    _, part = load_part(saved, wider)
    assert part["model"]["half"].dtype == jnp.float32
    np.testing.assert_array_equal(part["model"]["half"], np.full(3, 2.0))
    with pytest.raises(StorageError, match="unexpected: model/half"):
        load_part(saved, {"model": {"cut": model["cut"]}})
    with pytest.raises(
        StorageError, match=r"misshapen: model/half is bfloat16\[3\], needed .*\[4\]"
    ):
        load_part(saved, {"model": model | {"half": jnp.zeros(4, jnp.bfloat16)}})


def test_one_step_is_read(saved):
    like = {"model": state()["model"]}
    jax.tree.map(
        np.testing.assert_array_equal, load_step(saved, 1, like)["model"], state(1)["model"]
    )
    with pytest.raises(DamagedCheckpoint):
        load_step(saved, 3, like)


def test_manifest_of_nothing(tmp_path):
    with pytest.raises(DamagedCheckpoint, match="manifest cannot be read"):
        read_manifest(tmp_path)


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="`keep` must be at least 1; got 0"):
        Checkpoints(tmp_path, keep=0)
