"""Tokenizers: bytes, characters, and two kinds of subwords. All of them are lossless.

`decode(encode(text)) == text` for every text that a tokenizer encodes at all, to the last space and
newline; so bits per byte can be compared between them, and a corpus can be read back from tokens.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import sentencepiece
from jaxtyping import Int32

Kind = Literal["bytes", "characters", "bpe", "unigram"]
Ids = Int32[np.ndarray, " n"]

DESCRIPTION = "tokenizer.json"
MODEL = "tokenizer.model"
_SPACE = "\u2581"  # stands for a space inside of SentencePiece
EOT = "<|endoftext|>"
# The time of SentencePiece's BPE grows faster than the length of the text.
_SEGMENT_CHARACTERS = 1 << 14


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer has.

    Attributes:
        kind: Its name in `train_tokenizer`.
        vocab_size: Number of ids, 0 ... vocab_size - 1.
        eot_id: The id that stands between documents, which no text encodes to; None if there is
            none, since the text is one.
        begin_ids: Ids that every text begins with.
        end_ids: Ids that end what a model writes.
        special_ids: Ids that no text encodes to, by what they are called.
        digest: SHA-256 of all that determines the ids, in hexadecimal.
        pieces: The bytes that each id stands for; none for a special one.
    """

    kind: str
    vocab_size: int
    eot_id: int | None
    begin_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    special_ids: Mapping[str, int]
    digest: str

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; none for a special one."""
        ...

    def encode(self, text: str) -> Ids:
        """Turn text into ids."""
        ...

    def encode_parts(self, parts: Sequence[str | int]) -> Ids:
        """Turn a text that special ids stand in into ids; no two strings are neighbours."""
        ...

    def find_id(self, name: str) -> int | None:
        """Find the id that stands for a control, special or not by the file's own word."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Turn texts into ids: the same as `encode` of each, but faster."""
        ...

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Turn ids into the bytes that they stand for; `eot_id` stands for none."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Turn ids into text; what is not UTF-8 (half a character) becomes U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write it into a folder, for `load_tokenizer`."""
        ...


class TableTokenizer:
    """What follows from a table of the bytes that each id stands for."""

    kind: str
    digest: str

    def __init__(
        self, pieces: Sequence[bytes], eot_id: int | None, specials: Sequence[str] = ()
    ) -> None:
        first = len(pieces)
        self._pieces = (*pieces, *[b""] * len(specials))
        self.vocab_size = len(self._pieces)
        self.eot_id = eot_id
        ends: tuple[int, ...] = () if eot_id is None else (eot_id,)
        self.begin_ids = self.end_ids = ends
        self.special_ids: Mapping[str, int] = {
            **({} if eot_id is None else {EOT: eot_id}),
            **{name: first + number for number, name in enumerate(specials)},
        }

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; none for a special one."""
        return self._pieces

    def encode(self, text: str) -> Ids:
        """Turn text into ids."""
        raise NotImplementedError

    def encode_parts(self, parts: Sequence[str | int]) -> Ids:
        """Turn a text that special ids stand in into ids; no two strings are neighbours."""
        encoded = iter(self.encode_batch([part for part in parts if isinstance(part, str)]))
        ids = [next(encoded) if isinstance(part, str) else np.array([part]) for part in parts]
        return np.concatenate([[], *ids]).astype(np.int32)

    def find_id(self, name: str) -> int | None:
        """Find the id that stands for a control."""
        return self.special_ids.get(name)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Turn texts into ids."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """Turn ids into the bytes that they stand for."""
        return b"".join(map(self._pieces.__getitem__, np.asarray(ids).tolist()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Turn ids into text."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def _save(self, folder: Path, **description: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"kind": self.kind, **description}, ensure_ascii=True)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


class ByteTokenizer(TableTokenizer):
    """The 256 bytes of UTF-8 as ids 0 ... 255, 256 for the end of a document, if any; specials."""

    kind = "bytes"

    def __init__(self, *, end_of_text: bool = True, specials: Sequence[str] = ()) -> None:
        eot = [b""] if end_of_text else []
        eot_id = 256 if end_of_text else None
        super().__init__([bytes([i]) for i in range(256)] + eot, eot_id, specials)
        self._specials = list(specials)
        self.digest = digest_of(self.kind, self.eot_id, *specials)

    def encode(self, text: str) -> Ids:
        """Turn text into the bytes of its UTF-8."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        specials = {"specials": self._specials} if self._specials else {}
        self._save(folder, end_of_text=self.eot_id is not None, **specials)


class CharacterTokenizer(TableTokenizer):
    """The characters of a text, sorted, as ids; the next ends a document, if there are any.

    A character that the text does not hold cannot be encoded; that is an error.
    """

    kind = "characters"

    def __init__(
        self, characters: str, *, end_of_text: bool = True, specials: Sequence[str] = ()
    ) -> None:
        if not characters or list(characters) != sorted(set(characters)):
            raise ValueError(
                "`characters` must be distinct, sorted and at least one; got "
                f"{characters[:20]!r}. Train on a text that is not empty."
            )
        eot = [b""] if end_of_text else []
        eot_id = len(characters) if end_of_text else None
        super().__init__([c.encode("utf-8") for c in characters] + eot, eot_id, specials)
        self.characters = characters
        self._specials = list(specials)
        self._points = np.array([ord(c) for c in characters], np.uint32)
        self.digest = digest_of(self.kind, characters, self.eot_id, *specials)

    def encode(self, text: str) -> Ids:
        """Turn text into ids, one for each character.

        Raises:
            ValueError: If it holds a character that the vocabulary lacks.
        """
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        unknown = points[self._points[ids] != points]
        if unknown.size:
            raise ValueError(
                f"every character must be one of the {len(self._points)} of the training text; "
                f"got {chr(unknown[0])!r}. Write without it, or train with another tokenizer "
                "(bytes or bpe take any text)."
            )
        return ids.astype(np.int32)

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        specials = {"specials": self._specials} if self._specials else {}
        end_of_text = self.eot_id is not None
        self._save(folder, characters=self.characters, end_of_text=end_of_text, **specials)


class SubwordTokenizer(TableTokenizer):
    """Pieces of words and runs of spaces, by SentencePiece; other characters are spelt in bytes.

    Nothing is normalised, added or stripped. SentencePiece itself loses one character, U+2581,
    which it uses for the space; here it is spelt in bytes, like any character without a piece.

    Attributes:
        model_bytes: SentencePiece's own file.
    """

    def __init__(self, model: bytes, kind: Literal["bpe", "unigram"]) -> None:
        self.kind = kind
        self.model_bytes = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        eot_id = self._processor.eos_id()
        size = self._processor.get_piece_size()
        pieces = [piece_bytes(self._processor, token) for token in range(size)]
        super().__init__(pieces, eot_id if eot_id >= 0 else None)
        controls = filter(self._processor.is_control, range(size))
        self.special_ids = {self._processor.id_to_piece(token): token for token in controls}
        self._space_ids = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()
        ]
        self.digest = digest_of(kind, hashlib.sha256(model).hexdigest())

    def encode(self, text: str) -> Ids:
        """Turn text into ids."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Turn texts into ids, on as many threads as there are cores."""
        parts = [
            [list(cut_text(run, _SEGMENT_CHARACTERS)) for run in text.split(_SPACE)]
            for text in texts
        ]
        segments = [segment for runs in parts for run in runs for segment in run]
        threads = min(os.cpu_count() or 1, 16)
        encoded = iter(self._processor.encode(segments, num_threads=threads) if segments else [])
        batch = []
        for runs in parts:
            ids: list[int] = []
            for number, run in enumerate(runs):
                ids += self._space_ids if number else []
                for _ in run:
                    ids += next(encoded)
            batch.append(np.array(ids, np.int32))
        return batch

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        self._save(folder)
        (folder / MODEL).write_bytes(self.model_bytes)


def piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """Give the bytes that an id of SentencePiece stands for."""
    if processor.is_control(token) or processor.is_unknown(token):
        return b""
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace(_SPACE, " ").encode("utf-8")


def digest_of(*parts: object) -> str:
    """Compute the SHA-256 of numbers and texts, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Cut text into parts of at most `limit` characters, after a line's end if there is one."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1
        end = end if end > start else start + limit
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
