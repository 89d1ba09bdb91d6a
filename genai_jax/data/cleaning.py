"""What is done about documents that are not as they should be, and how often it was done."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from genai_jax.data.corpora import Document


@dataclasses.dataclass(frozen=True)
class Policies:
    """What happens to documents that are malformed or too long.

    Attributes:
        invalid_utf8: Bytes that are not UTF-8: replace them (by U+FFFD), skip the document, or stop
            with an error.
        nul: NUL characters: strip them, skip the document, or stop with an error.
        oversized: Documents over `max_document_bytes`: split them, skip them, or stop with an
            error.
        max_document_bytes: Bound on the length of a document, in bytes.
    """

    invalid_utf8: Literal["replace", "skip", "error"] = "replace"
    nul: Literal["strip", "skip", "error"] = "strip"
    oversized: Literal["split", "skip", "error"] = "split"
    max_document_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        """Refuse bounds that no character fits in."""
        if self.max_document_bytes < 4:
            raise ValueError(
                "`max_document_bytes` must hold any one character, 4 bytes; got "
                f"{self.max_document_bytes}. The default is {Policies.max_document_bytes}."
            )


def clean_documents(
    documents: Iterable[Document], policies: Policies, counts: Counter[str]
) -> Iterator[Document]:
    """Make valid UTF-8 without NULs of documents, and leave out the empty ones.

    Args:
        documents: As read.
        policies: What to do about invalid bytes and NULs.
        counts: Grows by what was done, in words fit for a summary.

    Raises:
        ValueError: If a policy says so; names the document.
    """
    for name, raw in documents:
        text = _valid_utf8(name, raw, policies, counts)
        if text and b"\0" in text:
            text = _without_nul(name, text, policies, counts)
        if text:
            yield Document(name, text)
        elif text is not None:
            counts["empty documents skipped"] += 1


def _valid_utf8(name: str, text: bytes, policies: Policies, counts: Counter[str]) -> bytes | None:
    """The text, repaired; None if the document is to be left out."""
    try:
        text.decode("utf-8")
        return text
    except UnicodeDecodeError as error:
        if policies.invalid_utf8 == "error":
            raise ValueError(
                f"{name} must be UTF-8; byte {error.start} ({text[error.start]:#04x}) is not. "
                "Convert it, or choose --data.invalid-utf8 replace or skip."
            ) from error
    if policies.invalid_utf8 == "skip":
        counts["documents with invalid UTF-8 skipped"] += 1
        return None
    counts["documents with invalid UTF-8 repaired"] += 1
    return text.decode("utf-8", "replace").encode("utf-8")


def _without_nul(name: str, text: bytes, policies: Policies, counts: Counter[str]) -> bytes | None:
    if policies.nul == "error":
        raise ValueError(
            f"{name} must not hold NUL characters; one is at byte {text.index(0)}. "
            "Is it a text file? Otherwise choose --data.nul strip or skip."
        )
    if policies.nul == "skip":
        counts["documents with NUL characters skipped"] += 1
        return None
    counts["documents with NUL characters stripped"] += 1
    return text.replace(b"\0", b"")


def limit_document(
    document: Document, policies: Policies, counts: Counter[str]
) -> Iterator[Document]:
    """Apply the policy on oversized documents to one clean document.

    Yields:
        The document; or its parts, named `NAME#1`, `NAME#2`, ...; or nothing.

    Raises:
        ValueError: If the policy says so; names the document.
    """
    name, text = document
    limit = policies.max_document_bytes
    if len(text) <= limit:
        yield document
    elif policies.oversized == "error":
        raise ValueError(
            f"{name} must have at most `max_document_bytes` = {limit} bytes; it has {len(text)}. "
            "Raise the bound, or choose --data.oversized split or skip."
        )
    elif policies.oversized == "skip":
        counts["oversized documents skipped"] += 1
    else:
        counts["oversized documents split"] += 1
        for number, part in enumerate(split_text(text, limit), start=1):
            yield Document(f"{name}#{number}", part)


def split_text(text: bytes, limit: int) -> Iterator[bytes]:
    """Cut UTF-8 into parts of at most `limit` bytes: after a line's end if there is one.

    Args:
        text: Valid UTF-8.
        limit: Bound on the bytes of a part, at least 4.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind(b"\n", start, start + limit) + 1
        if end <= start:
            end = start + limit
            while text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield text[start:end]
        start = end
    yield text[start:]
