"""Tokenizers of other people's models: `tokenizer.json`, and SentencePiece's `tokenizer.model`.

They are used as they are, with whatever they do to a text first (Qwen's composes accents). Special
tokens of a `tokenizer.json`, and control symbols of SentencePiece, are never read out of a text:
what a user writes cannot end a document. SentencePiece's user-defined symbols are, as its file
says.
"""

import functools
import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from genai_jax.data.folders import inside, read_json
from genai_jax.data.tokenizers import (
    Ids,
    SubwordTokenizer,
    TableTokenizer,
    Tokenizer,
    digest_of,
    piece_bytes,
)

SAVED_FILE = "pretrained"
"""Name of a saved tokenizer's file, as it was, beside our description of it."""

_MOST_IDS = 10_000_000
_PROBE = "The quick brown fox:\n\tjumps over 12,345 lazy dogs? Größe 你好 🙂 x == y\n\n  end"


class PretrainedTokenizer(TableTokenizer):
    """A tokenizer from a file of another project.

    Attributes:
        content: Of the file.
        adds_space: Whether a text is encoded as if a space stood before it, as Llama 2's is.
    """

    def __init__(
        self,
        content: bytes,
        kind: str,
        *,
        eot_id: int | None,
        end_ids: Sequence[int],
        begin_ids: Sequence[int] | None = None,
        most_ids: int | None = None,
    ) -> None:
        """Read a tokenizer.

        Args:
            content: Of the file.
            kind: tokenizer.json or sentencepiece.
            eot_id: The id that stands between documents.
            end_ids: The ids that end what a model writes.
            begin_ids: The ids that every text begins with; None is as the file says.
            most_ids: Ids that the model has, where the file has more (Gemma 3's smallest models
                have no row for the id of images); a text that needs one of them is refused.

        Raises:
            ValueError: If the file is not a tokenizer, or of a kind whose ids do not stand for
                bytes of the text.
            ModuleNotFoundError: If the package that reads it is not installed.
        """
        if kind not in _ENGINES:
            raise ValueError(f"`kind` must be one of {', '.join(_ENGINES)}; got {kind!r}.")
        self.kind = kind
        self.content = content
        self._engine = _ENGINES[kind](content)
        super().__init__(self._engine.pieces[:most_ids], eot_id)
        self._most_ids = most_ids
        self.begin_ids = self._engine.begin_ids if begin_ids is None else tuple(begin_ids)
        self.end_ids = tuple(end_ids)
        named = self._engine.named.items()
        self._named = {text: token for text, token in named if token < self.vocab_size}
        specials = self._engine.special_ids
        self.special_ids = {text: x for text, x in self._named.items() if text in specials}
        for token in (*self.begin_ids, *self.end_ids, *(() if eot_id is None else (eot_id,))):
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    "an id that begins or ends texts must be from 0 to "
                    f"{self.vocab_size - 1}; got {token}."
                )
        self.digest = digest_of(
            kind, hashlib.sha256(content).hexdigest(), eot_id, *self.end_ids, *self.begin_ids
        )
        self.adds_space = self.decode_bytes(self._engine.encode(["x"])[0]) == b" x"
        self._check()

    def _check(self) -> None:
        """Check that the bytes that ids are said to stand for are those of the text."""
        found = self.decode(self.encode(_PROBE))
        if found != _PROBE:
            raise ValueError(
                "a tokenizer must be lossless: its ids must stand for the bytes of the text; this "
                f"one gives {found[:80]!r} for {_PROBE[:80]!r}. Tokenizers that change case, "
                "accents or spaces cannot be used here."
            )

    def encode(self, text: str) -> Ids:
        """Turn text into ids, none of them special."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Turn texts into ids."""
        return [self._checked(ids) for ids in self._engine.encode(list(texts))]

    def encode_parts(self, parts: Sequence[str | int]) -> Ids:
        """Turn a text that special ids stand in into ids; no two strings are neighbours.

        Where no string holds the text of a special id, these are the ids that the package of the
        file reads out of the whole text, at the boundaries too. The space that Llama 2's tokenizer
        adds comes before a string that is the first part only.

        Raises:
            ValueError: If a number is not the id of a control.
        """
        known = set(self._named.values())
        for part in parts:
            if not isinstance(part, str) and part not in known:
                raise ValueError(f"an id in a text must be that of a control; got {part}.")
        return self._checked(self._engine.encode_parts(parts))

    def find_id(self, name: str) -> int | None:
        """Find the id that stands for a control, special or not by the file's own word."""
        return self._named.get(name)

    def _checked(self, ids: list[int]) -> Ids:
        """Refuse ids that the model has no row for."""
        found = np.array(ids, np.int32)
        if found.size and found.max() >= self.vocab_size:
            raise ValueError(
                f"a text's ids must be below {self.vocab_size}, which the model has; got "
                f"{found.max()}. Write without it."
            )
        return found

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Turn the ids of a whole text into text: without the space that `encode` adds."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self.adds_space else text

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        ids = {"begin_ids": list(self.begin_ids), "end_ids": list(self.end_ids)}
        self._save(folder, eot_id=self.eot_id, most_ids=self._most_ids, **ids)
        (folder / SAVED_FILE).write_bytes(self.content)


# A field of SentencePiece's file, in the encoding of protocol buffers, where a later one overrides
# an earlier one: normalizer_spec (3) with add_dummy_prefix (3) false.
_ADD_NO_SPACE = bytes([3 << 3 | 2, 2, 3 << 3 | 0, 0])


class _SentencePiece:
    """SentencePiece's own file."""

    def __init__(self, content: bytes) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f"a SentencePiece model cannot be read: {error}") from error
        size = self._processor.get_piece_size()
        self.pieces = [piece_bytes(self._processor, token) for token in range(size)]
        begin = self._processor.bos_id()
        self.begin_ids = (begin,) if begin >= 0 else ()
        self.named = {self._processor.id_to_piece(token): token for token in range(size)}
        self.special_ids = {
            piece: token
            for piece, token in self.named.items()
            if self._processor.is_control(token) or self._processor.is_unknown(token)
        }
        self._content = content

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts) if texts else []

    @functools.cached_property
    def _inside(self) -> sentencepiece.SentencePieceProcessor:
        """The same, but for the space before a text."""
        return sentencepiece.SentencePieceProcessor(model_proto=self._content + _ADD_NO_SPACE)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(parts):
            processor = self._inside if number else self._processor
            ids += processor.encode(part) if isinstance(part, str) else [part]
        return ids


class _Tokenizers:
    """Hugging Face's file, by their package `tokenizers`."""

    def __init__(self, content: bytes) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "a tokenizer.json needs the package tokenizers, which is not installed. "
                "Install it: pip install -e '.[tokenizers]'."
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the package has no type of its own for its faults
            raise ValueError(f"a tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        around = self._tokenizer.encode("x").ids
        inside = self._tokenizer.encode("x", add_special_tokens=False).ids
        before = len(around) - len(inside)
        if around[before:] != inside:
            raise ValueError(
                "a tokenizer may put ids before a text only; this one puts some behind it. Remove "
                "them from the `post_processor` of its tokenizer.json."
            )
        self.begin_ids = tuple(around[:before])
        self._tokenizer.encode_special_tokens = True
        self.pieces = list(self._make_pieces(json.loads(content)))
        added = self._tokenizer.get_added_tokens_decoder()
        self.named = {x.content: token for token, x in added.items()}
        self.special_ids = {x.content: token for token, x in added.items() if x.special}
        self._added = added
        self._aliases: dict[int, str] = {}
        self._nonce = secrets.token_hex(16)

    def _make_pieces(self, said: dict[str, Any]) -> Iterator[bytes]:
        """Say which bytes each id stands for; special ones stand for none."""
        kinds = list(_decoder_kinds(said.get("decoder")))
        by_bytes = "ByteLevel" in kinds
        if not by_bytes and not {"ByteFallback", "Metaspace"} & set(kinds):
            raise ValueError(
                "a tokenizer's decoder must be ByteLevel, or have ByteFallback or Metaspace; got "
                f"{', '.join(kinds) or 'none'}. Its ids would not stand for bytes of the text."
            )
        added = self._tokenizer.get_added_tokens_decoder()
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if not 0 < size <= _MOST_IDS:
            raise ValueError(f"a tokenizer must have from 1 to {_MOST_IDS:,} ids; got {size:,}.")
        for token in range(size):
            piece = self._tokenizer.id_to_token(token) or ""
            if token in added and (added[token].special or by_bytes):
                yield b"" if added[token].special else piece.encode("utf-8")
            elif by_bytes:
                if not _BYTE_OF.keys() >= set(piece):
                    raise ValueError(
                        "a byte-level tokenizer has pieces of its 256 characters; got "
                        f"{piece!r:.80}."
                    )
                yield bytes(_BYTE_OF[character] for character in piece)
            elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                yield bytes([int(piece[3:5], 16)])
            else:
                yield piece.replace("\u2581", " ").encode("utf-8")

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [x.ids for x in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Give the whole text to the package, with a name for each id that nobody can guess."""
        import tokenizers

        new = {part for part in parts if not isinstance(part, str)} - self._aliases.keys()
        for token in sorted(new):
            # What it does to spaces beside it, it still does.
            sides = {"lstrip": self._added[token].lstrip, "rstrip": self._added[token].rstrip}
            alias = self._aliases[token] = f"[{self._nonce}:{token}]"
            self._tokenizer.add_tokens(
                [tokenizers.AddedToken(alias, special=False, normalized=False, **sides)]
            )
        text = "".join(part if isinstance(part, str) else self._aliases[part] for part in parts)
        own = {self._tokenizer.token_to_id(alias): token for token, alias in self._aliases.items()}
        (ids,) = self.encode([text])
        return [own.get(token, token) for token in ids]


_ENGINES: dict[str, type[_Tokenizers | _SentencePiece]] = {
    "tokenizer.json": _Tokenizers,
    "sentencepiece": _SentencePiece,
}
_NAMES = {"tokenizer.json": "tokenizer.json", "sentencepiece": "tokenizer.model"}
KINDS = tuple(_ENGINES)
"""What they may be read from."""


def _decoder_kinds(decoder: Any) -> Iterator[str]:
    """List what a decoder consists of."""
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for part in decoder.get("decoders", ()):
            yield from _decoder_kinds(part)


def _printable_bytes() -> dict[str, int]:
    """Give the character that stands for each byte in byte-level vocabularies.

    Bytes that print stand for themselves; the others are counted from U+0100 on.

    Reference: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2),
        section 2.2; the table is of its released vocabulary.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    table = {chr(byte): byte for byte in printing}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _printable_bytes()


def load_pretrained_tokenizer(folder: Path, most_ids: int | None = None) -> PretrainedTokenizer:
    """Read the tokenizer of a folder of Hugging Face's: `tokenizer.json`, else `tokenizer.model`.

    What ends a text is `eos_token_id` of `generation_config.json`, else of `config.json`. Whether
    something begins it is up to the file, unless `tokenizer_config.json` has `add_bos_token`.
    Between documents stands `bos_token_id`, and where there is none the first that ends a text.

    Args:
        folder: The folder.
        most_ids: Ids that the model has, if the tokenizer may have more.

    Raises:
        FileNotFoundError: If there is none.
        ValueError, ModuleNotFoundError: As `PretrainedTokenizer`.
    """
    ends, begins = _ids(folder, "eos_token_id"), _ids(folder, "bos_token_id")
    between = [*begins, *ends]
    options: dict[str, Any] = {"eot_id": between[0] if between else None, "end_ids": ends}
    adds = _object(folder, "tokenizer_config.json").get("add_bos_token")
    if adds is False or (adds is True and begins):
        options["begin_ids"] = begins if adds else []
    for kind, name in _NAMES.items():
        if (folder / name).exists():
            content = inside(folder, name).read_bytes()
            return PretrainedTokenizer(content, kind, most_ids=most_ids, **options)
    raise FileNotFoundError(
        f"a folder of a model must hold tokenizer.json or tokenizer.model to be written with; "
        f"{folder} has neither. Fetch the whole folder."
    )


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> str:
    """Write a tokenizer for `load_pretrained_tokenizer`, and for others who read such folders.

    Returns:
        What was done, in a line; bytes and characters have no such file.
    """
    if isinstance(tokenizer, SubwordTokenizer):
        content, kind = tokenizer.model_bytes, "sentencepiece"
    elif isinstance(tokenizer, PretrainedTokenizer):
        content, kind = tokenizer.content, tokenizer.kind
    else:
        return f"tokenizer: {tokenizer.kind} has no file that others read, and is not written"
    (folder / _NAMES[kind]).write_bytes(content)
    files = {
        "generation_config.json": {n: x for n, x in token_ids(tokenizer).items() if x is not None},
        "tokenizer_config.json": {"add_bos_token": bool(tokenizer.begin_ids)},
    }
    for name, fields in files.items():
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return f"tokenizer: {_NAMES[kind]}"


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Say which ids begin and end texts, in the words of `config.json`; null for none."""
    ends = list(tokenizer.end_ids)
    return {
        "bos_token_id": tokenizer.begin_ids[0] if tokenizer.begin_ids else tokenizer.eot_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def _ids(folder: Path, field: str) -> list[int]:
    """Take the id or ids that a folder gives as a field, of the first file that has one."""
    for name in ("generation_config.json", "config.json"):
        said = _object(folder, name).get(field)
        ids = [x for x in (said if isinstance(said, list) else [said]) if type(x) is int]
        if ids:
            return ids
    return []


def _object(folder: Path, name: str) -> dict[str, Any]:
    """Read an object from a file, empty where there is none."""
    return read_json(inside(folder, name)) if (folder / name).exists() else {}
