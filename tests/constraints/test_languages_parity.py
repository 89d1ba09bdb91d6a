"""Constraints beside llguidance: ten thousand texts that are valid, and the same tokens allowed.

The languages are the same but for what is said here, and the schemas that are compared keep away
from it. llguidance writes 1.0 as 1; has other \\u escapes too (of U+007F, of what has a shorter
one, in capitals); allows -0, longer numbers and longer exponents; lets undeclared properties and
items come unless they are excluded; has formats and Unicode's classes of its own; knows no bounds
of the number of properties; and follows recursion without an end.
"""

import json
import os
import re

import jsonschema
import numpy as np
import pytest

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.languages import compile_json_schema, compile_regex
from tests.constraints.random_schemas import random_schema, recursive
from tests.constraints.random_walks import Pieces, texts, walk

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("llguidance", reason="parity needs the extra [structured]")
import llguidance
import llguidance.numpy

VALIDATOR = jsonschema.Draft202012Validator
TEXTS, ROWS = 10_000, 40
DEPTH = 3
DELETE = b"\x7f"
ESCAPE = re.compile(rb"\\u[0-9a-f]{0,3}$")
LONG_NUMBER = re.compile(rb"[0-9]{17}$|[0-9][eE][+-]?[0-9]+$|-$")


class DistinctPieces(Pieces):
    """Without U+007F, and each piece once: llguidance has one id for each."""

    def __init__(self):
        super().__init__()
        seen = dict.fromkeys(self.pieces)
        self.pieces = (*(piece for piece in seen if piece not in (b"", DELETE)), b"")
        self.vocab_size = len(self.pieces)
        self.end = self.vocab_size - 1
        self.digest = "fedcba9876543210"


class Wrapped:
    """A tokenizer as llguidance wants it."""

    def __init__(self, pieces):
        self.eos_token_id, self.bos_token_id = pieces.end, None
        self.special_token_ids = [pieces.end]
        self.tokens = [piece or b"<end>" for piece in pieces.pieces]

    def __call__(self, text):
        data = text.encode() if isinstance(text, str) else text
        return [self.tokens.index(bytes([byte])) for byte in data]


TOKENIZER = DistinctPieces()
THEIRS = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Wrapped(TOKENIZER)))


def test_ten_thousand_texts_are_valid():
    """Random schemas with all that is supported, random logits."""
    rng = np.random.default_rng(0)
    count = seed = 0
    different = set()
    while count < TEXTS:
        seed += 1
        schema = recursive(rng) if seed % 5 == 0 else random_schema(rng)
        try:
            automaton = compile_json_schema(
                schema, TOKENIZER, depth=1 + seed % 3, whitespace=seed % 2 == 0
            )
        except ConstraintError as error:
            assert "at most" in str(error) or "that is generated" in str(error)
            continue
        budget = max(50, int(automaton.distance[automaton.start]))
        validator = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER)
        found = texts(automaton, TOKENIZER, ROWS, budget, rng)
        faults = [text for text in found if not validator.is_valid(json.loads(text))]
        assert faults == [], schema
        count += len(found)
        different.update(found)
    assert len(different) > TEXTS // 2 and seed < TEXTS // ROWS * 1.2


def comparable(schema):
    """Keep away from what differs by design."""
    if isinstance(schema, list):
        return [comparable(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    dropped = ("minProperties", "maxProperties", "format", "title", "description", "multipleOf")
    kept = {name: x for name, x in schema.items() if name not in dropped}
    if "properties" in kept:
        kept["additionalProperties"] = False
    if "prefixItems" in kept:
        kept["items"] = kept.get("items", False)
    if "w" in kept.get("pattern", "") or "." in kept.get("pattern", ""):
        kept.pop("pattern")
    if "allOf" in kept:
        kept = {"type": "null"}
    for name, value in kept.items():
        if name in ("properties", "$defs"):
            kept[name] = {k: comparable(x) for k, x in value.items()}
        elif name in ("enum", "const"):
            plain = json.dumps(value).replace("\\n", "").replace("1.0", "1")
            kept[name] = json.loads(plain)
        else:
            kept[name] = comparable(value)
    return kept


def same_masks(automaton, grammar, rows):
    """Walk both along tokens; count the steps at which they were compared."""
    matcher = llguidance.LLMatcher(THEIRS, grammar)
    assert not matcher.is_error(), matcher.get_error()
    bits = llguidance.numpy.allocate_token_bitmask(1, THEIRS.vocab_size)
    steps = 0
    for row in rows:
        matcher.reset()
        state, text = automaton.start, b""
        for token in [*row, TOKENIZER.end]:
            if LONG_NUMBER.search(text) or text.count(b'"next"') >= DEPTH - 1:
                break
            llguidance.numpy.fill_next_token_bitmask(matcher, bits)
            theirs = np.unpackbits(bits.view(np.uint8), bitorder="little")[: THEIRS.vocab_size] > 0
            ours = automaton.successors[state, automaton.classes] >= 0
            ours[-1] = automaton.distance[state] == 0
            if matcher.compute_ff_tokens():  # what is forced is spelt in one way only, by them
                assert theirs.any() and not (theirs & ~ours).any(), text
            elif ESCAPE.search(text):
                assert ours.any() and not (ours & ~theirs).any(), text
            else:
                assert np.array_equal(ours, theirs), (
                    text,
                    [TOKENIZER.pieces[i] for i in np.flatnonzero(ours != theirs)],
                )
                steps += 1
            if token == TOKENIZER.end:
                break
            assert matcher.consume_token(token), text
            state = automaton.successors[state, automaton.classes[token]]
            text += TOKENIZER.pieces[token]
    return steps


def test_schemas_allow_the_same_tokens():
    rng = np.random.default_rng(1)
    steps = schemas = 0
    while schemas < 120:
        schema = recursive(rng) if schemas % 4 == 0 else random_schema(rng)
        schema = comparable(schema)
        try:
            automaton = compile_json_schema(schema, TOKENIZER, depth=DEPTH)
        except ConstraintError:
            continue
        schemas += 1
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_flexible": False}
        )
        budget = max(40, int(automaton.distance[automaton.start]))
        steps += same_masks(automaton, grammar, walk(automaton, TOKENIZER, 3, budget, rng))
    assert steps > 2000


@pytest.mark.parametrize(
    "pattern",
    [
        "(ab|a)*c?",
        "[a-f0-9]{2}(-[a-f0-9]{2}){1,3}",
        "[^a-m]+é{2}",
        "(true|false|null)(,(true|false|null))*",
        "[\\u00e0-\\uffff]{1,3}🙂?",
        "a{2,}|b{0,3}",
    ],
)
def test_regular_expressions_allow_the_same_tokens(pattern):
    rng = np.random.default_rng(2)
    automaton = compile_regex(pattern, TOKENIZER)
    rust = re.sub(r"\\u([0-9a-f]{4})", r"\\u{\1}", pattern)
    grammar = llguidance.LLMatcher.grammar_from_regex(rust)
    assert same_masks(automaton, grammar, walk(automaton, TOKENIZER, 10, 20, rng)) > 20
