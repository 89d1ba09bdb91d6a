"""Training of tokenizers: the same text gives the same tokenizer."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from genai_jax.data.tokenizers import (
    EOT,
    ByteTokenizer,
    CharacterTokenizer,
    Kind,
    SubwordTokenizer,
    Tokenizer,
    cut_text,
)

_SENTENCE_CHARACTERS = 4000
# Text that is enough to train on, in characters for each piece of the vocabulary.
_TRAINING_CHARACTERS = {"bpe": 4000, "unigram": 500}
_MOST_TRAINING_CHARACTERS = 1 << 26


def train_tokenizer(
    kind: Kind,
    documents: Iterable[str],
    vocab_size: int,
    *,
    end_of_text: bool = True,
    specials: Sequence[str] = (),
) -> Tokenizer:
    """Make a tokenizer from text; the same text gives the same tokenizer.

    Args:
        kind: `bytes`; `characters`; `bpe` or `unigram` subwords (T. Kudo and J. Richardson,
            arXiv:1808.06226).
        documents: The text to train on. Subwords are trained on a sample of a long text, which is
            chosen by the hash of its parts.
        vocab_size: Number of ids of `bpe` and `unigram`; other kinds have what they need.
        end_of_text: Whether there is an id that ends a document.
        specials: Names of further ids that no text encodes to.

    Raises:
        ValueError: If the text is too short, or too rich, for the vocabulary.
    """
    if kind == "bytes":
        return ByteTokenizer(end_of_text=end_of_text, specials=specials)
    if kind == "characters":
        characters: set[str] = set()
        for text in documents:
            characters.update(text)
        held = "".join(sorted(characters))
        return CharacterTokenizer(held, end_of_text=end_of_text, specials=specials)
    enough = min(_TRAINING_CHARACTERS[kind] * vocab_size, _MOST_TRAINING_CHARACTERS)
    sentences = _sample(documents, enough)
    if not sentences:
        raise ValueError("a tokenizer must be trained on some text; got none.")
    model = io.BytesIO()
    controls: dict[str, Any] = {"control_symbols": list(specials)} if specials else {}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            # Lossless: the text as it is, and bytes for characters that have no piece.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            # Code is full of indentation and of numbers that mean nothing as a whole.
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentencepiece_length=24,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            unk_id=0,
            eos_id=1 if end_of_text else -1,
            eos_piece=EOT,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
            **controls,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(_training_fault(kind, vocab_size, str(error))) from error
    return SubwordTokenizer(model.getvalue(), kind)


def _sample(documents: Iterable[str], characters: int) -> list[str]:
    """A part of the text of about that many characters, in an order that depends on it alone."""
    sentences: list[tuple[bytes, str]] = []
    kept = 0
    for text in documents:
        for sentence in cut_text(text, _SENTENCE_CHARACTERS):
            order = hashlib.blake2b(sentence.encode("utf-8"), digest_size=8).digest()
            sentences.append((order, sentence))
            kept += len(sentence)
        if kept > 2 * characters:  # forget what cannot be in the sample any more
            sentences, kept = _first(sentences, characters)
    return [sentence for _, sentence in _first(sentences, characters)[0]]


def _first(
    sentences: list[tuple[bytes, str]], characters: int
) -> tuple[list[tuple[bytes, str]], int]:
    """Those that come first by their hashes, until they are enough."""
    kept: list[tuple[bytes, str]] = []
    total = 0
    for pair in sorted(sentences):
        if total >= characters:
            break
        kept.append(pair)
        total += len(pair[1])
    return kept, total


def _training_fault(kind: str, vocab_size: int, message: str) -> str:
    """Put a refusal of SentencePiece into words about our arguments."""
    if most := re.search(r"value <= (\d+)", message):
        rule = "must be at most what the text supports"
        fix = f"Choose at most {most[1]}, give more text, or use the tokenizer bytes."
    elif least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        rule = "must hold 256 bytes and the text's common characters"
        fix = f"Choose at least {least[1]}, or use the tokenizer bytes."
    else:
        rule, fix = f"does not suit the text ({message})", "Choose another size."
    return f"`vocab_size` of the {kind} tokenizer {rule}; got {vocab_size}. {fix}"
