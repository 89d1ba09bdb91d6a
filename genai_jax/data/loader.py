"""Batches by step: a pure function of (seed, step), made ahead of time and placed on a mesh."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from genai_jax.data.rows import Rows
from genai_jax.types import Batch

_THREADS = 2


class Loader:
    """Makes the batch of any step; the next few steps are made meanwhile, in threads.

    Row b of the batch at step s is row s * batch_size + b of the rows, on any number of devices and
    hosts. Every host makes only the rows that its devices hold.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        sharding: NamedSharding | None = None,
        prefetch: int = 2,
    ) -> None:
        """Start no thread yet: the first batch does.

        Args:
            rows: Random-access rows, dictionaries of arrays of equal shapes; a `grain.MapDataset`
                of such will do.
            batch_size: B, rows of a batch, over all devices and hosts.
            sharding: Where to put the batch; its spec is cut to the rank of each array. None leaves
                it on the host, as NumPy arrays.
            prefetch: Batches to make ahead.

        Raises:
            ValueError: If devices do not divide the batch.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
        self._rows, self._batch_size, self._sharding = rows, batch_size, sharding
        self._local = np.arange(batch_size)
        if sharding is not None:
            _check_divisible(batch_size, sharding)
            by_row = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
            held = by_row.addressable_devices_indices_map((batch_size,)).values()
            self._local = np.unique(np.concatenate([self._local[index] for index in held if index]))
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="loader")
        self._pending: dict[int, Future[Batch]] = {}

    def batch(self, step: int, state: Any = None) -> Batch:
        """Get the batch of a step, at once if it follows the one asked for before.

        Args:
            step: Completed steps, from 0 on.
            state: Not read: other batches depend on it.

        Raises:
            Exception: Whatever went wrong while a row was read.
        """
        wanted = range(step, step + 1 + self._prefetch)
        for stale in self._pending.keys() - set(wanted):
            self._pending.pop(stale).cancel()
        for ahead in wanted:
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(self._make, ahead)
        return self._pending.pop(step).result()

    def _make(self, step: int) -> Batch:
        rows = [self._rows[step * self._batch_size + int(b)] for b in self._local]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if self._sharding is None:
            return batch
        return {name: self._place(local, self._sharding) for name, local in batch.items()}

    def _place(self, local: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """Put this host's rows on its devices, as its part of the batch of all hosts."""

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(self._batch_size)
            start = int(np.searchsorted(self._local, first))
            return local[(slice(start, start + last - first), *index[1:])]

        spec = PartitionSpec(*sharding.spec[: local.ndim])
        shape = (self._batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, NamedSharding(sharding.mesh, spec), shard)

    def close(self) -> None:
        """Stop making batches and wait for the threads."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check_divisible(batch_size: int, sharding: NamedSharding) -> None:
    axes = sharding.spec[0] if sharding.spec else None
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    devices = math.prod(sharding.mesh.shape[name] for name in names)
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        raise ValueError(
            "`batch_size` must be divisible by the number of devices that share it; got "
            f"{batch_size} and {devices} (mesh axes {', '.join(names)}). "
            f"Choose {f'{below} or ' if below else ''}{above}."
        )
