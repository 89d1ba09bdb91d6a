"""Rows of T tokens cut from text: row i is a function of (seed, i), known without rows 0 ... i-1.

Documents are kept as `[eot] + tokens` and packed without gaps: the documents of an epoch make a
circle, so that the last one's successor is the first, and a row is a window of T + 1 tokens of it.
The target of a document's last token is the next one's eot. Nothing is padded, and nothing masked.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from genai_jax.data.random_order import permutation, random_bits
from genai_jax.data.rows import NumberedRows, Row, Rows

Tokens = Integer[np.ndarray, " tokens"]
Numbers = Int64[np.ndarray, " documents"]
Offsets = Int64[np.ndarray, " offsets"]
_SHARES = 1_000_000


class _Circle(NamedTuple):
    """Documents one after the other, in a circle.

    Attributes:
        documents: Their numbers in the cache, in the order of the circle.
        starts: Where each begins, and the length of the whole.
    """

    documents: Numbers
    starts: Offsets

    @classmethod
    def of(cls, offsets: Offsets, documents: Numbers) -> "_Circle":
        lengths = offsets[documents + 1] - offsets[documents]
        return cls(documents, np.concatenate([[0], np.cumsum(lengths)]))

    def window(self, tokens: Tokens, offsets: Offsets, start: int, length: int) -> Row:
        """The row of inputs start ... start + length - 1."""
        places = (start + np.arange(length + 1)) % self.starts[-1]
        which = np.searchsorted(self.starts, places, side="right") - 1
        within = places - self.starts[which]
        window = tokens[offsets[self.documents[which]] + within].astype(np.int32)
        within = within[:length].astype(np.int32)
        begins = within == 0
        segments = np.cumsum(begins, dtype=np.int32) + np.int32(not begins[0])
        # Of the document that the row starts inside of, positions count from the row's start.
        positions = np.where(segments == 1, np.arange(length, dtype=np.int32), within)
        return {
            "tokens": window[:-1],
            "targets": window[1:],
            "loss_mask": np.ones(length, np.float32),
            "segment_ids": segments,
            "positions": positions,
        }


class PackedRows(NumberedRows):
    """Packed rows of documents, epoch after epoch, each in another order.

    An epoch permutes the documents, cuts their circle every T tokens from a phase of its own, and
    permutes the rows. Every token is predicted once in an epoch but for the remainder of the cut,
    fewer than T of them, which are others in every epoch.
    """

    def __init__(
        self,
        tokens: Tokens,
        offsets: Offsets,
        documents: Numbers,
        *,
        length: int,
        seed: int,
    ) -> None:
        """Plan the rows; nothing is read yet.

        Args:
            tokens: All documents, each as `[eot] + tokens`; may be memory-mapped.
            offsets: Where each document begins in `tokens`, and the end of the last.
            documents: Numbers of those that belong to this split.
            length: T, tokens of a row.
            seed: Of the order.

        Raises:
            ValueError: If all the documents together are shorter than a row.
        """
        super().__init__()
        self._tokens, self._offsets, self._documents = tokens, offsets, documents
        self._length, self._seed = length, seed
        total = int((offsets[documents + 1] - offsets[documents]).sum())
        self._rows = total // length
        if not self._rows:
            raise ValueError(_too_short("documents", total, length))
        # Two, since a batch may straddle the end of an epoch.
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> tuple[_Circle, int, Int64[np.ndarray, " rows"]]:
        order = permutation(self._seed, f"documents of epoch {epoch}", len(self._documents))
        phase = random_bits(self._seed, "phases of epochs", np.array([epoch], np.uint64))[0]
        rows = permutation(self._seed, f"rows of epoch {epoch}", self._rows)
        circle = _Circle.of(self._offsets, self._documents[order])
        return circle, int(phase % np.uint64(self._length)), rows

    def __len__(self) -> int:
        return self._rows

    def _row(self, i: int) -> Row:
        epoch, number = divmod(i, self._rows)
        circle, phase, rows = self._epoch(epoch)
        start = phase + int(rows[number]) * self._length
        return circle.window(self._tokens, self._offsets, start, self._length)


class ContiguousRows(NumberedRows):
    """Windows of one long text, each from a random place (A. Karpathy's nanoGPT samples so)."""

    def __init__(self, tokens: Tokens, *, length: int, seed: int) -> None:
        """Plan the rows; nothing is read yet.

        Args:
            tokens: The text; may be memory-mapped.
            length: T, tokens of a row.
            seed: Of the places.

        Raises:
            ValueError: If the text is shorter than a window of T + 1 tokens.
        """
        if len(tokens) <= length:
            raise ValueError(_too_short("text", len(tokens), length + 1))
        super().__init__()
        self._tokens, self._length, self._seed = tokens, length, seed

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def _row(self, i: int) -> Row:
        bits = random_bits(self._seed, "windows", np.array([i], np.uint64))[0]
        start = int(bits % np.uint64(len(self._tokens) - self._length))
        window = self._tokens[start : start + self._length + 1].astype(np.int32)
        return {
            "tokens": window[:-1],
            "targets": window[1:],
            "loss_mask": np.ones(self._length, np.float32),
        }


class WholeRows(NumberedRows):
    """A split from its beginning to its end, each token predicted once; for validation.

    Documents are packed in the order of the cache, the last one's end included; of one long text
    the first token is not predicted. The last row is padded, and rows after it are all padding
    (`loss_mask` 0, segment 0), so that a last batch can be as large as the others.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        length: int,
        offsets: Offsets | None = None,
        documents: Numbers | None = None,
    ) -> None:
        """Plan the rows; nothing is read yet.

        Args:
            tokens: All documents, each as `[eot] + tokens`; or, without `offsets`, one long text.
            length: T, tokens of a row.
            offsets: Where each document begins in `tokens`, and the end of the last.
            documents: Numbers of those that belong to this split.

        Raises:
            ValueError: If there is nothing to predict.
        """
        super().__init__()
        self._tokens, self._length, self._offsets = tokens, length, offsets
        self._circle = None
        self._predicted = len(tokens) - 1
        if offsets is not None and documents is not None:
            self._circle = _Circle.of(offsets, documents)
            self._predicted = int(self._circle.starts[-1])
        if self._predicted < 1:
            raise ValueError(
                f"a validation split must hold a token to predict; got {len(tokens)} tokens. "
                "Give more text, or a larger validation_fraction."
            )

    def __len__(self) -> int:
        return -(-self._predicted // self._length)

    def _row(self, i: int) -> Row:
        start = i * self._length
        counted = start + np.arange(self._length) < self._predicted
        if self._circle is not None and self._offsets is not None:
            row = self._circle.window(self._tokens, self._offsets, start, self._length)
        else:
            places = np.minimum(start + np.arange(self._length + 1), self._predicted)
            window = self._tokens[places].astype(np.int32)
            row = {
                "tokens": window[:-1],
                "targets": window[1:],
                "loss_mask": np.ones(self._length, np.float32),
            }
        return {name: np.where(counted, x, x.dtype.type(0)) for name, x in row.items()}


class MixedRows(NumberedRows):
    """Rows of several sources in exact proportions, interleaved evenly; each has its own epochs."""

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float]) -> None:
        """Mix by weight.

        Args:
            sources: Random-access rows.
            weights: Shares of rows; they need not sum to 1.

        Raises:
            ValueError: If a weight is too small to matter.
        """
        super().__init__()
        self._sources = tuple(sources)
        # `grain.MapDataset.mix` rounds shares to a percent of the least one; these are exact.
        self._shares = [round(weight / sum(weights) * _SHARES) for weight in weights]
        if not all(self._shares):
            raise ValueError(
                f"each weight must be at least {1 / _SHARES} of their sum; got {tuple(weights)}. "
                "Leave out the smallest."
            )

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def _row(self, i: int) -> Row:
        # Of the first i rows the first source gets its share, rounded up; the others share the
        # rest in the same way.
        others = sum(self._shares)
        for source, share in zip(self._sources, self._shares, strict=True):
            total, others = others, others - share
            before, after = i * others // total, (i + 1) * others // total
            if before == after:
                return source[i - before]
            i = before
        raise AssertionError("the last source gets what is left")


def _too_short(what: str, tokens: int, needed: int) -> str:
    return (
        f"the {what} must hold at least a row of {needed} tokens; got {tokens}. "
        "Give more text, or choose shorter rows."
    )
