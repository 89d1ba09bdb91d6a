"""Times steps of decoding whose text is held to a JSON Schema beside steps whose text is free.

GPT-2's shape with random weights, one engine, in turn: a step costs what is read of the model, and
what a constraint adds to it. The vocabulary is made of the words of Python's own documentation, as
many as GPT-2 has.
"""

import collections
import dataclasses
import hashlib
import re
import statistics
import time
from typing import Any

import jax
import numpy as np
import tyro

from genai_jax.constraints.languages import compile_json_schema
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import GPT2_124M, LanguageModel

_SHORT = {"type": "string", "minLength": 8, "maxLength": 60}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": _SHORT,
        "summary": _SHORT,
        "author": {"type": "object", "properties": {"name": _SHORT, "email": {"format": "email"}}},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "score": {"type": "number", "minimum": 0, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["news", "sport", "art"]}, "maxItems": 5},
        "kind": {"enum": ["book", "film", "song"]},
        "open": {"type": "boolean"},
        "date": {"type": "string", "format": "date"},
        "note": {"anyOf": [_SHORT, {"type": "null"}]},
    },
    "required": ["title", "summary", "year", "tags", "kind", "open", "date"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to time.

    Attributes:
        rows: Texts at once.
        steps: Tokens of a row that are timed.
        turns: How often each contender is timed.
        temperature: Of both.
    """

    rows: int = 8
    steps: int = 48
    turns: int = 9
    temperature: float = 0.8


class WordTokenizer:
    """A vocabulary: all bytes, and the commonest words and beginnings of words."""

    def __init__(self, vocab_size: int) -> None:
        """Count the words of Python's documentation."""
        from pydoc_data.topics import topics

        counts: collections.Counter[str] = collections.Counter()
        for word, count in collections.Counter(
            re.findall(r"\s?\w+|\s?[^\w\s]+|\s+", " ".join(topics.values()))
        ).items():
            for length in range(2, len(word) + 1):
                counts[word[:length]] += count
        common = [word.encode() for word, _ in counts.most_common(vocab_size - 257)]
        pieces = [bytes([byte]) for byte in range(256)] + common
        self.pieces = (*pieces, *[b""] * (vocab_size - len(pieces)))
        self.vocab_size = vocab_size
        self.digest = hashlib.sha256(b"\0".join(self.pieces)).hexdigest()


def main() -> int:
    """Time both in turn and print the ratio."""
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    shape = GPT2_124M
    model = jax.jit(lambda: LanguageModel(shape, jax.random.key(0)))()
    tokenizer = WordTokenizer(shape.vocab_size)
    words = sum(map(bool, tokenizer.pieces))
    began = time.perf_counter()
    automaton = compile_json_schema(SCHEMA, tokenizer)
    states, classes = automaton.successors.shape
    print(
        f"the schema took {time.perf_counter() - began:.2f} s: {states:,} states, {classes:,} "
        f"classes of {words:,} tokens; the shortest text has {automaton.distance[0]} tokens"
    )
    prompts = np.random.default_rng(0).integers(0, words, (config.rows, 64))
    most = 64 + config.steps
    engine = Engine(model, rows=config.rows, context=64 + most)

    def time_step(automaton: Any) -> float:
        """Run requests side by side; the first step of each has its prompt and is not timed."""
        sampling = SamplingConfig(config.temperature)
        for prompt in prompts:
            engine.submit(Request(prompt, sampling, most, automaton=automaton))
        engine.step(1)
        began = time.perf_counter()
        ended = engine.step(config.steps)
        seconds = (time.perf_counter() - began) / config.steps
        assert not ended, "texts ended before the time was up"
        while engine.busy:
            engine.step()
        return seconds

    for contender in (None, automaton):  # compilation
        time_step(contender)
    seconds: dict[str, list[float]] = {"free": [], "constrained": []}
    for turn in range(config.turns):
        order = [("free", None), ("constrained", automaton)]
        for name, contender in order if turn % 2 == 0 else reversed(order):
            seconds[name].append(time_step(contender))
    print(f"{'':12} {'best ms':>9} {'median ms':>10}")
    for name, values in seconds.items():
        print(f"{name:12} {min(values) * 1e3:9.2f} {statistics.median(values) * 1e3:10.2f}")
    ratios = [b / a for a, b in zip(seconds["free"], seconds["constrained"], strict=True)]
    best = min(seconds["constrained"]) / min(seconds["free"])
    print(f"constrained / free: {best:.3f} of the best, {statistics.median(ratios):.3f} median")
    return 0


if __name__ == "__main__":
    main()
