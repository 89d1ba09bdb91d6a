"""Numbers that rows bring with them become means over those that count."""

import jax
import jax.numpy as jnp

from genai_jax.objectives.row_metrics import WithRowMetrics
from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.step import make_gradients
from genai_jax.types import Term


def objective(model, batch, context=None):
    return {"loss": Term(jnp.sum(model * batch["x"]), jnp.float32(len(batch["x"])))}


BATCH = {
    "x": jnp.arange(8.0),
    "metrics/reward": jnp.array([1.0, 2, 3, 4, 50, 60, 70, 80]),
    "counts/reward": jnp.array([1.0, 1, 1, 1, 0, 0, 0, 0]),
    "metrics/length": jnp.arange(8.0),
}


def test_means_are_over_rows_that_count_and_train_nothing():
    terms = WithRowMetrics(objective)(jnp.float32(1), BATCH)
    assert terms["reward"] == (10.0, 4.0, 0.0)
    assert terms["length"] == (28.0, 8.0, 0.0)
    assert terms["loss"] == (28.0, 8.0, 1.0)
    assert terms.keys() == {"loss", "reward", "length"}


def test_microbatches_and_devices_change_nothing():
    found = []
    for devices, microbatches in ((1, 1), (1, 4), (4, 2)):
        mesh = make_mesh(devices=jax.devices()[:devices])
        gradients = jax.jit(make_gradients(WithRowMetrics(objective), mesh, microbatches))
        gradient, metrics = gradients(jnp.float32(1), BATCH, None)
        found.append((float(gradient), {n: (float(s), float(w)) for n, (s, w) in metrics.items()}))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == 3.5 and found[0][1]["reward"] == (10, 4)
