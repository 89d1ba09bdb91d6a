"""The mesh: all devices of the run, named by what is split over them."""

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Arrange devices as `data` × `fsdp`: rows are split over both, parameters over `fsdp`.

    Args:
        fsdp: Devices over which parameters and optimizer state are cut; 1 replicates them, -1
            cuts them over all.
        devices: Which devices; None is all of every host.

    Raises:
        ValueError: If `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp == -1:
        fsdp = len(devices)
    if fsdp < 1 or len(devices) % fsdp:
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ValueError(
            f"`fsdp` must divide the number of devices; got {fsdp} and {len(devices)}. "
            f"Choose from {', '.join(map(str, divisors))}, or -1 for all."
        )
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
