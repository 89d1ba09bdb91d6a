"""Captions of coloured shapes: a closed English vocabulary, written from truth and parsed to it.

The truth is `attributes`, int32 [cells, 3]: of each cell of a 2x2 grid (top left, top right, bottom
left, bottom right) the shape + 1, or 0 where there is none, the colour, and the size.
"""

import difflib
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Integer, UInt64

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
SIZES = ("small", "large")
CELLS = ("top left", "top right", "bottom left", "bottom right")
MAX_OBJECTS = 3
MAX_LENGTH = 32  # of the longest caption that is written, in words and commas
NUM_CAPTION_DRAWS = 8

Attributes = Int32[np.ndarray, "cells=4 attributes=3"]
Tokens = Int32[np.ndarray, " length"]

_SYNONYMS = {"little": "small", "big": "large", "upper": "top", "lower": "bottom"}
_FILLERS = ("a", "the", "at", "in", "is", "of", "corner", "there", "picture")
_SEPARATORS = (",", "and")
VOCABULARY = (
    "<pad>",
    *(*SHAPES, *COLOURS, *SIZES, "top", "bottom", "left", "right"),
    *(*_SYNONYMS, *_FILLERS, *_SEPARATORS),
)
"""Words by token id; 0 is the padding."""

_IDS = {word: i for i, word in enumerate(VOCABULARY) if i}


class _Wording(NamedTuple):
    """How a caption puts it, where English gives the choice."""

    sizes: tuple[str, str]
    rows: tuple[str, str]
    place: str
    lead: str
    place_first: bool


def _choose_wording(draws: list[int]) -> _Wording:
    place_first = draws[3] % 4 == 0
    return _Wording(
        sizes=(("small", "large"), ("small", "large"), ("little", "big"))[draws[0] % 3],
        rows=(("top", "bottom"), ("top", "bottom"), ("upper", "lower"))[draws[1] % 3],
        place=("at the {}", "in the {}", "in the {} corner")[draws[2] % 3],
        lead="" if place_first else ("", "", "there is ", "a picture of ")[draws[4] % 4],
        place_first=place_first,
    )


def write_caption(attributes: Attributes, draws: UInt64[np.ndarray, "draws=8"]) -> str:
    """Put objects into words: "a small red circle at the top left and a large blue cross ...".

    Args:
        attributes: Of each cell; at least one holds an object.
        draws: Random numbers, which choose among the wordings and the orders of the objects.

    Raises:
        ValueError: If the attributes mean nothing.
    """
    check_attributes(attributes)
    numbers = draws.tolist()
    how = _choose_wording(numbers)
    cells = np.flatnonzero(attributes[:, 0]).tolist()
    if numbers[5] % 2:
        cells.reverse()
    turn = numbers[6] % len(cells)
    phrases = []
    for cell in cells[turn:] + cells[:turn]:
        shape, colour, size = attributes[cell].tolist()
        thing = f"a {how.sizes[size]} {COLOURS[colour]} {SHAPES[shape - 1]}"
        place = how.place.format(f"{how.rows[cell // 2]} {('left', 'right')[cell % 2]}")
        phrases.append(f"{place} is {thing}" if how.place_first else f"{thing} {place}")
    commas = len(phrases) > 2 and numbers[7] % 2
    first = (", " if commas else " and ").join(phrases[:-1])
    return how.lead + (f"{first} and {phrases[-1]}" if first else phrases[-1])


def check_attributes(attributes: Attributes) -> None:
    """Refuse attributes that are out of range, or of no object at all.

    Raises:
        ValueError: If they are.
    """
    bounds = np.array([len(SHAPES) + 1, len(COLOURS), len(SIZES)])
    if (attributes < 0).any() or (attributes >= bounds).any():
        raise ValueError(
            "attributes of a cell must be (shape + 1 or 0, colour, size), below "
            f"{tuple(bounds.tolist())}; got {attributes.tolist()}."
        )
    if not attributes[:, 0].any():
        raise ValueError("attributes must hold an object; got 4 empty cells.")


def _words(caption: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", caption.lower().strip().removesuffix("."))
    for word in words:
        if word not in _IDS:
            near = difflib.get_close_matches(word, _IDS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"captions must be of known words; got {word!r}. Did you mean {near!r}? "
                f"The words are: {' '.join(_IDS)}"
            )
    return words


def encode_caption(caption: str) -> Tokens:
    """Turn a caption into token ids, padded with 0 to `MAX_LENGTH`; an empty one is all padding.

    Args:
        caption: In words of `VOCABULARY`, upper or lower case; a full stop at the end is dropped.

    Raises:
        ValueError: If a word is unknown, or there are too many.
    """
    words = _words(caption)
    if len(words) > MAX_LENGTH:
        raise ValueError(
            f"a caption must have at most {MAX_LENGTH} words and commas; got {len(words)}. "
            f"Leave out what does not describe one of at most {MAX_OBJECTS} objects."
        )
    tokens = np.zeros(MAX_LENGTH, np.int32)
    tokens[: len(words)] = [_IDS[word] for word in words]
    return tokens


def decode_caption(tokens: Integer[np.ndarray, " length"]) -> str:
    """Turn token ids back into a caption; padding is dropped.

    Raises:
        ValueError: If an id is no word's.
    """
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(VOCABULARY):
        raise ValueError(
            f"token ids must lie in 0 ... {len(VOCABULARY) - 1}; got {tokens.min()} to "
            f"{tokens.max()}. Are these tokens of another tokenizer?"
        )
    words = [VOCABULARY[int(token)] for token in tokens if token]
    return " ".join(words).replace(" ,", ",")


def parse_caption(caption: str) -> Attributes:
    """Read the truth that a caption states: the inverse of `write_caption`.

    Objects are parted by "and" or a comma; each says its size, colour, shape and place, in any
    order.

    Raises:
        ValueError: If a word is unknown, an object says too little or too much, a place is taken
            twice, or there are no objects or too many.
    """
    objects: list[list[str]] = [[]]
    for word in _words(caption):
        if word in _SEPARATORS:
            objects.append([])
        elif word not in _FILLERS or objects[-1]:
            objects[-1].append(word)
    objects = [words for words in objects if words]
    if not 1 <= len(objects) <= MAX_OBJECTS:
        raise ValueError(
            f"a caption must describe 1 to {MAX_OBJECTS} objects; got {len(objects)} in "
            f"{caption!r}. Say: a small red circle at the top left and a large blue cross at the "
            "bottom right."
        )
    attributes = np.zeros((len(CELLS), 3), np.int32)
    for words in objects:
        plain = [_SYNONYMS.get(word, word) for word in words]
        shape = _only(SHAPES, plain, "shape", words)
        colour = _only(COLOURS, plain, "colour", words)
        size = _only(SIZES, plain, "size", words)
        row = _only(("top", "bottom"), plain, "row", words)
        column = _only(("left", "right"), plain, "column", words)
        cell = 2 * row + column
        if attributes[cell, 0]:
            raise ValueError(
                f"each place must hold one object; got two at the {CELLS[cell]} in {caption!r}. "
                "Move one of them."
            )
        attributes[cell] = shape + 1, colour, size
    return attributes


def _only(choices: tuple[str, ...], words: list[str], what: str, said: list[str]) -> int:
    """Find which of the choices an object names."""
    found = [word for word in words if word in choices]
    if len(found) != 1:
        raise ValueError(
            f"each object must say one {what} ({', '.join(choices)}); got "
            f"{' and '.join(found) or 'none'} in {' '.join(said)!r}. Part objects by 'and'."
        )
    return choices.index(found[0])
