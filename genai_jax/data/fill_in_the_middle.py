"""Fill in the middle: documents rearranged so that a model learns to write between two texts.

A document is cut into prefix, middle and suffix at two random characters, and the middle goes to
the end, where the end of the document tells that it is whole:

    PSM    <PRE> prefix <SUF> suffix <MID> middle
    SPM    <PRE> <SUF> suffix <MID> prefix middle

Either way what stands after <PRE>, after <MID> and after <SUF>, in this order, is the document.
The parts are encoded apart, so that a model meets tokens cut anywhere, as it will where it is used.

Reference: Bavarian et al., "Efficient Training of Language Models to Fill in the Middle",
    arXiv:2207.14255, sections 3 and 4; SPM is the variant of appendix D that is trained together
    with PSM.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from genai_jax.data.tokenizers import Ids, Tokenizer

SENTINELS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""Names of the ids <PRE>, <SUF> and <MID>: Qwen 2.5 Coder's and CodeGemma's, and ours."""


class Sentinels(NamedTuple):
    """Ids that stand before the parts of a document.

    Attributes:
        prefix: <PRE>.
        suffix: <SUF>.
        middle: <MID>.
    """

    prefix: int
    suffix: int
    middle: int


class Parts(NamedTuple):
    """A document in three.

    Attributes:
        prefix: Its beginning.
        middle: What is to be filled in.
        suffix: Its end.
        suffix_first: Whether the suffix comes first (SPM).
    """

    prefix: str
    middle: str
    suffix: str
    suffix_first: bool


def find_sentinels(tokenizer: Tokenizer) -> Sentinels:
    """Find a tokenizer's ids for the parts of a document.

    Raises:
        ValueError: If it lacks one.
    """
    found = [tokenizer.find_id(name) for name in SENTINELS]
    missing = [name for name, token in zip(SENTINELS, found, strict=True) if token is None]
    if missing:
        raise ValueError(
            f"to fill in the middle a tokenizer must have {', '.join(SENTINELS)}; this "
            f"{tokenizer.kind} tokenizer lacks {', '.join(missing)}. Take a model that was trained "
            "to fill in (Qwen 2.5 Coder, CodeGemma), or train one with --data.fim-rate 0.5."
        )
    return Sentinels(*[token for token in found if token is not None])


def cut_document(text: str, rate: float, spm_rate: float) -> Parts | None:
    """Choose by a text's hash whether, where and how it is cut; the same text is cut the same way.

    Args:
        text: The document.
        rate: Share of the documents that are, from 0 to 1.
        spm_rate: Share of those whose suffix comes first, from 0 to 1.

    Returns:
        The parts: both places are uniform over those between characters, ends included. None
        leaves the document as it is.
    """
    digest = hashlib.blake2b(
        text.encode("utf-8"), digest_size=32, person=b"fill in middle"
    ).digest()
    chosen, order, *cuts = np.frombuffer(digest, "<u8").tolist()
    # Compared as integers: 1 takes all, 0 none.
    if chosen >= int(rate * 2**64):
        return None
    first, second = sorted(cut % (len(text) + 1) for cut in cuts)
    spm = order < int(spm_rate * 2**64)
    return Parts(text[:first], text[first:second], text[second:], spm)


def arrange(tokenizer: Tokenizer, sentinels: Sentinels, parts: Parts) -> Ids:
    """Encode the parts of a document, the middle last."""
    prefix = _inside(tokenizer, sentinels.prefix, parts.prefix)
    middle = _inside(tokenizer, sentinels.middle, parts.middle)
    suffix = _inside(tokenizer, sentinels.suffix, parts.suffix)
    before, after = (prefix[:0], prefix) if parts.suffix_first else (prefix, prefix[:0])
    pieces = ([sentinels.prefix], before, [sentinels.suffix], suffix, [sentinels.middle], after)
    return np.concatenate([*pieces, middle]).astype(np.int32)


def _inside(tokenizer: Tokenizer, before: int, text: str) -> Ids:
    """Encode a text as in the middle of another one: Llama 2's tokenizer adds no space there."""
    return tokenizer.encode_parts([before, text])[1:]


def make_rearrange(
    tokenizer: Tokenizer, *, rate: float, spm_rate: float
) -> Callable[[str], Ids | None]:
    """Make a function that gives a document's ids rearranged; None where it stays as it is.

    A document that a sentinel can be read out of (Qwen's file calls its own no special tokens)
    stays as it is too.

    Args:
        tokenizer: Has `SENTINELS`.
        rate: Share of the documents that are rearranged, from 0 to 1.
        spm_rate: Share of those whose suffix comes first, from 0 to 1.

    Raises:
        ValueError: If the tokenizer lacks a sentinel, or a share is none.
    """
    for name, share in (("rate", rate), ("spm_rate", spm_rate)):
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1; got {share}.")
    sentinels = find_sentinels(tokenizer)

    def rearrange(text: str) -> Ids | None:
        parts = cut_document(text, rate, spm_rate)
        if parts is None:
            return None
        ids = arrange(tokenizer, sentinels, parts)
        return ids if np.isin(ids, sentinels).sum() == len(sentinels) else None

    return rearrange


def restore(ids: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """Put the parts of a rearranged document into their order, without sentinels.

    Args:
        ids: Of a document, which may begin with ids of its own; any other comes back as it is.
        sentinels: Of its tokenizer.
    """
    places = np.flatnonzero(np.isin(ids, sentinels))
    if ids[places].tolist() != list(sentinels):
        return ids
    before, suffix, middle = places.tolist()
    head, prefix = ids[:before], ids[before + 1 : suffix]
    return np.concatenate([head, prefix, ids[middle + 1 :], ids[suffix + 1 : middle]])
