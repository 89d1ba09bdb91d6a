import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import (
    batch_sharding,
    over_rows,
    replicated,
    shardings_for,
    spec_for,
)

RULES = (
    (r"mlp/up$", P("fsdp", None)),
    (r"mlp/.*$", P(None, "fsdp")),
    (r"both$", P(("data", "fsdp"))),
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(4)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers/0/mlp/up", (8, 3), P("fsdp", None)),  # the first rule that fits
        ("layers/0/mlp/down", (3, 8), P(None, "fsdp")),
        ("layers/mlp/up", (5, 8, 3), P(None, "fsdp", None)),  # a stack: aligned to the right
        ("opt_state/0/mu/layers/0/mlp/up", (8, 3), P("fsdp", None)),
        ("layers/0/mlp/up", (6, 3), P(None, None)),  # 4 does not divide 6
        ("layers/0/mlp/up", (), P()),  # a statistic with fewer axes
        ("norm/scale", (8,), P(None)),
        ("both", (16,), P(("data", "fsdp"))),
        ("both", (12,), P(None)),  # 8 does not divide 12
    ],
)
def test_the_first_rule_that_fits_lays_out_what_it_can(mesh, name, shape, expected):
    assert spec_for(name, shape, mesh, RULES) == expected


def test_arrays_are_laid_out_by_name_and_batches_by_row(mesh):
    tree = {"mlp": {"up": jnp.ones((8, 3))}, "scale": jnp.ones(8)}
    placed = jax.device_put(tree, shardings_for(tree, mesh, RULES))
    assert placed["mlp"]["up"].addressable_shards[0].data.shape == (2, 3)
    assert placed["scale"].sharding.is_equivalent_to(replicated(mesh), 1)
    rows = jax.device_put(np.arange(16), batch_sharding(mesh))
    assert [s.data.tolist() for s in rows.addressable_shards][:2] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8)), (-1, (1, 8))])
def test_mesh_arranges_all_devices(fsdp, shape):
    mesh = make_mesh(fsdp)
    assert mesh.devices.shape == shape and mesh.axis_names == ("data", "fsdp")


@pytest.mark.parametrize("fsdp", [0, 3, 16, -2])
def test_mesh_refuses_what_does_not_divide(fsdp):
    with pytest.raises(ValueError, match=r"must divide .* got .* Choose from 1, 2, 4, 8"):
        make_mesh(fsdp)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 1), (8, 2)])
def test_rows_are_computed_by_their_devices_or_by_the_compiler(devices, fsdp):
    mesh = make_mesh(fsdp, devices=jax.devices()[:devices])
    sizes = []

    def scaled(factor, rows):
        sizes.append(rows["x"].shape[0])
        return {"y": factor * rows["x"]}

    rows = {"x": jnp.arange(16.0).reshape(16, 1)}
    each = jax.jit(over_rows(scaled, mesh, (False, True)))(jnp.float32(3.0), rows)["y"]
    np.testing.assert_array_equal(each, 3 * rows["x"])
    add = lambda factor, rows: jnp.sum(scaled(factor, rows)["y"])  # noqa: E731
    total = jax.jit(over_rows(add, mesh, (False, True), total=True))(jnp.float32(3.0), rows)
    assert float(total) == 3 * sum(range(16))
    assert sizes == [16 if fsdp > 1 else 16 // devices] * 2
    if devices > 1:
        assert each.addressable_shards[0].data.shape == (2, 1)
