"""Text for a language model: from the name of a source to rows for training and validation."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
from jaxtyping import Bool

from genai_jax.data.cleaning import Policies, clean_documents, limit_document
from genai_jax.data.corpora import Document, read_documents, source_stamp
from genai_jax.data.fill_in_the_middle import SENTINELS, make_rearrange
from genai_jax.data.packing import ContiguousRows, MixedRows, PackedRows, WholeRows
from genai_jax.data.plain_chat import CHAT_SPECIALS
from genai_jax.data.rows import Rows
from genai_jax.data.token_cache import (
    FORMAT,
    TokenCache,
    default_cache_folder,
    open_folder,
    open_tokens,
    write_tokens,
)
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import Ids, Kind, Tokenizer


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which text, how it is cleaned and split, and what the tokens are.

    Attributes:
        path: A text file, a folder or a glob (`books/**/*.txt`) of your own; replaces `sources`.
        sources: Where the documents come from: stdlib (source of Python's library, 12 MB);
            reference (Python's manual, 0.4 MB); files:GLOB (a document a file or, in JSON lines
            named *.jsonl, a document a line; also .gz); tfds:NAME[:SPLIT] (a prepared set of
            tensorflow-datasets); tasks[:SEED] (5 MB of sentences that tell what the training tasks
            of `data.tasks` ask for); synthetic (8 MiB of meaningless words).
        weights: Share of each source in the training rows, in the order of `sources`; none:
            by their sizes.
        field: Name of the text in .jsonl and in tensorflow-datasets.
        tokenizer: bytes; characters; bpe or unigram (subwords, trained on the training split).
        vocab_size: Number of token ids of bpe and unigram; other tokenizers have what they need.
        split: Documents (each on one side, by the hash of its text), or contiguous (the end of the
            only document is for validation); auto is contiguous where there is only one document.
        validation_fraction: Share of the text that is for validation, between 0 and 1.
        fim_rate: Share of the training documents that are rearranged to learn to fill in the
            middle (Bavarian et al., arXiv:2207.14255: up to 0.9 costs next to nothing), from 0 to
            1; tokenizers that are trained get the ids for it.
        fim_spm_rate: Share of those whose suffix comes before the prefix, from 0 to 1.
        chat: Whether a tokenizer that is trained gets ids for conversations, so that the model can
            be tuned to answer in turns.
        invalid_utf8: What to do with bytes that are not UTF-8: replace them (by U+FFFD), skip the
            document, or stop with an error.
        nul: What to do with NUL characters: strip them, skip the document, or stop with an error.
        oversized: What to do with documents over `max_document_bytes`: split them, skip them, or
            stop with an error; a contiguous text may have any size.
        max_document_bytes: Bound on the length of a document, in bytes.
        cache_dir: Folder for tokens; none: $XDG_CACHE_HOME/genai_jax or ~/.cache/genai_jax.
    """

    path: str | None = None
    sources: tuple[str, ...] = ("stdlib",)
    weights: tuple[float, ...] = ()
    field: str = "text"
    tokenizer: Kind = "bpe"
    vocab_size: int = 4096
    split: Literal["auto", "documents", "contiguous"] = "auto"
    validation_fraction: float = 0.1
    fim_rate: float = 0.0
    fim_spm_rate: float = 0.5
    chat: bool = False
    invalid_utf8: Literal["replace", "skip", "error"] = "replace"
    nul: Literal["strip", "skip", "error"] = "strip"
    oversized: Literal["split", "skip", "error"] = "split"
    max_document_bytes: int = Policies.max_document_bytes
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not self.all_sources:
            raise ValueError("`sources` must name at least one; got none. Try stdlib.")
        if self.weights and len(self.weights) != len(self.all_sources):
            raise ValueError(
                f"`weights` must have one for each of the {len(self.all_sources)} sources; got "
                f"{len(self.weights)}. Leave them out to mix by size."
            )
        if any(not 0 < weight < float("inf") for weight in self.weights):
            raise ValueError(
                f"`weights` must be positive; got {self.weights}. Leave out a source of weight 0."
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must be between 0 and 1; got {self.validation_fraction}. "
                "Try 0.1."
            )
        for name in ("fim_rate", "fim_spm_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1; got {getattr(self, name)}.")
        if self.vocab_size < 1:
            raise ValueError(f"`vocab_size` must be positive; got {self.vocab_size}. Try 4096.")
        _ = self.policies

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The sources, once `path` has replaced them."""
        return self.sources if self.path is None else (f"files:{self.path}",)

    @property
    def policies(self) -> Policies:
        """What to do about malformed documents."""
        return Policies(self.invalid_utf8, self.nul, self.oversized, self.max_document_bytes)


@dataclasses.dataclass(frozen=True)
class TextData:
    """A text, ready for training.

    Attributes:
        tokenizer: Between text and ids.
        train: Rows by number, without end; `len` of them are an epoch.
        validation: Rows that hold the validation split once.
        validation_bytes: Bytes of text that the predicted tokens of `validation` stand for: the
            denominator of bits per byte.
        has_documents: Whether rows are packed documents, with `segment_ids` and `positions`;
            otherwise they are windows of one text.
        content_digest: SHA-256 of the cleaned text of all documents, in hexadecimal.
        summary: What was read, and what was done to it, for human eyes.
    """

    tokenizer: Tokenizer
    train: Rows
    validation: WholeRows
    validation_bytes: int
    has_documents: bool
    content_digest: str
    summary: str
    _cache: TokenCache

    def train_documents(self) -> list[bytes]:
        """Read back the documents of the training split, as UTF-8."""
        return self._documents(0)

    def validation_documents(self) -> list[bytes]:
        """Read back the documents of the validation split, as UTF-8."""
        return self._documents(1)

    def _documents(self, side: int) -> list[bytes]:
        chosen = np.flatnonzero(self._cache.groups % 2 == side)
        return [self._cache.text(document) for document in chosen.tolist()]


def load_text(
    config: TextConfig, *, length: int, seed: int, tokenizer: Tokenizer | None = None
) -> TextData:
    """Read, clean, split and tokenise text, or find that in the cache, and plan rows of it.

    Args:
        config: Which text.
        length: T, tokens of a row.
        seed: Of the order of the rows.
        tokenizer: An existing one, of an earlier run say, to use in place of training one.

    Raises:
        ValueError: If a source, a document, the vocabulary or a split is not as it must be.
        FileNotFoundError: If there are no such files.
    """
    root = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_folder()
    folder = open_folder(
        root / "text",
        _cache_key(config, tokenizer),
        lambda scratch: _build(scratch, config, tokenizer),
    )
    cache = open_tokens(folder)
    contiguous = cache.notes["contiguous"]
    if contiguous:
        middle = cache.offsets[1]
        train: Rows = ContiguousRows(cache.tokens[:middle], length=length, seed=seed)
        ending = cache.tokens[middle:]
        validation = WholeRows(ending, length=length)
        # Nothing predicts the first token.
        unpredicted = len(cache.tokenizer.decode_bytes(ending[:1]))
    else:
        train = _packed_rows(config, cache, length=length, seed=seed)
        ending = np.flatnonzero(cache.groups % 2 == 1)
        validation = WholeRows(cache.tokens, length=length, offsets=cache.offsets, documents=ending)
        unpredicted = 0
    return TextData(
        tokenizer=cache.tokenizer,
        train=train,
        validation=validation,
        validation_bytes=int(cache.byte_lengths[cache.groups % 2 == 1].sum()) - unpredicted,
        has_documents=not contiguous,
        content_digest=cache.notes["content_digest"],
        summary=_summary(config, cache, length),
        _cache=cache,
    )


def _packed_rows(config: TextConfig, cache: TokenCache, *, length: int, seed: int) -> Rows:
    """Rows of the training split, of all sources at once or, with weights, of each."""
    if not config.weights:
        train = np.flatnonzero(cache.groups % 2 == 0)
        return PackedRows(cache.tokens, cache.offsets, train, length=length, seed=seed)
    rows = []
    for number, source in enumerate(config.all_sources):
        train = np.flatnonzero(cache.groups == 2 * number)
        try:
            rows.append(
                PackedRows(cache.tokens, cache.offsets, train, length=length, seed=seed + number)
            )
        except ValueError as error:
            raise ValueError(f"the training split of {source} is too short: {error}") from error
    return MixedRows(rows, config.weights)


def _cache_key(config: TextConfig, tokenizer: Tokenizer | None) -> str:
    """A digest of all that the tokens depend on."""
    recipe: dict[str, Any] = dataclasses.asdict(config)
    for name in ("cache_dir", "weights", "path", "sources"):
        del recipe[name]
    if not config.fim_rate:  # it changes nothing, then
        del recipe["fim_rate"], recipe["fim_spm_rate"]
    if not config.chat:
        del recipe["chat"]
    if tokenizer is not None:
        recipe |= {"tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
    stamps = [source_stamp(source) for source in config.all_sources]
    content = [FORMAT, sentencepiece.__version__, recipe, stamps]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _documents(config: TextConfig, counts: Counter[str]) -> Iterator[tuple[int, Document]]:
    """Clean documents, each with the number of its source."""
    for number, source in enumerate(config.all_sources):
        documents = read_documents(source, field=config.field)
        found = False
        for document in clean_documents(documents, config.policies, counts):
            yield number, document
            found = True
        if not found:
            raise ValueError(
                f"the source {source} must hold a document; got none"
                + "".join(f", {what}: {n}" for what, n in sorted(counts.items()))
                + ". Choose another source, or another policy."
            )


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What one look over all documents tells."""

    contiguous: bool
    validation: Bool[np.ndarray, " documents"]
    content_digest: str


def _survey(config: TextConfig, counts: Counter[str]) -> _Survey:
    """Read everything once: count it, digest it, and choose sides."""
    content = hashlib.sha256()
    hashes = []
    for _, (_, text) in _documents(config, counts):
        content.update(len(text).to_bytes(8, "little") + text)
        hashes.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    counts["documents"] = len(hashes)
    contiguous = config.split == "contiguous" or (config.split == "auto" and len(hashes) == 1)
    if contiguous and len(hashes) > 1:
        raise ValueError(
            f"a contiguous split must have exactly one document; got {len(hashes)}. "
            "Give one text (--data.path book.txt), or choose --data.split documents."
        )
    sides = np.zeros(1, bool) if contiguous else _sides(hashes, config.validation_fraction)
    return _Survey(contiguous, sides, content.hexdigest())


def _sides(hashes: list[int], fraction: float) -> Bool[np.ndarray, " documents"]:
    """Which documents are for validation: those with hashes in the first part of their range.

    A document's side depends on its own text alone, and copies of it are on the same side. Only
    where that leaves a side empty, since there are few documents, the nearest one goes there.
    """
    places = np.array(hashes, np.uint64)
    validation = places < np.uint64(int(fraction * (1 << 64)))
    if not validation.any():
        validation = places == places.min()
    elif validation.all():
        validation = places != places.max()
    if validation.all() or not validation.any():
        raise ValueError(
            "documents must differ, and be at least two, to be split into training and validation; "
            f"got {len(hashes)}. Choose --data.split contiguous for one long text."
        )
    return validation


def _build(folder: Path, config: TextConfig, tokenizer: Tokenizer | None) -> None:
    """Make the content of a cache folder."""
    counts: Counter[str] = Counter()
    survey = _survey(config, counts)
    if config.fim_rate and survey.contiguous:
        raise ValueError(
            "to fill in the middle there must be documents; got one long text. Choose "
            "--data.split documents, or --data.fim-rate 0."
        )
    if tokenizer is None:
        # As in nanoGPT, the characters are those of the whole text; subwords are learnt.
        everything = config.tokenizer == "characters"
        parts = _parts(config, survey, Counter())
        texts = (text.decode() for _, text, group in parts if everything or group % 2 == 0)
        tokenizer = train_tokenizer(
            config.tokenizer,
            texts,
            config.vocab_size,
            end_of_text=not survey.contiguous,
            specials=(
                *(SENTINELS if config.fim_rate else ()),
                *(CHAT_SPECIALS if config.chat else ()),
            ),
        )
    if tokenizer.eot_id is None and not survey.contiguous:
        raise ValueError(
            "documents must be told apart by an end-of-text id; got a "
            f"{tokenizer.kind} tokenizer without one, of a contiguous text. "
            "Choose --data.split contiguous, or train another tokenizer."
        )
    write_tokens(
        folder,
        _parts(config, survey, counts),
        tokenizer,
        notes=lambda: {
            "contiguous": survey.contiguous,
            "content_digest": survey.content_digest,
            "counts": counts,
            **({"rearranged": True} if config.fim_rate else {}),
        },
        rearrange=_make_rearrange(config, tokenizer, counts) if config.fim_rate else None,
    )


def _make_rearrange(
    config: TextConfig, tokenizer: Tokenizer, counts: Counter[str]
) -> Callable[[str, int], Ids | None]:
    """Make what rearranges documents of the training split, and counts them."""
    rearrange = make_rearrange(tokenizer, rate=config.fim_rate, spm_rate=config.fim_spm_rate)

    def of_training(text: str, group: int) -> Ids | None:
        ids = None if group % 2 else rearrange(text)
        counts["to fill in"] += ids is not None
        return ids

    return of_training


def _parts(
    config: TextConfig, survey: _Survey, counts: Counter[str]
) -> Iterator[tuple[str, bytes, int]]:
    """What is tokenised as one: (name, text, 2 * number of the source + whether for validation)."""
    documents = _documents(config, Counter())
    for (number, document), side in zip(documents, survey.validation, strict=True):
        if survey.contiguous:
            text = document.text.decode()
            middle = int(len(text) * (1 - config.validation_fraction))
            yield document.name, text[:middle].encode(), 0
            yield document.name, text[middle:].encode(), 1
        else:
            for part in limit_document(document, config.policies, counts):
                yield part.name, part.text, 2 * number + int(side)


def _summary(config: TextConfig, cache: TokenCache, length: int) -> str:
    counts = dict(cache.notes["counts"])
    documents = counts.pop("documents")
    done = "".join(f", {what}: {n}" for what, n in sorted(counts.items()))
    lines = [
        f"text: {', '.join(config.all_sources)}: {_count_documents(documents)}, "
        f"{cache.byte_lengths.sum() / 1e6:.2f} MB{done}"
    ]
    for side, name in enumerate(("train", "validation")):
        chosen = cache.groups % 2 == side
        tokens = int(np.diff(cache.offsets)[chosen].sum())
        what = "contiguous" if cache.notes["contiguous"] else _count_documents(int(chosen.sum()))
        lines.append(f"{name}: {what}, {tokens:,} tokens, {tokens // length:,} rows of {length}")
    each = cache.byte_lengths.sum() / max(1, len(cache.tokens))
    tokenizer = cache.tokenizer
    lines.append(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size} ids, {each:.2f} bytes a token"
    )
    return "\n".join(lines)


def _count_documents(number: int) -> str:
    return f"{number} document{'s' * (number != 1)}"
