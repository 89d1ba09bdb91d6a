"""One text of an answer, as its tokens come: what can be shown of it, and how likely it was.

Whatever the sizes of the pieces in which tokens come, the text, its tokens and their number are the
same: tokens behind a stop text, which the engine has drawn ahead, are in none of them.
"""

import codecs
import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.engine import Piece
from genai_jax.decoding.text import TextParts


class Token(NamedTuple):
    """A token of a text.

    Attributes:
        token: Its id.
        log_prob: Of the model itself, before temperature, penalties, filters and constraints.
        offset: Characters of the text before the one that it begins in.
        likeliest: The likeliest ids in its place, with their log-probabilities, likeliest first.
    """

    token: int
    log_prob: float
    offset: int
    likeliest: tuple[tuple[int, float], ...]


class Delta(NamedTuple):
    """What is new of a text.

    Attributes:
        text: Its next characters.
        tokens: Its next tokens, where they are wanted: those whose first character is shown.
    """

    text: str
    tokens: tuple[Token, ...]


_NO_TOKENS = np.zeros(0, np.int32)


class Choice:
    """A text that is being written.

    Attributes:
        count: How many tokens it has, what has ended it included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        tokens: bool = False,
    ) -> None:
        """Begin a text.

        Args:
            tokenizer: The one that the model was trained with.
            stop: Texts before which it ends.
            stop_ids: Tokens that end it, and are no part of it.
            tokens: Whether its tokens are wanted.
        """
        self.count = 0
        self._tokenizer, self._tokens = tokenizer, tokens
        self._stop_ids = frozenset(stop_ids)
        self._parts = TextParts(tokenizer, stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0  # characters of all tokens so far
        self._shown = 0
        self._held = collections.deque[Token]()

    @property
    def ended(self) -> bool:
        """Whether a stop text has come: nothing else is shown."""
        return self._parts.ended

    def take(self, piece: Piece) -> Delta:
        """Give what can be shown once these tokens have come too."""
        parts = []
        for place, token in enumerate(piece.tokens.tolist()):
            if self.ended:
                break
            self.count += 1
            if token in self._stop_ids:  # the last one, since it has ended the text
                break
            if self._tokens:
                self._hold(piece, place)
            parts.append(self._parts.take(piece.tokens[place : place + 1], last=False))
        return self._show("".join(parts), whole=False)

    def finish(self) -> Delta:
        """Give what was held back, since no more tokens come."""
        text = "" if self.ended else self._parts.take(_NO_TOKENS, last=True)
        return self._show(text, whole=not self.ended)

    def _hold(self, piece: Piece, place: int) -> None:
        token = int(piece.tokens[place])
        data = self._tokenizer.decode_bytes([token])
        # The character that its first byte is in: the one that is incomplete, or one behind it.
        first = self._decoder.getstate()[0] + data[:1]
        offset = self._read + max(0, len(first.decode("utf-8", "replace")) - 1)
        self._read += len(self._decoder.decode(data))
        ids, theirs = piece.likeliest[place].tolist(), piece.their_log_probs[place].tolist()
        likeliest = tuple(zip(ids, theirs, strict=True))
        self._held.append(Token(token, float(piece.log_probs[place]), offset, likeliest))

    def _show(self, text: str, *, whole: bool) -> Delta:
        self._shown += len(text)
        tokens = []
        while self._held and (whole or self._held[0].offset < self._shown):
            tokens.append(self._held.popleft())
        return Delta(text, tuple(tokens))
