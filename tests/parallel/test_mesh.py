"""The mesh of all devices."""

import jax
import pytest

from genai_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8)), (-1, (1, 8))])
def test_axes_share_the_devices(fsdp, shape):
    mesh = make_mesh(fsdp)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == shape
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_some_devices_only():
    assert make_mesh(2, devices=jax.devices()[:4]).devices.shape == (2, 2)


@pytest.mark.parametrize("fsdp", [0, 3, 16, -2])
def test_what_does_not_divide_is_refused_with_what_does(fsdp):
    with pytest.raises(ValueError, match=f"got {fsdp} and 8. Choose from 1, 2, 4, 8, or -1"):
        make_mesh(fsdp)
