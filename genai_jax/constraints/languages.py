"""Languages that generation can be held to, for a tokenizer: a regular expression, a JSON Schema.

Both become a `TokenAutomaton`, on the host and once; what follows it token by token is elsewhere.
"""

import functools
import zlib
from typing import NamedTuple

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_schema import json_schema_automaton
from genai_jax.constraints.regular_expressions import full_match
from genai_jax.constraints.schema_document import SchemaLike, schema_text
from genai_jax.constraints.token_automaton import (
    PieceTokenizer,
    PieceTrie,
    TokenAutomaton,
    token_automaton,
)

__all__ = [
    "JSON_OBJECT",
    "ConstraintError",
    "PieceTokenizer",
    "TokenAutomaton",
    "compile_json_schema",
    "compile_regex",
]

JSON_OBJECT = {"type": "object"}
"""The schema of any object."""


def compile_regex(pattern: str, tokenizer: PieceTokenizer) -> TokenAutomaton:
    """Say which tokens may follow, for a text that a regular expression matches from end to end.

    Args:
        pattern: Of the subset of `regular_expressions`.
        tokenizer: Of the model.

    Raises:
        ConstraintError: If the pattern is not supported, its automaton is too large, or the
            tokenizer cannot spell any text that it matches.
    """
    return _compiled(_Language(pattern), _Vocabulary(tokenizer))


def compile_json_schema(
    schema: SchemaLike,
    tokenizer: PieceTokenizer,
    *,
    depth: int = 4,
    whitespace: bool = False,
) -> TokenAutomaton:
    """Say which tokens may follow, for a JSON text that is valid by a schema.

    Args:
        schema: Of the subset of `json_schema`; `JSON_OBJECT` is any object.
        tokenizer: Of the model.
        depth: Times that recursion is followed, and how deeply values of which nothing is said
            are nested.
        whitespace: Whether a space may stand behind `,` and `:`.

    Raises:
        ConstraintError: If the schema is not supported or has no valid value, its automaton is too
            large, or the tokenizer cannot spell any of its texts.
    """
    asked = _Language(schema_text(schema), True, depth, whitespace)
    return _compiled(asked, _Vocabulary(tokenizer))


class _Language(NamedTuple):
    """What is asked for: a regular expression or, with its options, a JSON Schema."""

    text: str
    is_schema: bool = False
    depth: int = 0
    whitespace: bool = False


class _Vocabulary:
    """A tokenizer as a key: equal to any other with the same digest and size."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self.tokenizer = tokenizer
        self._key = (tokenizer.digest, tokenizer.vocab_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Vocabulary) and self._key == other._key

    def __hash__(self) -> int:
        return zlib.crc32(self._key[0].encode())


@functools.lru_cache(maxsize=4)
def _trie(vocabulary: _Vocabulary) -> PieceTrie:
    return PieceTrie(vocabulary.tokenizer.pieces, vocabulary.tokenizer.vocab_size)


@functools.lru_cache(maxsize=8)
def _compiled(asked: _Language, vocabulary: _Vocabulary) -> TokenAutomaton:
    """Compile once for a language and a vocabulary; what is returned again must stay as it is."""
    if not asked.is_schema:
        dfa = full_match(asked.text)
    else:
        dfa = json_schema_automaton(asked.text, depth=asked.depth, whitespace=asked.whitespace)
    found = token_automaton(dfa, _trie(vocabulary))
    for table in (found.classes, found.successors, found.distance):
        table.setflags(write=False)
    return found
