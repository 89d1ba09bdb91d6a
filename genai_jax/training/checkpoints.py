"""Checkpoints: the only file that knows Orbax.

A checkpoint is `checkpoints/<step>/`: the state in the storage format, and a manifest with the
shape, dtype and CRC-32 of every array and the provenance of the run. It is written in the
background below a temporary name and renamed when it is whole, so a name made of digits is a
finished checkpoint. Reading checks every array against the manifest.
"""

import contextlib
import itertools
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from genai_jax.training import storage
from genai_jax.types import PyTree

_MANIFEST = Path("manifest", "manifest.json")
_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"
_LEAST_PART = 2**20  # bytes that are worth being written beside others
# What these words are in is the machine's trouble, not the checkpoint's: it stays where it is.
_NOT_DAMAGE = (
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "Permission denied",
    "Too many open files",
)


class DamagedCheckpoint(Exception):
    """A checkpoint whose files are not what was written."""


def _crc32(array: jax.Array | np.ndarray) -> int | None:
    """CRC-32 of the values in C order; None where other hosts hold a part of them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _checksums(flat: dict[str, Any]) -> dict[str, int | None]:
    with ThreadPoolExecutor() as pool:  # zlib lets go of the interpreter
        return dict(zip(flat, pool.map(_crc32, flat.values()), strict=True))


def _seal(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _make_manifest(step: int, flat: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    checksums = _checksums(flat)
    manifest = {
        "step": step,
        "provenance": provenance,
        "arrays": {
            name: {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": checksums[name]}
            for name, x in flat.items()
        },
    }
    return manifest | {"crc32": _seal(manifest)}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and verify the manifest of the checkpoint in a directory.

    Returns:
        `{"step", "provenance", "arrays": {name: {"shape", "dtype", "crc32"}}, "crc32"}`.

    Raises:
        DamagedCheckpoint: If it is missing, unreadable or altered, or if the checkpoint holds
            symbolic links, which could lead a reader to files outside of it.
    """
    try:
        if any(path.is_symlink() for path in directory.rglob("*")):
            raise DamagedCheckpoint("it holds symbolic links")
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("crc32") != _seal(manifest):
            raise DamagedCheckpoint("its manifest was altered")
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"its manifest cannot be read ({error})") from error
    return manifest


def _own_copies(flat: dict[str, Any], tree: PyTree) -> dict[str, Any]:
    """Copy whatever the step could overwrite while the save is still being written.

    The step donates its state. On an accelerator Orbax has copied everything to the host by the
    time that `save` returns. On a CPU "the host's copy" is the array itself.
    """
    borrowed = {id(leaf) for leaf in jax.tree.leaves(tree)}
    return {
        name: jnp.copy(x) if id(x) in borrowed and next(iter(x.devices())).platform == "cpu" else x
        for name, x in flat.items()
    }


def _everyone(verdict: bool) -> bool:
    """Whether all processes say yes."""
    if jax.process_count() == 1:
        return verdict
    return bool(np.all(multihost_utils.process_allgather(np.array(verdict))))


def _handler() -> Any:
    # Orbax cuts a replicated array into a part for every device: small ones take far longer so.
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_PART)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        manifest=ocp.JsonCheckpointHandler(filename=_MANIFEST.name),
    )


def finished_steps(directory: Path) -> list[int]:
    """List the steps of the checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def _read_arrays(
    orbax: Any, directory: Path, wanted: dict[str, jax.ShapeDtypeStruct], *, part: bool = False
) -> dict[str, Any]:
    """Read the arrays of a checkpoint, or a part of them, and check them by its manifest.

    A part is all below the words that the wanted names with the same first word begin with, in the
    dtypes that it was saved in.
    """
    manifest = read_manifest(directory)
    arrays = manifest["arrays"]
    described = {
        name: jax.ShapeDtypeStruct(x["shape"], jnp.dtype(x["dtype"])) for name, x in arrays.items()
    }
    if part:
        folders = tuple(_folder_of(wanted, first) for first in {x.split("/")[0] for x in wanted})
        described = {name: x for name, x in described.items() if name.startswith(folders)}
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, described.get(name, x).dtype, sharding=x.sharding)
            for name, x in wanted.items()
        }
    storage.check_layout(described, wanted)
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=part,
    )
    try:
        items = ocp.args.Composite(state=arguments)
        flat = orbax.restore(directory, args=items)["state"]
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if any(words in str(error) for words in _NOT_DAMAGE):
            raise
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedCheckpoint(f"its arrays cannot be read ({message[0][:200]})") from error
    for name, crc32 in _checksums(flat).items():
        if crc32 is not None and arrays[name]["crc32"] not in (None, crc32):
            raise DamagedCheckpoint(f"`{name}` is not what was written (CRC-32 differs)")
    return flat


def _folder_of(names: Collection[str], first: str) -> str:
    """Give the words, each with its slash, that all names with a first word begin with."""
    words = [name.split("/")[:-1] for name in names if name.split("/")[0] == first]
    shared = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False))
    return "".join(f"{each[0]}/" for each in shared)


def load_part(directory: Path, like: PyTree) -> tuple[int, PyTree] | None:
    """Read some of the arrays of the newest checkpoint that is whole; changes nothing on the disk.

    Args:
        directory: Where the checkpoints are.
        like: The part, by the names that it has in the state: `{"model": model}`; arrays or
            `jax.ShapeDtypeStruct`s with shardings. Values are cast to its dtypes.

    Returns:
        The step and the part, or None where there is no good checkpoint.

    Raises:
        StorageError: If the newest whole checkpoint has no such part, or one of other shapes.
    """
    for step in reversed(finished_steps(directory)):
        try:
            return step, load_step(directory, step, like)
        except DamagedCheckpoint as error:
            print(f"WARNING: checkpoint {step} is damaged: {error}", file=sys.stderr)
    return None


def load_step(directory: Path, step: int, like: PyTree) -> PyTree:
    """Read some of the arrays of one checkpoint, as `load_part` does.

    Raises:
        DamagedCheckpoint: If it is not what was written.
        StorageError: If it has no such part, or one of other shapes.
    """
    wanted = storage.storage_like(like)
    with contextlib.closing(ocp.Checkpointer(_handler())) as orbax:
        flat = _read_arrays(orbax, directory.absolute() / str(step), wanted, part=True)
    flat = {name: x.astype(wanted[name].dtype) for name, x in flat.items()}
    return storage.from_storage(flat, like)


class Checkpoints:
    """The newest `keep` checkpoints of a run, or all of them, written in the background.

    A save that fails (disk full, directory replaced, ...) warns on stderr, is noted in `failures`
    and leaves the older checkpoints alone; training goes on and the next save tries again. Older
    checkpoints are deleted only once a newer one is committed and its manifest was read back.

    Attributes:
        failures: Messages of the saves that failed, oldest first.
    """

    def __init__(
        self, directory: Path, *, keep: int | None = 2, provenance: dict[str, Any] | None = None
    ) -> None:
        """Open a directory of checkpoints, made at the first save.

        Args:
            directory: Where they are; removes what killed saves left behind.
            keep: How many to keep, at least 1; None keeps all. With 1 there is none to fall back
                to.
            provenance: What goes into each manifest; JSON.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"`keep` must be at least 1; got {keep}. Choose 2 to have a reserve.")
        self.directory = directory.absolute()
        self.keep = keep
        self.provenance = provenance or {}
        self.failures: list[str] = []
        self._pending: int | None = None
        self._is_writer = jax.process_index() == 0
        # Orbax tells absl's log all about what is raised or warned of here.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._orbax = ocp.AsyncCheckpointer(_handler())
        self._remove_leftovers()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return finished_steps(self.directory)

    def save(self, step: int, state: PyTree) -> bool:
        """Begin to save a state; returns when it may be donated.

        Args:
            step: Completed updates. A step that is already saved is left as it is.
            state: Any pytree of arrays.

        Returns:
            Whether the save was begun (or need not be).
        """
        self.wait()
        if step in self.steps():
            return True
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            flat = _own_copies(storage.to_storage(state), state)
            manifest = _make_manifest(step, flat, self.provenance)
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(flat), manifest=ocp.args.JsonSave(manifest)
            )
            self._orbax.save(self.directory / str(step), args=items)
        except Exception as error:
            self._failed(step, error)
            return False
        self._pending = step
        return True

    def poll(self) -> None:
        """Notice, without waiting, whether the save under way has ended or failed."""
        if self._pending is None:
            return
        try:
            self._orbax.check_for_errors()
        except Exception as error:
            self._failed(self._pending, error)
        else:
            if (self.directory / str(self._pending)).exists():
                self.wait()

    def wait(self) -> None:
        """Wait for the save under way; then delete what is older than the newest `keep`."""
        if self._pending is None:
            return
        step = self._pending
        try:
            self._orbax.wait_until_finished()
            read_manifest(self.directory / str(step))
        except Exception as error:
            self._failed(step, error)
            return
        self._pending = None
        if self._is_writer and self.keep is not None:
            for old in self.steps()[: -self.keep]:
                self._delete(self.directory / str(old))

    def restore(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Read the newest checkpoint that is whole into the shardings of `like`.

        Damaged ones are moved to `<step>.damaged`, said on stderr, and the one before is tried.

        Args:
            like: A state, or its `jax.ShapeDtypeStruct`s with shardings.

        Returns:
            The step and the state, or None where no good checkpoint is left.

        Raises:
            StorageError: If the newest whole checkpoint belongs to another model or optimizer.
        """
        self.wait()
        for step in reversed(self.steps()):
            directory = self.directory / str(step)
            damage: Exception | None = None
            flat: dict[str, Any] = {}
            try:
                flat = _read_arrays(self._orbax, directory, storage.storage_like(like))
            except DamagedCheckpoint as error:
                damage = error
            if _everyone(damage is None):
                return step, storage.from_storage(flat, like)
            self._set_aside(directory, damage)
        return None

    def close(self) -> None:
        """Wait for the save under way and let go of Orbax's threads."""
        self.wait()
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _set_aside(self, directory: Path, damage: Exception | None) -> None:
        names = (
            directory.name + ".damaged" + end for end in ("", *(f"-{i}" for i in range(2, 99)))
        )
        aside = next(directory.with_name(x) for x in names if not directory.with_name(x).exists())
        if self._is_writer:
            directory.rename(aside)
        self._warn(
            f"checkpoint {directory} is damaged: {damage or 'another process says so'}. "
            f"It was moved to {aside.name}; going on from the one before."
        )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {directory.name}")

    def _failed(self, step: int, error: Exception) -> None:
        self._pending = None
        message = str(error).strip().splitlines() or [""]
        self.failures.append(f"step {step}: {type(error).__name__}: {message[0][:300]}")
        self._remove_leftovers()  # a full disk needs the room
        kept = self.steps()
        self._warn(
            f"no checkpoint of {self.failures[-1]}. Training goes on and the next save tries "
            f"again. Newest checkpoint: {kept[-1] if kept else 'none'}."
        )

    def _warn(self, message: str) -> None:
        if self._is_writer:
            print(f"WARNING: {message}", file=sys.stderr, flush=True)

    def _delete(self, directory: Path) -> None:
        # Renamed first: a kill halfway must not leave half a checkpoint below a finished name.
        doomed = directory.with_name(directory.name + _DELETED)
        try:
            directory.rename(doomed)
        except OSError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        if self._is_writer and self.directory.is_dir():
            for path in self.directory.iterdir():
                if _TEMPORARY in path.name or path.name.endswith(_DELETED):
                    shutil.rmtree(path, ignore_errors=True)
