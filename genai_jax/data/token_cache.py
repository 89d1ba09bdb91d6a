"""Text tokenised once: a folder of flat arrays that are mapped into memory, not read.

A folder is written under another name and renamed when it is whole, so that of two processes that
make the same one, either wins. What it should hold is written in it, with checksums; a folder that
is damaged is made again.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from genai_jax.data.fill_in_the_middle import find_sentinels, restore
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.tokenizers import Ids, Tokenizer

FORMAT = 1
_MANIFEST = "manifest.json"
_BATCH_BYTES = 1 << 22
_STALE_SECONDS = 7 * 24 * 3600
_CHECKED_BYTES = 1 << 30  # of larger files only the size is checked


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Documents as tokens.

    Attributes:
        tokens: All documents, one after the other.
        offsets: Where each begins, and the end of the last.
        byte_lengths: Bytes of text of each document.
        groups: A small number for each document, given when it was written.
        names: Of each document.
        tokenizer: What made the tokens.
        notes: Whatever else was written down, as JSON; `rearranged` if documents may be, to fill
            in the middle.
    """

    tokens: Integer[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " offsets"]
    byte_lengths: Int64[np.ndarray, " documents"]
    groups: Int64[np.ndarray, " documents"]
    names: tuple[str, ...]
    tokenizer: Tokenizer
    notes: dict[str, Any]

    def text(self, document: int) -> bytes:
        """Read back the text of a document."""
        start, end = self.offsets[document : document + 2]
        ids = self.tokens[start:end]
        if self.notes.get("rearranged"):
            ids = restore(ids, find_sentinels(self.tokenizer))
        return self.tokenizer.decode_bytes(ids)


def default_cache_folder() -> Path:
    """Name the folder for caches: `$XDG_CACHE_HOME/genai_jax`, or `~/.cache/genai_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genai_jax"


def open_folder(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Find the whole folder `root/key`, or make it.

    Args:
        root: Where such folders are.
        key: A name that says all that the content depends on: a digest.
        build: Writes the files into the empty folder that it is given.

    Raises:
        PermissionError: If nothing can be written there.
    """
    folder = root / key
    if _is_whole(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        scratch = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    except OSError as error:
        raise PermissionError(
            f"the cache must be a folder that can be written; {root} is not ({error.strerror}). "
            "Choose another with --data.cache-dir, or set XDG_CACHE_HOME."
        ) from error
    try:
        build(scratch)
        _seal(scratch)
        _install(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _sweep(root: Path) -> None:
    """Delete what writers that were killed have left, long ago."""
    for path in root.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _install(scratch: Path, folder: Path) -> None:
    """Rename a finished folder into place, unless another process was first."""
    while True:
        try:
            scratch.rename(folder)
            return
        except OSError:
            if _is_whole(folder):
                return
            if not folder.exists():
                raise
        # It is damaged: out of the way with it, by a rename, which happens once or not at all.
        with tempfile.TemporaryDirectory(prefix=".damaged.", dir=folder.parent) as aside:
            try:
                folder.rename(Path(aside) / folder.name)
            except FileNotFoundError:
                continue


def _seal(folder: Path) -> None:
    manifest = {
        path.relative_to(folder).as_posix(): _fingerprint(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return all(_fingerprint(folder / name) == expected for name, expected in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _fingerprint(path: Path) -> list[int]:
    """The size of a file and, unless it is huge, the CRC-32 of its content."""
    size = path.stat().st_size
    checksum = 0
    if size <= _CHECKED_BYTES:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def write_tokens(
    folder: Path,
    documents: Iterable[tuple[str, bytes, int]],
    tokenizer: Tokenizer,
    notes: Callable[[], dict[str, Any]] = dict,
    rearrange: Callable[[str, int], Ids | None] | None = None,
) -> None:
    """Tokenise documents into a folder.

    Args:
        folder: Exists, and is this function's own.
        documents: (name, text, group) of each; read once, and never all in memory.
        tokenizer: Documents get its `begin_ids` in front, or its `eot_id` where it has no others.
        notes: Asked at the end for what else is to be kept.
        rearrange: Given a text and its group, its ids if they are others than those of the text.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ends = () if tokenizer.eot_id is None else (tokenizer.eot_id,)
    head = np.array(tokenizer.begin_ids or ends, dtype)
    names: list[str] = []
    rows: list[tuple[int, int, int]] = []  # tokens, bytes, group
    with (folder / "tokens.bin").open("wb") as file:
        for batch in _batches(documents):
            texts = [text.decode("utf-8") for _, text, _ in batch]
            encoded = _encode(tokenizer, texts, [group for *_, group in batch], rearrange)
            for (name, text, group), ids in zip(batch, encoded, strict=True):
                head.tofile(file)
                ids.astype(dtype).tofile(file)
                names.append(name)
                rows.append((len(head) + len(ids), len(text), group))
    lengths, byte_lengths, groups = np.array(rows, np.int64).reshape(-1, 3).T
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "documents.npy", np.stack([byte_lengths, groups]))
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    description = {"format": FORMAT, "dtype": np.dtype(dtype).name, "notes": notes()}
    (folder / "tokens.json").write_text(json.dumps(description), encoding="utf-8")
    tokenizer.save(folder / "tokenizer")


def _encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    groups: Sequence[int],
    rearrange: Callable[[str, int], Ids | None] | None,
) -> list[Ids]:
    """Encode texts, rearranged or as they are."""
    if rearrange is None:
        return tokenizer.encode_batch(texts)
    found = [rearrange(text, group) for text, group in zip(texts, groups, strict=True)]
    plain = [text for text, ids in zip(texts, found, strict=True) if ids is None]
    encoded = iter(tokenizer.encode_batch(plain))
    return [next(encoded) if ids is None else ids for ids in found]


def _batches(
    documents: Iterable[tuple[str, bytes, int]],
) -> Iterator[list[tuple[str, bytes, int]]]:
    batch: list[tuple[str, bytes, int]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_tokens(folder: Path) -> TokenCache:
    """Map what `write_tokens` wrote into memory."""
    description = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    offsets = np.load(folder / "offsets.npy")
    byte_lengths, groups = np.load(folder / "documents.npy")
    path = folder / "tokens.bin"
    return TokenCache(
        # An empty file cannot be mapped.
        tokens=(
            np.memmap(path, description["dtype"], "r")
            if offsets[-1]
            else np.zeros(0, description["dtype"])
        ),
        offsets=offsets,
        byte_lengths=byte_lengths,
        groups=groups,
        names=tuple(json.loads((folder / "names.json").read_text(encoding="utf-8"))),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        notes=description["notes"],
    )
