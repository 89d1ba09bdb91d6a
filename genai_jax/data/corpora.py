"""Where text comes from: the documents of a source, in one fixed order.

A source is named by a string: `stdlib`, `reference`, `files:GLOB`, `tfds:NAME[:SPLIT]`,
`tasks[:SEED]` or `synthetic[:SEED]`. Its documents are raw bytes; `cleaning` makes text of them.
"""

import glob
import gzip
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genai_jax.data.prepared_sets import open_prepared_set
from genai_jax.data.tasks.plain_text import make_document, text_stamp

_NOT_THE_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_SNIFFED_BYTES = 8192
_TASK_DOCUMENTS = 8192
_SYNTHETIC_DOCUMENTS = 2048
_SYNTHETIC_BYTES = 4096


class Document(NamedTuple):
    """A piece of text that stands on its own.

    Attributes:
        name: Where it came from; unique within its source.
        text: Its bytes: raw as they are read, UTF-8 once they are cleaned.
    """

    name: str
    text: bytes


def read_documents(source: str, *, field: str = "text") -> Iterator[Document]:
    """Read the documents of a source, in an order that depends on nothing but the source.

    Args:
        source: One of
            `stdlib`, the source of Python's standard library without its tests, a document a file;
            `reference`, Python's language reference (`pydoc_data`), each paragraph once;
            `files:GLOB`, plain text (a document a file) or `.jsonl` (a document a line), also
            `.gz`; `**` matches any folders; a folder stands for all the text files in it;
            `tfds:NAME[:SPLIT]`, a prepared set of tensorflow-datasets;
            `tasks[:SEED]`, 5 MB of sentences that tell what the training tasks ask for;
            `synthetic[:SEED]`, 8 MiB of words that mean nothing.
        field: The name of the text in the objects of JSON lines and of tensorflow-datasets.

    Raises:
        ValueError: If there is no such source, or it holds something else than what it should.
        FileNotFoundError: If no file matches.
    """
    kind, _, rest = source.partition(":")
    if kind == "stdlib" and not rest:
        root = _library_root()
        return (Document(p.relative_to(root).as_posix(), p.read_bytes()) for p in _library_files())
    if kind == "reference" and not rest:
        return _reference_documents()
    if kind == "files" and rest:
        return _file_documents(rest, field)
    if kind == "tfds" and rest:
        return _tfds_documents(rest, field)
    if kind == "tasks" and (not rest or rest.isdecimal()):
        return _task_documents(int(rest or 0))
    if kind == "synthetic" and (not rest or rest.isdecimal()):
        return _synthetic_documents(int(rest or 0))
    raise ValueError(
        "a source must be stdlib, reference, files:GLOB, tfds:NAME[:SPLIT], tasks[:SEED] or "
        f"synthetic[:SEED]; got {source!r}. For text of your own write files:{rest or source}."
    )


def source_stamp(source: str) -> list[Any]:
    """Describe the state of a source without reading it: if its text changes, so does the stamp.

    For files these are their sizes and times, the time of the last change of the inode included,
    which no copying tool can set back.
    """
    kind, _, rest = source.partition(":")
    if kind == "stdlib":
        return [source, *file_stamps(_library_files())]
    if kind == "reference":
        import pydoc_data.topics

        return [source, *file_stamps([Path(pydoc_data.topics.__file__)])]
    if kind == "files":
        return [source, *file_stamps(matching_files(rest))]
    if kind == "tfds":
        folder = Path(_tfds_source(rest).dataset_info.data_dir)
        return [source, *file_stamps(sorted(p for p in folder.iterdir() if p.is_file()))]
    if kind == "tasks":
        return [source, text_stamp(int(rest or 0))]
    return [source, np.__version__]


def file_stamps(paths: Sequence[Path]) -> list[list[Any]]:
    """List name, size and times of files: what changes if their content does."""
    stats = [(str(path.absolute()), path.stat()) for path in paths]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats]


def _library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _library_files() -> list[Path]:
    root = _library_root()
    found: dict[str, Path] = {}
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in _NOT_THE_LIBRARY]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        found |= {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"the source `stdlib` needs Python's library as .py files; found none in {root}. "
            "Give text of your own: files:GLOB."
        )
    return [found[name] for name in sorted(found)]


def _reference_documents() -> Iterator[Document]:
    """The help topics of Python, each paragraph in the first topic that holds it only.

    Topics quote each other's pages whole. Unless each paragraph is kept once, before anything is
    split, a validation split would be a test of memory.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        kept = []
        for paragraph in re.split(r"\n\s*\n", topics[name].strip("\n")):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                kept.append(paragraph)
                seen.add(words)
        if kept:
            yield Document(name, ("\n\n".join(kept) + "\n").encode())


def matching_files(pattern: str) -> list[Path]:
    """List the files that a path, a folder or a glob stands for, sorted.

    Raises:
        FileNotFoundError: If there are none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if _is_visible(p.relative_to(path)) and _is_text(p)]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted((p for p in found if p.is_file()), key=lambda p: p.as_posix())
    if not files:
        what = "holds no text file" if path.is_dir() else "matches no file"
        raise FileNotFoundError(
            f"files:{pattern} {what}, seen from {Path.cwd()}. Check the path; "
            "** matches folders of any depth, as in files:books/**/*.txt."
        )
    return files


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _is_text(path: Path) -> bool:
    """Whether a file is text, by the rule of git: no NUL among its first bytes."""
    if not path.is_file():
        return False
    with _open(path) as file:
        try:
            return b"\0" not in file.read(_SNIFFED_BYTES)
        except (EOFError, OSError, zlib.error):
            return False


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _file_documents(pattern: str, field: str) -> Iterator[Document]:
    for path in matching_files(pattern):
        try:
            with _open(path) as file:
                if path.name.removesuffix(".gz").endswith(".jsonl"):
                    yield from _json_documents(path, file, field)
                else:
                    yield Document(path.as_posix(), file.read())
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} must be whole gzip data; {error}. Compress it again, or drop its `.gz`."
            ) from error


def _json_documents(path: Path, lines: Iterator[bytes], field: str) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        # Bytes that are not UTF-8 pass through, for the policy on them to judge.
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: each line must be one JSON object; {error}.") from error
        yield Document(where, _text_of(record, field, where))


def _text_of(record: Any, field: str, where: str) -> bytes:
    """The text of a record, as bytes."""
    value = record.get(field) if isinstance(record, dict) else None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        fields = ", ".join(map(str, record)) if isinstance(record, dict) else "no fields"
        what = f"`{field}` is {type(value).__name__}" if value is not None else f"no `{field}`"
        raise ValueError(
            f"{where}: the field `{field}` must hold text; found {what}. "
            f"There are: {fields}. Choose one with --data.field."
        )
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        return value.encode("utf-8", "surrogatepass")


def _tfds_source(spec: str) -> Any:
    """Open a prepared set of tensorflow-datasets by `NAME[:SPLIT]`, without TensorFlow."""
    name, _, split = spec.partition(":")
    return open_prepared_set(name, split or "train")


def _tfds_documents(spec: str, field: str) -> Iterator[Document]:
    source = _tfds_source(spec)
    for i in range(len(source)):
        where = f"tfds:{spec}[{i}]"
        yield Document(where, _text_of(source[i], field, where))


def _task_documents(seed: int) -> Iterator[Document]:
    for i in range(_TASK_DOCUMENTS):
        yield Document(f"tasks:{seed}[{i}]", make_document(seed, i).encode())


def _synthetic_documents(seed: int) -> Iterator[Document]:
    """Words of random letters, drawn as often as Zipf's law says; for runs that test machines."""
    random = np.random.RandomState(seed)  # its stream is frozen for ever, unlike a Generator's
    letters = random.randint(ord("a"), ord("z") + 1, size=(1 << 16, 8), dtype=np.uint8)
    lengths = random.randint(2, 9, size=len(letters))
    lexicon = [row[:n].tobytes() for row, n in zip(letters, lengths, strict=True)]
    cumulative = np.cumsum(1 / np.arange(1, len(lexicon) + 1))
    for number in range(_SYNTHETIC_DOCUMENTS):
        drawn = random.random_sample(_SYNTHETIC_BYTES // 3) * cumulative[-1]
        words = [lexicon[i] for i in np.searchsorted(cumulative, drawn)]
        yield Document(f"synthetic:{seed}[{number}]", b" ".join(words)[:_SYNTHETIC_BYTES])
