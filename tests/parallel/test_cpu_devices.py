import os
import subprocess
import sys

import pytest

from genai_jax.parallel import cpu_devices
from genai_jax.parallel.cpu_devices import (
    cores_that_divide,
    fastest_microbatches,
    split_cpu,
    usable_cores,
)


@pytest.mark.parametrize(
    ("cores", "batches", "expected"),
    [(8, (12,), 6), (8, (16, 24), 8), (4, (7,), 1), (2, (9, 4), 1)],
)
def test_devices_are_the_most_cores_that_divide_the_batches(monkeypatch, cores, batches, expected):
    monkeypatch.setattr(cpu_devices, "usable_cores", lambda: cores)
    assert cores_that_divide(*batches) == expected


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [(6, 64, 1), (8, 256, 4), (32, 256, 16), (9, 256, 9), (4, 1024, 4), (1, 8192, 1), (0, 8, 1)],
)
def test_microbatches_hold_at_most_512_tokens_or_one_row(rows, length, expected):
    assert fastest_microbatches(rows, length) == expected


def test_accelerators_compute_a_batch_at_once(monkeypatch):
    monkeypatch.setattr(cpu_devices.jax, "default_backend", lambda: "gpu")
    assert fastest_microbatches(64, 1024) == 1


def test_there_is_a_core():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("flags", "count", "expected"), [("", 3, 3), ("", 1, 1)])
def test_a_process_gets_the_devices_that_it_asks_for(flags, count, expected):
    program = (
        "from genai_jax.parallel.cpu_devices import split_cpu\n"
        f"split_cpu({count})\nimport jax\nprint(jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == expected


def test_what_the_environment_says_stands(monkeypatch):
    flags = "--xla_force_host_platform_device_count=5"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert split_cpu(2) is None
    assert os.environ["XLA_FLAGS"] == flags
