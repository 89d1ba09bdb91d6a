"""Tokenizers back from the folders that they were saved into."""

import json
from pathlib import Path

from genai_jax.data.pretrained_tokenizers import KINDS, SAVED_FILE, PretrainedTokenizer
from genai_jax.data.tokenizers import (
    DESCRIPTION,
    MODEL,
    ByteTokenizer,
    CharacterTokenizer,
    SubwordTokenizer,
    Tokenizer,
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer that `Tokenizer.save` wrote into a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of a kind that this version does not know.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(
            f"a folder of a tokenizer must hold {DESCRIPTION}; {folder} does not. "
            "Give the folder that `save` was given."
        )
    description = json.loads(path.read_text(encoding="utf-8"))
    kind = description.pop("kind")
    if kind == "bytes":
        return ByteTokenizer(**description)
    if kind == "characters":
        return CharacterTokenizer(**description)
    if kind in ("bpe", "unigram"):
        return SubwordTokenizer((folder / MODEL).read_bytes(), kind)
    if kind in KINDS:
        return PretrainedTokenizer((folder / SAVED_FILE).read_bytes(), kind, **description)
    known = ", ".join(["bytes", "characters", "bpe", "unigram", *KINDS])
    raise ValueError(f"{path}: `kind` must be one of {known}; got {kind!r}.")
