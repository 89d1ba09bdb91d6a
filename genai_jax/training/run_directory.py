"""A run is a directory: who may write it, what belongs to it, and whether it may be continued.

config.json      the resolved configuration, and digests of the data and the tokenizer
metrics.jsonl    functions of (configuration, step) only: equal runs have equal bytes
timing.jsonl     whatever the clock says
checkpoints/  ema/  plots/  samples/  tokenizer/  chat/  origin/  profile/  tensorboard/  wandb/
lock             held by the process that writes, and let go by the kernel when it dies
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from zlib import crc32

import jax
from jax.experimental import multihost_utils

from genai_jax.training.json_lines import JsonLines, write_atomically
from genai_jax.training.saved_config import differences, to_json, with_new_fields

try:
    import fcntl
except ImportError:  # not a Unix: two processes in one directory go unnoticed
    fcntl = None  # type: ignore[assignment]

_CONFIG = "config.json"
_LOCK = "lock"
_FOLDERS = (
    *("checkpoints", "ema", "plots", "samples", "tokenizer", "chat", "origin"),
    *("profile", "tensorboard", "wandb"),
)
# The last two: what a run of preferences, and one of a reward model, have computed and keep.
_FILES = ("metrics.jsonl", "timing.jsonl", "reference.npz", "reward_scale.json")
# Some network file systems have no locks: there, too, two processes go unnoticed.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "genai_jax")


class RunError(ValueError):
    """A directory that must not be written by this run; nothing in it was changed."""


class RunDirectory:
    """An open run. Close it, or use it in a `with`, to let go of its lock.

    Attributes:
        path: The directory.
        config: The resolved configuration, as JSON.
        identity: Digests of what the run was made from, by name ("data", "tokenizer").
        resumed: Whether the directory already held this run.
        metrics: `metrics.jsonl`; only the first process writes.
        timing: `timing.jsonl`; only the first process writes.
    """

    def __init__(self, path: Path, config: Any, *, resumed: bool, lock: IO[str] | None) -> None:
        """Wrap a directory that `open_run` has prepared."""
        self.path = path
        self.config = config
        self.identity: dict[str, str] = _read_config(path)["identity"] if resumed else {}
        self.resumed = resumed
        is_writer = jax.process_index() == 0
        self.metrics = JsonLines(path / "metrics.jsonl", enabled=is_writer)
        self.timing = JsonLines(path / "timing.jsonl", enabled=is_writer)
        self._is_writer = is_writer
        self._lock = lock

    def folder(self, name: str) -> Path:
        """Path of one of the folders of a run, which need not exist yet."""
        if name not in _FOLDERS:
            raise ValueError(f"a run has the folders {', '.join(_FOLDERS)}; got {name!r}")
        return self.path / name

    def require_identity(self, identity: Mapping[str, str]) -> None:
        """Record what the run is made from, or refuse it if a resumed run was made from other.

        Args:
            identity: Digests by name, such as `{"data": ..., "tokenizer": ...}`.

        Raises:
            RunError: Naming what has changed.
        """
        recorded = self.identity
        changed = [
            name for name in identity if recorded.get(name, identity[name]) != identity[name]
        ]
        if changed:
            lines = [f"  {n}: {recorded[n][:16]} -> {identity[n][:16]}" for n in changed]
            raise RunError(
                f"a run must be resumed with what it was begun with, but in {self.path} the "
                f"{' and the '.join(changed)} changed (digests):\n"
                + "\n".join(lines)
                + "\nGive what it had before, another --workdir, or --overwrite to begin anew."
            )
        self.identity = {**recorded, **identity}
        if self._is_writer and self.identity != recorded:
            _write_config(self.path, self.config, self.identity)

    def provenance(self) -> dict[str, Any]:
        """Say where a checkpoint comes from: commit, versions, digests. JSON, without times."""
        versions = {}
        for name in _PACKAGES:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return {
            "commit": source_commit(),
            "versions": versions,
            "identity": self.identity,
            "config_crc32": crc32(json.dumps(self.config, sort_keys=True).encode()),
            "device": jax.devices()[0].device_kind,
        }

    def close(self) -> None:
        """Close the files and let go of the lock."""
        self.metrics.close()
        self.timing.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def open_run(
    workdir: str | os.PathLike[str],
    config: Any,
    *,
    overwrite: bool = False,
    identity: Mapping[str, str] | None = None,
    observational: Collection[str] = (),
) -> RunDirectory:
    """Open the directory of a run: new, or to be resumed, or refused.

    Args:
        workdir: The directory; made where it is missing.
        config: Frozen dataclasses, nested at will.
        overwrite: Begin anew: delete what a run directory consists of, and no other file.
        identity: Digests of the data and the tokenizer; may follow by `require_identity`.
        observational: Dotted names of fields that change nothing in the numbers (`log_every`,
            `workdir`): they may differ from one start to the next.

    Returns:
        The open run, locked for this process.

    Raises:
        RunError: If the directory belongs to another run (with a list of the fields that differ),
            holds files but no run, is being written by another process, or cannot be written.
    """
    path = Path(workdir)
    resolved = to_json(config)
    resumed, lock = False, None
    if jax.process_index() == 0:
        try:
            resumed, lock = _prepare(path, config, overwrite, observational)
        except OSError as error:
            raise RunError(
                f"--workdir must be a directory that can be written; {path} gives: {error}"
            ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("open_run")
        resumed = bool(multihost_utils.broadcast_one_to_all(resumed))
    run = RunDirectory(path, resolved, resumed=resumed, lock=lock)
    try:
        run.require_identity(identity or {})
    except BaseException:
        run.close()
        raise
    return run


def _prepare(
    path: Path, config: Any, overwrite: bool, observational: Collection[str]
) -> tuple[bool, IO[str] | None]:
    """Check, lock and clear the directory; returns whether a run is resumed, and the lock."""
    resolved = to_json(config)
    if path.is_dir() and not (path / _CONFIG).exists():
        # A start that was killed may have left these two.
        others = {p.name for p in path.iterdir()} - {_LOCK, _CONFIG + ".tmp"}
        if others:
            shown = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
            raise RunError(
                f"--workdir must be empty, missing, or hold a run; {path} holds {shown} and no "
                f"{_CONFIG}. Nothing was touched. Choose another directory."
            )
    path.mkdir(parents=True, exist_ok=True)
    lock = _take_lock(path)
    try:
        if not (path / _CONFIG).exists():
            _write_config(path, resolved, {})
            return False, lock
        _read_config(path)  # many a folder holds a config.json: only a run is touched
        # One that was refused its data, say, has nothing to lose: its options may be put right.
        begun = (path / "checkpoints").exists() or (path / "metrics.jsonl").exists()
        if overwrite or not begun:
            _clear(path)
            _write_config(path, resolved, {})
            return False, lock
        _refuse_changes(path, config, observational)
    except BaseException:
        if lock is not None:
            lock.close()
        raise
    return True, lock


def _take_lock(path: Path) -> IO[str] | None:
    # The kernel lets go of it when the process ends, however it ends; the file itself stays.
    lock = open(path / _LOCK, "a")  # noqa: SIM115
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(
                f"one process at a time may write a run; another one is writing {path}. "
                "Wait for it, stop it, or choose another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                lock.close()
                raise
    return lock


def _refuse_changes(path: Path, config: Any, observational: Collection[str]) -> None:
    saved = with_new_fields(type(config), _read_config(path)["config"])
    changes = differences(saved, to_json(config), exempt=observational)
    if changes:
        raise RunError(
            f"a run must be resumed with the configuration that it was begun with; {path} has\n"
            + "\n".join(f"  {line}" for line in changes)
            + "\nSet these back, choose another --workdir, or give --overwrite to delete that run "
            "and begin anew."
        )


def _clear(path: Path) -> None:
    """Delete the parts of a run. config.json stays until it is replaced by the new one."""
    # First, and in one stroke: a kill from here on leaves a run without checkpoints, which begins
    # again at step 0 whatever else was left.
    doomed = path / "checkpoints.deleted"
    for _ in range(2):  # the second time for one that a killed --overwrite left behind
        if doomed.exists() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        if (path / "checkpoints").is_dir() and not (path / "checkpoints").is_symlink():
            (path / "checkpoints").rename(doomed)
    for name in (*_FILES, *_FOLDERS):
        part = path / name
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _write_config(path: Path, config: Any, identity: Mapping[str, str]) -> None:
    text = json.dumps({"config": config, "identity": dict(identity)}, indent=2, allow_nan=False)
    write_atomically(path / _CONFIG, text + "\n")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        for part in ("config", "identity"):
            if not isinstance(saved[part], dict):
                raise TypeError(f"`{part}` is not an object")
    except FileNotFoundError:
        raise RunError(f"a run has a {_CONFIG}; there is none in {path}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path / _CONFIG} must be the configuration of a run; it is not "
            f"({type(error).__name__}: {error}). Nothing was touched. Restore it, or choose "
            "another --workdir."
        ) from error
    return saved


def read_run(workdir: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the configuration and the identity of a run, without locking it.

    Returns:
        The configuration as JSON (`saved_config.from_json` makes dataclasses of it), and the
        digests by name.

    Raises:
        RunError: If there is no run.
    """
    saved = _read_config(Path(workdir))
    return saved["config"], saved["identity"]


def source_commit() -> str | None:
    """The Git commit of this package's source, with "+changes" if edited; None outside of Git."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a virtual environment inside another's repo
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
