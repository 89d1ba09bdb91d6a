"""Muon's matrices: grouped by shape and dealt out over devices, each treated as if alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.muon import orthogonalize, orthogonalize_all

SHAPES = {
    "query": (8, 8),
    "up": (8, 24),
    "down": (24, 8),  # joins `up`, lying on its side
    "stack": (3, 8, 24),
    "experts": (2, 5, 8, 8),
    "odd": (7, 3),
}


@pytest.fixture(scope="module")
def matrices():
    draw = np.random.default_rng(0).standard_normal
    return {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("fsdp", [None, 1, 2, 8])
def test_together_is_one_by_one(matrices, fsdp):
    mesh = None if fsdp is None else make_mesh(fsdp)
    found = jax.jit(lambda x: orthogonalize_all(x, 5, mesh))(matrices)
    assert {name: x.shape for name, x in found.items()} == SHAPES
    for name, x in matrices.items():
        np.testing.assert_allclose(found[name], orthogonalize(x, 5), atol=2e-6, err_msg=name)


def test_every_device_does_its_share():
    """Eight devices: an eighth of the work each (the analysis counts what one of them does)."""
    x = {str(i): jnp.ones((32, 32)) for i in range(16)}

    def flops(mesh):
        compiled = jax.jit(lambda x: orthogonalize_all(x, 5, mesh)).lower(x).compile()
        return compiled.cost_analysis()["flops"]

    alone, shared = flops(make_mesh(devices=jax.devices()[:1])), flops(make_mesh())
    assert shared < 0.2 * alone
