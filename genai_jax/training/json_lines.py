"""Files that survive a kill: one JSON object a line, and text replaced in one stroke."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json_lines(path: Path) -> list[Record]:
    """Read the complete lines of a file; a partial last line, left by a kill, is not there.

    Raises:
        ValueError: If a complete line is not a JSON object, naming it.
    """
    return [record for record, _ in _lines(path)]


def _lines(path: Path) -> list[tuple[Record, int]]:
    """Records, each with the offset of its end."""
    found: list[tuple[Record, int]] = []
    end = 0
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        end += len(line)
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise ValueError(
                f"every line must be a JSON object; line {number} of {path} is not ({error}). "
                "Remove that line and those after it, or begin anew."
            ) from error
        found.append((record, end))
    return found


class JsonLines:
    """Append records to a file; every line is on its way to the disk when `append` returns.

    If the disk is full, lines wait in memory and are written, in order, as soon as there is room.
    Floats are written by `repr`, which gives the same double back. What is not finite becomes null.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        """Open nothing yet: the file is made by the first line.

        Args:
            path: The file.
            enabled: False makes every method do nothing (all processes but the first).
        """
        self.path = path
        self._enabled = enabled
        self._waiting = b""
        self._descriptor: int | None = None
        self._complained = False

    def cut(self, step: int) -> list[Record]:
        """Drop the lines after a step, and a partial last line.

        Args:
            step: The newest step whose lines may stay; lines are in the order of their steps.

        Returns:
            The lines that stay.
        """
        if not self.path.exists():
            return []
        kept = []
        end = 0
        for record, line_end in _lines(self.path):
            if record["step"] > step:
                break
            kept.append(record)
            end = line_end
        if self._enabled and self.path.stat().st_size != end:
            os.truncate(self.path, end)  # one system call: no kill can come between
        return kept

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        if self._enabled:
            self._waiting += json.dumps(finite, allow_nan=False).encode() + b"\n"
            self.flush()

    def flush(self, *, to_disk: bool = False) -> bool:
        """Write what waits; returns whether everything is written.

        Args:
            to_disk: Also wait until the disk has it, so that it outlives a power failure.
        """
        if not self._enabled:
            return True
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._descriptor = os.open(self.path, flags, 0o666)
            while self._waiting:  # a disk that fills up takes a part of a line
                written = os.write(self._descriptor, self._waiting)
                self._waiting = self._waiting[written:]
            if to_disk:
                os.fsync(self._descriptor)
        except OSError as error:
            if not self._complained:
                print(
                    f"WARNING: {self.path} cannot be written ({error}). Its lines wait in memory, "
                    "and no checkpoint is saved before they are written.",
                    file=sys.stderr,
                    flush=True,
                )
            self._complained = True
            return False
        self._complained = False
        return True

    def close(self) -> None:
        """Write what waits and close the file."""
        if self._waiting:
            self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
