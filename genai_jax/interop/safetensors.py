"""The safetensors format: a header of names, types, shapes and offsets as JSON, then the bytes.

A file is read through memory maps, tensor by tensor, and needs neither PyTorch nor the package of
the format. Whatever the header says is checked before a byte of a tensor is touched.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # as the reference implementation has it
_METADATA = "__metadata__"

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}
"""NumPy's types by the names that the format gives them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsError(ValueError):
    """A file is not what the format says."""


class TensorEntry(NamedTuple):
    """What the header says of a tensor.

    Attributes:
        dtype: Its type, by the format's name, such as BF16.
        shape: Its shape; none for a scalar.
        begin: Its first byte, counted from the end of the header.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file; its tensors are read-only views of the memory map.

    Attributes:
        path: Of the file.
        entries: What there is, by name, in the order of the bytes.
        metadata: Texts by name that the writer has added.
    """

    def __init__(self, path: str | Path) -> None:
        """Read and check the header.

        Raises:
            SafetensorsError: If the file is cut off, the header is too long or not what the format
                says, a type is unknown, or tensors overlap, leave gaps or exceed the file.
            FileNotFoundError: If there is no file.
        """
        self.path = Path(path)
        header, start = _read_header(self.path)
        self.metadata = _check_metadata(self.path, header.pop(_METADATA, {}))
        entries = {name: _check_entry(self.path, name, said) for name, said in header.items()}
        self.entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        self._start = start
        _check_offsets(self.path, self.entries, self.path.stat().st_size - start)
        self._bytes = np.memmap(self.path, np.uint8, "r")

    def __getitem__(self, name: str) -> np.ndarray:
        """View a tensor.

        Raises:
            KeyError: If the file has none of this name.
        """
        entry = self.entries[name]
        data = self._bytes[self._start + entry.begin : self._start + entry.end]
        return data.view(np.ndarray).view(DTYPES[entry.dtype]).reshape(entry.shape)


def _fault(path: Path, rule: str, fix: str = "Fetch the file again.") -> SafetensorsError:
    return SafetensorsError(f"{path}: {rule}. {fix}")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Parse the header; give it and where the tensors begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_LENGTH_BYTES)
        if len(first) < _LENGTH_BYTES:
            raise _fault(path, f"a file must begin with 8 bytes of length; it has {size} in all")
        length = int.from_bytes(first, "little")
        if length > _MOST_HEADER_BYTES:
            raise _fault(
                path, f"a header must have at most {_MOST_HEADER_BYTES:,} bytes; got {length:,}"
            )
        if length > size - _LENGTH_BYTES:
            raise _fault(
                path, f"the header is cut off: it should have {length:,} bytes, of {size:,} in all"
            )
        text = file.read(length)
    if not text.startswith(b"{"):
        raise _fault(path, f"a header must begin with '{{'; got {text[:1]!r}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise _fault(path, "the header is nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise _fault(path, f"the header is not valid: {error}") from error
    return header, _LENGTH_BYTES + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} stands twice")
        found[name] = value
    return found


def _check_metadata(path: Path, said: Any) -> dict[str, str]:
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise _fault(path, f"`{_METADATA}` must hold texts by name; got {str(said)[:80]}")
    return said


def _check_entry(path: Path, name: str, said: Any) -> TensorEntry:
    """Check what the header says of one tensor, by itself."""
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fault(
            path, f"tensor {name[:80]!r} must have dtype, shape and data_offsets; got {said!r:.80}"
        )
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _fault(
            path,
            f"tensor {name[:80]!r} has the type {dtype!r:.80}, which is not known",
            f"Known are {', '.join(DTYPES)}.",
        )
    if not _are_counts(shape):
        raise _fault(path, f"tensor {name[:80]!r} must have a shape of counts; got {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _fault(path, f"tensor {name[:80]!r} must have two offsets; got {offsets!r:.80}")
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise _fault(
            path,
            f"tensor {name[:80]!r} must have {expected:,} bytes as {dtype} of shape {shape!r:.80}; "
            f"its offsets {begin} and {end} give {end - begin:,}",
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_counts(said: Any) -> bool:
    """Whether something is a list of whole numbers that are not negative (a bool is none)."""
    return isinstance(said, list) and all(type(n) is int and 0 <= n < 2**63 for n in said)


def _check_offsets(path: Path, entries: Mapping[str, TensorEntry], size: int) -> None:
    """Check that tensors follow each other without overlap or gap, to the end of the file."""
    reached, before = 0, "the header"
    for name, entry in entries.items():
        if entry.begin != reached:
            kind = "overlap" if entry.begin < reached else "leave a gap"
            raise _fault(
                path,
                f"{before} and tensor {name[:80]!r} {kind}: the first ends at {reached}, "
                f"the second begins at {entry.begin}",
            )
        reached, before = entry.end, f"tensor {name[:80]!r}"
    if reached != size:
        rule = "is cut off" if reached > size else "has bytes that belong to no tensor"
        raise _fault(path, f"the file {rule}: tensors take {reached:,} bytes of {size:,}")


class Outgoing(NamedTuple):
    """A tensor to be written.

    Attributes:
        dtype: Its NumPy type.
        shape: Its shape.
        read: Gives its values; called once, when it is written.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Outgoing], metadata: Mapping[str, str]
) -> None:
    """Write a file, tensor by tensor in the order given; it appears when it is whole.

    Args:
        path: Where; an old file is replaced.
        tensors: By name.
        metadata: Texts by name; transformers wants `format` to be `pt`.

    Raises:
        SafetensorsError: If a type has no name in the format, or values are not as announced.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise SafetensorsError(
                f"tensor {name!r} has the type {tensor.dtype}, which the format has no name for. "
                f"Convert it to one of {', '.join(map(str, _NAMES))}."
            )
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that tensors begin at a multiple of 8 bytes
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for name, tensor in tensors.items():
                values = np.asarray(tensor.read(), order="C")
                if (values.dtype, values.shape) != (tensor.dtype, tensor.shape):
                    raise SafetensorsError(
                        f"tensor {name!r} was announced as {tensor.dtype} {tensor.shape}; "
                        f"got {values.dtype} {values.shape}."
                    )
                file.write(values.reshape(-1).view(np.uint8).data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
