"""Several updates of one step, of some of the parameters, with means over the batch first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.named_arrays import by_name
from genai_jax.training.partition import trainable, with_trainable
from genai_jax.training.passes import Passes
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step
from genai_jax.types import Term

B, D = 16, 3
RULES = ((r".*", jax.sharding.PartitionSpec()),)


def make_model():
    return {"slope": jnp.arange(1.0, D + 1), "shift": jnp.zeros(D)}


def squares(model, batch, context=None):
    """Half of the squared distance of each row; its update says when it was seen."""
    error = batch["x"] @ model["slope"] + model["shift"].sum() - batch["y"]
    counted = batch["weight"]
    seen = batch.get("update", jnp.zeros(len(error), jnp.int32))
    return {
        "loss": Term(0.5 * jnp.sum(counted * error**2), counted.sum()),
        "updates": Term(jnp.sum(seen.astype(jnp.float32)), jnp.ones(len(error)).sum(), 0.0),
    }


def make_batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(B, D)), rng.normal(size=B)
    return {
        "x": x.astype(np.float32),
        "y": y.astype(np.float32),
        "weight": (rng.random(B) < 0.8).astype(np.float32),
    }


def run(devices=1, *, microbatches=1, steps=2, trains=None, objective=squares, context=None, **how):
    mesh = make_mesh(devices=jax.devices()[:devices])
    optimizer = by_name(optax.sgd(0.05))
    state = init_state(make_model, optimizer, mesh, RULES, trains=trains, context=context)
    step = make_train_step(
        objective,
        optimizer,
        mesh,
        state,
        seed=3,
        microbatches=microbatches,
        clip_norm=None,
        trains=trains,
        **how,
    )
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    for _ in range(steps):
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
    assert step.on_leaves._cache_size() == 1
    return state, {name: float(a) / float(b) for name, (a, b) in metrics.items()}


def descend(model, batch, parts, rate=0.05):
    """Gradient descent in float64 over parts of the rows."""
    slope, shift = (np.asarray(model[n], np.float64) for n in ("slope", "shift"))
    for rows in parts:
        x, y, w = (np.asarray(batch[n], np.float64)[rows] for n in ("x", "y", "weight"))
        error = w * (x @ slope + shift.sum() - y) / w.sum()
        slope, shift = slope - rate * error @ x, shift - rate * error.sum()
    return slope, shift


def test_epochs_of_one_part_are_descent_on_all_rows():
    state, metrics = run(steps=2, passes=Passes(3, 1))
    slope, shift = descend(make_model(), make_batch(), [np.arange(B)] * 6)
    np.testing.assert_allclose(state.model["slope"], slope, rtol=1e-5)
    np.testing.assert_allclose(state.model["shift"], shift, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 2
    assert metrics["updates"] == pytest.approx(1.0)  # the mean of 0, 1 and 2


def test_minibatches_use_every_row_once_in_each_epoch():
    def counts(model, batch, context=None):
        """A gradient of one for each row that is seen: sums say how often."""
        seen = jnp.zeros(B).at[batch["row"]].add(1.0)
        return {"loss": Term(-jnp.sum(model["rows"] * seen), jnp.ones(()))}

    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = by_name(optax.sgd(1.0))
    state = init_state(lambda: {"rows": jnp.zeros(B)}, optimizer, mesh, RULES)
    step = make_train_step(
        counts, optimizer, mesh, state, seed=0, clip_norm=None, passes=Passes(3, 4)
    )
    state, _ = step(state, {"row": jnp.arange(B)})
    np.testing.assert_array_equal(state.model["rows"], 3.0)


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 2), (4, 1), (2, 2)])
def test_devices_and_microbatches_change_no_minibatch(devices, microbatches):
    wanted, numbers = run(passes=Passes(2, 2))
    state, metrics = run(devices, microbatches=microbatches, passes=Passes(2, 2))
    for name in wanted.model:
        np.testing.assert_allclose(state.model[name], wanted.model[name], rtol=1e-5, atol=1e-6)
    assert metrics == pytest.approx(numbers, rel=1e-5)


def test_minibatches_are_drawn_anew_for_each_step():
    """Two steps of two halves are not descent on the same halves twice."""
    state, _ = run(steps=2, passes=Passes(1, 2))
    halves = [np.arange(B)[:8], np.arange(B)[8:]]
    slope, _ = descend(make_model(), make_batch(), halves * 2)
    assert not np.allclose(state.model["slope"], slope, rtol=1e-4)


def test_what_is_frozen_stays_and_has_no_state():
    def trains(name):
        return name == "shift"

    optimizer = by_name(optax.adam(0.1))
    mesh = make_mesh(devices=jax.devices()[:2])
    state = init_state(make_model, optimizer, mesh, RULES, trains=trains)
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * D + 1
    step = make_train_step(squares, optimizer, mesh, state, seed=0, microbatches=2, trains=trains)
    state, metrics = step(state, jax.device_put(make_batch(), batch_sharding(mesh)))
    np.testing.assert_array_equal(state.model["slope"], make_model()["slope"])
    assert np.abs(state.model["shift"]).min() > 0
    whole, numbers = run(1, steps=1)
    assert metrics["grad_norm"][0] < numbers["grad_norm"]
    assert whole.model["slope"].shape == (D,)


def test_a_frozen_part_needs_no_memory_for_its_gradient():
    model = {"base": jnp.zeros((256, 256)), "shift": jnp.zeros(256)}

    def loss(model, batch, context=None):
        y = batch["x"] @ model["base"] + model["shift"]
        return {"loss": Term(jnp.sum(jnp.sin(y)), jnp.ones(()))}

    def temporaries(trains):
        optimizer = by_name(optax.sgd(0.1))
        mesh = make_mesh(devices=jax.devices()[:1])
        state = init_state(lambda: model, optimizer, mesh, RULES, trains=trains)
        step = make_train_step(loss, optimizer, mesh, state, seed=0, trains=trains)
        lowered = step.on_leaves.lower(step.leaves(state), {"x": jnp.zeros((2, 256))})
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(lambda name: name == "shift") + 256 * 256 * 4 <= temporaries(None)


def test_something_must_train():
    with pytest.raises(ValueError, match="something must train"):
        trainable(make_model(), lambda name: False)
    model = make_model()
    part = trainable(model, lambda name: name == "slope")
    back = with_trainable(model, part, lambda name: name == "slope")
    assert jax.tree.structure(back) == jax.tree.structure(model)


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 1), (1, 4), (4, 2)])
def test_means_over_the_batch_come_first_whatever_the_parts(devices, microbatches):
    """The variance of the errors is no sum over rows; with their mean given, it is."""

    def mean_error(model, batch, context):
        error = batch["x"] @ model["slope"] - batch["y"]
        return {"error": Term(error.sum(), jnp.ones(len(error)).sum())}

    def spread(model, batch, context):
        error = batch["x"] @ model["slope"] - batch["y"]
        mean = context["batch_means"]["error"]
        return {"loss": Term(jnp.sum((error - mean) ** 2), jnp.ones(len(error)).sum())}

    state, metrics = run(
        devices,
        microbatches=microbatches,
        steps=1,
        objective=spread,
        context={"other": jnp.ones(())},
        batch_means=mean_error,
    )
    batch = make_batch()
    error = batch["x"] @ np.arange(1.0, D + 1) - batch["y"]
    assert metrics["loss"] == pytest.approx(error.var(), rel=1e-5)
    gradient = 2 * (error - error.mean()) @ batch["x"] / B
    np.testing.assert_allclose(
        state.model["slope"], np.arange(1.0, D + 1) - 0.05 * gradient, rtol=1e-5
    )


def test_the_context_moves_with_the_batch():
    def grow(context, batch):
        return context | {"beta": context["beta"] + batch["weight"].sum()}

    context = {"beta": jnp.zeros(()), "kept": jnp.ones(2)}
    state, _ = run(2, steps=3, context=context, next_context=grow)
    assert float(state.context["beta"]) == 3 * make_batch()["weight"].sum()
    np.testing.assert_array_equal(state.context["kept"], 1.0)


def test_passes_must_be_some():
    with pytest.raises(ValueError, match="`minibatches` must be at least 1; got 0"):
        Passes(minibatches=0)
    assert dataclasses.replace(Passes(), epochs=4).updates == 4
