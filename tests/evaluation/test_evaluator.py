"""Means over a whole split, whatever the batch and the mesh, with noise that is always the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.evaluation.evaluator import make_evaluator
from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.step import row_keys
from genai_jax.types import Term

ROWS = 21


class Rows:
    """A split of `ROWS` rows; those past the end count nothing."""

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        image = np.random.default_rng(i).standard_normal((2, 3)).astype(np.float32)
        return {"image": image, "weight": np.float32(i < ROWS)}


def noisy(model, batch, context):
    """Of every row the square of `model` x + t eps."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (2, 3)))(batch["key"])
    x = model * batch["image"] + batch["stratified"][:, None, None] * noise
    rows = batch["weight"] * jnp.square(x).sum((1, 2))
    return {
        "loss": Term(rows.sum(), batch["weight"].sum()),
        "time": Term((batch["weight"] * batch["stratified"]).sum(), batch["weight"].sum(), 0.0),
        "nothing": Term(jnp.zeros(()), jnp.zeros(()), 0.0),
    }


def expected(factor, seed):
    images = np.stack([Rows()[i]["image"] for i in range(ROWS)]).astype(np.float64)
    keys = row_keys(seed, 0, ROWS, "evaluate")
    noise = np.stack([jax.random.normal(key, (2, 3)) for key in keys])
    t = (np.arange(ROWS) + 0.5) / ROWS
    return np.square(factor * images + t[:, None, None] * noise).sum((1, 2)).mean()


@pytest.mark.parametrize(("devices", "fsdp", "batch_size"), [(1, 1, 5), (8, 1, 16), (8, 2, 32)])
def test_the_noise_of_a_row_depends_on_seed_and_number_alone(devices, fsdp, batch_size):
    mesh = make_mesh(fsdp, devices=jax.devices()[:devices])
    evaluate = make_evaluator(noisy, mesh, Rows(), batch_size, seed=4)
    values = evaluate(jnp.float32(3.0))
    assert values["loss"] == pytest.approx(expected(3, 4), rel=1e-6)
    assert values["time"] == pytest.approx(0.5, rel=1e-6)
    assert values["nothing"] != values["nothing"]
    assert evaluate(jnp.float32(3.0))["loss"] == values["loss"]  # bit by bit
    assert evaluate(jnp.float32(2.0))["loss"] == pytest.approx(expected(2, 4), rel=1e-6)
    other = make_evaluator(noisy, mesh, Rows(), batch_size, seed=5)(jnp.float32(3.0))
    assert other["loss"] == pytest.approx(expected(3, 5), rel=1e-6)
    assert other["loss"] != values["loss"]


def test_without_a_seed_there_is_no_noise():
    def silent(model, batch, context):
        assert batch.keys() == {"image", "weight"}
        return {"loss": Term(batch["weight"].sum(), jnp.float32(len(batch["weight"])))}

    assert make_evaluator(silent, make_mesh(), Rows(), 24)(0.0) == {"loss": ROWS / 24}


def test_it_can_be_stopped_between_batches():
    asked = []

    def check():
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    evaluate = make_evaluator(noisy, make_mesh(), Rows(), 8, seed=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(jnp.float32(1.0), check)
    assert len(asked) == 2


def test_rows_that_the_devices_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"got 12 rows and 8 devices\. Choose 16\."):
        make_evaluator(noisy, make_mesh(), Rows(), 12)
