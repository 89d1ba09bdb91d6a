"""A CPU is a small mesh: one JAX device a core, each with single-threaded matrix products.

Splitting the batch over cores, as over a pod, beats threads inside every operation: 0.7 times the
step's time was measured (benchmarks/README.md).
"""

import os

import jax


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: a container may have fewer
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cores_that_divide(*batches: int) -> int:
    """Count the most usable cores that divide each of some numbers of rows."""
    return max(n for n in range(1, usable_cores() + 1) if all(rows % n == 0 for rows in batches))


def fastest_microbatches(rows: int, length: int) -> int:
    """Count the parts in which a device computes its rows of a batch fastest.

    On a CPU what a part touches should stay in the caches: the fewest parts of at most 512 tokens,
    or single rows (0.75 times the time of one part: benchmarks/README.md). On accelerators: one.

    Args:
        rows: Rows of a batch that one device has.
        length: T, tokens of a row.
    """
    if jax.default_backend() != "cpu":
        return 1
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    return next((n for n in divisors if rows // n * length <= 512), max(divisors, default=1))


def split_cpu(devices: int | None = None) -> int | None:
    """Have JAX start several CPU devices; call it before anything runs on JAX.

    Does nothing where XLA_FLAGS already says how many there are. Without effect on accelerators.

    Args:
        devices: How many; None is one a usable core.

    Returns:
        How many were asked for; None where the environment had already decided.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags:
        return None
    count = usable_cores() if devices is None else devices
    if count > 1:
        os.environ["XLA_FLAGS"] = (
            f"{flags} --xla_force_host_platform_device_count={count}"
            " --xla_cpu_multi_thread_eigen=false"
        ).strip()
    return count


def describe_devices() -> str:
    """Say what the run will use, for the log."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({jax.default_backend()})"
