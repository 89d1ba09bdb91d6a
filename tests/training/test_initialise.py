"""A run begins with another one's parameters: the right ones, all of them, or none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.checkpoints import Checkpoints
from genai_jax.training.initialise import begin_from, from_run, load_initial
from genai_jax.training.run_directory import RunError, open_run
from genai_jax.training.state import abstract_like, init_state

VALUES = {"head": np.arange(6.0).reshape(2, 3), "bias": np.full(3, 0.5)}


def make_state(ema=True, scale=1.0, shape=(2, 3), **options):
    def init():
        head = jnp.arange(float(np.prod(shape)), dtype=jnp.float32).reshape(shape)
        return {"head": scale * head, "bias": jnp.full(3, 0.5 * scale, jnp.bfloat16)}

    return init_state(init, optax.adam(0.1), make_mesh(), (), ema=ema, **options)


def save_run(folder, state, step=4):
    with open_run(folder, {}) as run, Checkpoints(run.folder("checkpoints")) as checkpoints:
        checkpoints.save(step, state)
    return folder


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run whose average is half of its parameters."""
    state = make_state()
    halves = jax.tree.map(lambda x: x / 2, state.ema)
    changed = {f: getattr(state, f) for f in ("step", "model", "opt_state")}
    return save_run(tmp_path_factory.mktemp("runs") / "a", type(state)(**changed, ema=halves))


def test_the_average_is_preferred_and_cast_to_what_is_asked_for(averaged):
    like = abstract_like(make_state(scale=7.0).model)
    for prefer, factor in (("ema", 0.5), ("model", 1.0)):
        initial = load_initial(averaged, like, prefer=prefer)
        assert initial.model["bias"].dtype == jnp.bfloat16
        for name, value in VALUES.items():
            np.testing.assert_array_equal(initial.model[name].astype(float), factor * value)
        assert initial.about == f"{averaged} after its step 4"
        assert initial.digest.startswith(f"{prefer} 4 ")


def test_without_an_average_there_are_the_parameters(tmp_path):
    folder = save_run(tmp_path / "a", make_state(ema=False, scale=3.0))
    initial = load_initial(folder, abstract_like(make_state().model))
    np.testing.assert_array_equal(initial.model["head"], 3 * VALUES["head"])
    assert initial.digest.startswith("model 4 ")


def test_digests_tell_parameters_apart(tmp_path):
    like = abstract_like(make_state().model)
    digests = {
        load_initial(save_run(tmp_path / name, make_state(scale=scale)), like).digest
        for name, scale in (("a", 1.0), ("b", 1.0), ("c", 2.0))
    }
    assert len(digests) == 2


def test_a_state_begins_with_them_in_every_average_and_nothing_else(averaged):
    state, _ = begin_from(from_run(str(averaged)))(make_state(scale=9.0, traces=("0.1",)))
    untouched = make_state(scale=9.0)
    for tree in (state.model, state.ema, state.traces["0.1"]):
        np.testing.assert_array_equal(tree["head"], VALUES["head"] / 2)
    for tree in (state.ema, state.traces["0.1"]):
        assert tree["bias"].dtype == jnp.float32
        assert tree["head"].sharding == untouched.ema["head"].sharding
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, untouched.opt_state)
    assert int(state.step) == 0
    # No two share their memory: the step donates all of it.
    pointers = [
        tree["head"].addressable_shards[0].data.unsafe_buffer_pointer()
        for tree in (state.model, state.ema, state.traces["0.1"])
    ]
    assert len(set(pointers)) == 3


def test_another_model_is_refused_by_the_names_of_what_differs(averaged):
    with pytest.raises(ValueError, match=r"misshapen: ema/head is float32\[2, 3\], needed .*5, 3"):
        load_initial(averaged, abstract_like(make_state(shape=(5, 3)).model))
    smaller = {"head": make_state().model["head"]}
    with pytest.raises(ValueError, match=r"(?s)same model only; .*unexpected: ema/bias"):
        load_initial(averaged, abstract_like(smaller))


def test_what_is_no_run_or_has_no_checkpoint_is_refused(tmp_path):
    like = abstract_like(make_state().model)
    with pytest.raises(RunError, match=r"a run has a config\.json; there is none in .*nowhere"):
        load_initial(tmp_path / "nowhere", like)
    with open_run(tmp_path / "new", {}):
        pass
    with pytest.raises(RunError, match="must have a checkpoint for another one to begin with"):
        load_initial(tmp_path / "new", like)
