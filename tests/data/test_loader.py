"""Batches: a function of the step, the same on one device and on eight, and no thread left over."""

import subprocess
import sys
import threading
import time

import grain
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genai_jax.data.loader import Loader


class Numbered:
    """Row i holds i, as [T] and as a scalar."""

    def __init__(self, delay=0.0, broken=None):
        self.delay, self.broken, self.made = delay, broken, []

    def __len__(self):
        return 100

    def __getitem__(self, i):
        time.sleep(self.delay)
        if i == self.broken:
            raise OSError(f"row {i} cannot be read")
        self.made.append(i)
        return {"tokens": np.arange(4) + 10 * i, "weight": np.float32(i)}


def expected(step, batch_size):
    numbers = np.arange(step * batch_size, (step + 1) * batch_size)
    return {
        "tokens": numbers[:, None] * 10 + np.arange(4),
        "weight": numbers.astype(np.float32),
    }


def assert_batch(batch, step, batch_size):
    wanted = expected(step, batch_size)
    assert batch.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(batch[name], value)


def test_any_step_in_any_order():
    with Loader(Numbered(), 3) as loader:
        for step in (0, 1, 2, 7, 8, 3, 3, 0, 50):
            assert_batch(loader.batch(step), step, 3)


def test_following_batches_are_made_ahead_and_no_more():
    rows = Numbered()
    with Loader(rows, 2, prefetch=3) as loader:
        loader.batch(0)
        deadline = time.monotonic() + 30
        while len(rows.made) < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert sorted(rows.made) == list(range(8))
        loader.batch(1)
    assert len(rows.made) == len(set(rows.made))


def test_a_grain_dataset_will_do():
    dataset = grain.MapDataset.range(100).map(lambda i: {"x": np.array([i, -i])})
    with Loader(dataset, 4) as loader:
        assert loader.batch(2)["x"][:, 0].tolist() == [8, 9, 10, 11]


def mesh(*shape, names=("data", "fsdp")):
    kinds = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, names[: len(shape)], axis_types=kinds)


@pytest.mark.parametrize(
    "spec",
    [
        PartitionSpec("data"),
        PartitionSpec(("data", "fsdp")),
        PartitionSpec("data", "fsdp"),
        PartitionSpec(None, "fsdp"),
        PartitionSpec("fsdp", "data"),
        PartitionSpec(),
    ],
)
def test_batches_lie_on_the_mesh_as_asked(spec):
    sharding = NamedSharding(mesh(4, 2), spec)
    with Loader(Numbered(), 8, sharding=sharding) as loader:
        for step in (0, 1, 5):
            batch = loader.batch(step)
            assert_batch(batch, step, 8)
            assert batch["tokens"].sharding.is_equivalent_to(sharding, 2)
            row = NamedSharding(sharding.mesh, PartitionSpec(*spec[:1]))
            assert batch["weight"].sharding.is_equivalent_to(row, 1)


def test_a_host_makes_only_its_own_rows(monkeypatch):
    """Two hosts of four devices each: this one holds the second half of the batch."""
    sharding = NamedSharding(mesh(8), PartitionSpec("data"))
    whole = NamedSharding.addressable_devices_indices_map

    def second_half(self, shape):
        held = whole(self, shape)
        return {d: held[d] for d in list(held)[4:]}

    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", second_half)
    placed = {}

    def make_array(shape, _, shard):
        placed[len(shape)] = shard((slice(8, 10), *[slice(None)] * (len(shape) - 1)))
        return jax.numpy.zeros(shape)

    monkeypatch.setattr(jax, "make_array_from_callback", make_array)
    rows = Numbered()
    with Loader(rows, 16, sharding=sharding, prefetch=0) as loader:
        loader.batch(3)
    assert sorted(rows.made) == list(range(3 * 16 + 8, 4 * 16))
    np.testing.assert_array_equal(placed[1], [48 + 8, 48 + 9])
    np.testing.assert_array_equal(placed[2][:, 0], [10 * (48 + 8), 10 * (48 + 9)])


def test_devices_must_divide_the_batch():
    sharding = NamedSharding(mesh(4, 2), PartitionSpec(("data", "fsdp")))
    with pytest.raises(
        ValueError, match=r"devices that share it; got 12 and 8 \(mesh.*data, fsdp\).*8 or 16"
    ):
        Loader(Numbered(), 12, sharding=sharding)
    with pytest.raises(ValueError, match=r"got 3 and 8.*Choose 8\."):
        Loader(Numbered(), 3, sharding=sharding)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Loader(Numbered(), 0)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_an_error_arrives_at_its_own_step_and_close_ends_all_threads():
    loader = Loader(Numbered(broken=5), 2)
    assert_batch(loader.batch(0), 0, 2)
    assert_batch(loader.batch(1), 1, 2)
    with pytest.raises(OSError, match="row 5 cannot be read"):
        loader.batch(2)
    assert_batch(loader.batch(3), 3, 2)
    assert loader_threads()
    loader.close()
    loader.close()
    assert not loader_threads()


def test_leaving_by_an_exception_ends_all_threads_and_forgets_what_was_asked_for():
    rows = Numbered(delay=0.02)
    with pytest.raises(KeyboardInterrupt), Loader(rows, 4, prefetch=50) as loader:
        loader.batch(0)
        raise KeyboardInterrupt
    assert not loader_threads()
    assert len(rows.made) < 4 * 51


def test_a_process_that_never_closes_it_ends_all_the_same():
    code = (
        "import numpy as np\n"
        "from genai_jax.data.loader import Loader\n"
        "class Rows:\n"
        "    def __len__(self): return 1\n"
        "    def __getitem__(self, i): return {'x': np.array(i)}\n"
        "loader = Loader(Rows(), 4)\n"
        "print(loader.batch(0)['x'].tolist())\n"
        "raise KeyboardInterrupt\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "[0, 1, 2, 3]\n" and "KeyboardInterrupt" in ended.stderr
