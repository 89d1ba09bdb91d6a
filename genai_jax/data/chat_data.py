"""Demonstrations for supervised fine-tuning: from files, or from memory, to rows."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from genai_jax.data.chat_templates import Message
from genai_jax.data.chat_turns import ChatRenderer, Turns
from genai_jax.data.conversation_files import Form, read_examples
from genai_jax.data.conversations import Example
from genai_jax.data.example_rows import (
    ExampleRows,
    LearntText,
    LearntTexts,
    TooLong,
    WholeExampleRows,
    fit_to_row,
)
from genai_jax.data.prompt_sides import validation_side

Thing = TypeVar("Thing")
Sides = tuple[Sequence[Thing], Sequence[Thing]]
"""What to train on, and what to validate with."""


@dataclasses.dataclass(frozen=True)
class ChatDataConfig:
    """Which demonstrations, and how rows are made of them.

    Attributes:
        path: A file of JSON lines (*.jsonl, *.jsonl.gz), a folder or a glob; replaces `sources`.
        sources: Where demonstrations come from: files:GLOB (JSON lines), tfds:NAME[:SPLIT].
        form: messages ({"messages": [...]}), completion ({"prompt": ..., "completion": ...}), or
            auto, which tells them apart line by line.
        answers: Which answers of a conversation are learnt: all, or the last.
        packing: Whether several examples share a row, kept apart by segments; otherwise each has a
            row to itself, padded.
        too_long: What to do with examples of more tokens than a row: drop them, truncate their
            end, or split them into rows.
        validation_fraction: Share of the prompts that are for validation, between 0 and 1.
    """

    path: str | None = None
    sources: tuple[str, ...] = ()
    form: Literal["auto", "messages", "completion"] = "auto"
    answers: Literal["all", "last"] = "all"
    packing: bool = True
    too_long: TooLong = "drop"
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_fraction(self.validation_fraction)

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The sources, once `path` has replaced them."""
        return self.sources if self.path is None else (f"files:{self.path}",)


@dataclasses.dataclass(frozen=True)
class ChatData:
    """Demonstrations, ready for training.

    Attributes:
        train: Rows by number, without end; `len` of them are an epoch.
        validation: Rows that hold the validation split once, and padding after that.
        train_examples: What the rows are made of, dropped ones too.
        validation_examples: The same of validation.
        content_digest: SHA-256 of all examples and of their sides, in hexadecimal.
        summary: What was read, and what was done to it, for human eyes.
    """

    train: ExampleRows
    validation: WholeExampleRows
    train_examples: tuple[Example, ...]
    validation_examples: tuple[Example, ...]
    content_digest: str
    summary: str


def load_examples(
    config: ChatDataConfig,
    renderer: ChatRenderer,
    *,
    length: int,
    seed: int,
    examples: Sides[Example] | None = None,
) -> ChatData:
    """Read demonstrations, render them, and plan rows of them.

    Dropped, and counted in the summary, is an example without a turn of the assistant, or without
    a token that counts, and what `too_long` says. An empty answer stays: its end is learnt.

    Args:
        config: Which, and how.
        renderer: What turns conversations into ids.
        length: T, tokens of a row, at least 2.
        seed: Of the order of the rows.
        examples: Those for training and those for validation, in place of any source; there may be
            none for validation.

    Raises:
        ValueError: If a record or an example is not as it must be, or nothing is left.
        FileNotFoundError: If no file matches.
    """
    if length < 2:
        raise ValueError(f"`length` must be at least 2, to predict a token; got {length}.")
    sides = examples if examples is not None else _read_sides(config)
    kept: list[LearntTexts] = []
    lines = []
    for name, side in zip(("train", "validation"), sides, strict=True):
        counts: Counter[str] = Counter()
        texts = _learnt(side, renderer, config, length, counts)
        if not texts and (side or name == "train"):
            raise ValueError(nothing_left("examples", name, len(side), counts))
        kept.append(LearntTexts(texts))
        lines.append((name, len(side), counts))
    train = ExampleRows(kept[0], length=length, seed=seed, packing=config.packing)
    validation = WholeExampleRows(kept[1], length=length, packing=config.packing)
    summary = [describe_source("examples", config.all_sources, examples is not None)]
    for (name, number, counts), held, rows in zip(lines, kept, (train, validation), strict=True):
        filled = len(held.tokens) / max(1, len(rows) * length)
        summary.append(
            f"{name}: {number:,} examples, {len(held.tokens):,} tokens of which "
            f"{int(held.counted.sum()):,} count, {len(rows):,} rows of {length}, {filled:.0%} full"
            + describe_counts(counts)
        )
    return ChatData(
        train=train,
        validation=validation,
        train_examples=tuple(sides[0]),
        validation_examples=tuple(sides[1]),
        content_digest=digest_sides(sides),
        summary="\n".join(summary),
    )


def _read_sides(config: ChatDataConfig) -> Sides[Example]:
    form: Form = config.form
    return read_sides(
        config.all_sources,
        config.validation_fraction,
        lambda source: list(read_examples(source, form=form)),
        lambda example: example.opening,
    )


def _learnt(
    examples: Sequence[Example],
    renderer: ChatRenderer,
    config: ChatDataConfig,
    length: int,
    counts: Counter[str],
) -> list[LearntText]:
    """Render examples, and make them fit; what is done is counted."""
    answered = []
    for example in examples:
        roles = [message["role"] for message in example.messages]
        if "assistant" in roles:
            answered.append(example)
        else:
            counts["dropped without a turn of the assistant"] += 1
    last_only = config.answers == "last"
    conversations = [example.messages for example in answered]
    rendered = render_all(renderer, conversations, [x.where for x in answered], last_only)
    texts = []
    for example, (ids, turns) in zip(answered, rendered, strict=True):
        numbers = [i for i, said in enumerate(example.messages) if said["role"] == "assistant"]
        counted = np.zeros(len(ids), bool)
        for number, (start, end) in zip(numbers[-len(turns) :], turns, strict=True):
            counted[start:end] = number not in example.silent
            counts["empty answers"] += not example.messages[number]["content"]
        parts, done = fit_to_row(LearntText(ids, counted), length, config.too_long)
        counts.update(done)
        texts += parts
    return texts


def render_all(
    renderer: ChatRenderer,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    last_only: bool,
) -> list[Turns]:
    """Render conversations, many at once; an error names the first that cannot be.

    Args:
        renderer: What turns conversations into ids.
        conversations: Messages of each.
        names: Where each is from.
        last_only: Whether the last turn of the assistant is enough.

    Raises:
        ValueError: If one cannot be rendered.
    """
    try:
        return renderer.render(conversations, last_only=last_only)
    except ValueError as error:
        if len(conversations) == 1:
            raise ValueError(f"{names[0] or 'an example'}: {error}") from error
    middle = len(conversations) // 2
    halves = [slice(None, middle), slice(middle, None)]
    return [
        turns
        for half in halves
        for turns in render_all(renderer, conversations[half], names[half], last_only)
    ]


def check_fraction(fraction: float) -> None:
    """Refuse a share that is none."""
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1; got {fraction}. Try 0.1.")


def read_sides(
    sources: Sequence[str],
    fraction: float,
    read: Callable[[str], list[Thing]],
    opening: Callable[[Thing], Sequence[Message]],
) -> Sides[Thing]:
    """Read all sources, and split what they hold by its prompts."""
    if not sources:
        raise ValueError(
            "there must be a source of conversations; got none. Give --data.path chat.jsonl."
        )
    things: list[Thing] = []
    for source in sources:
        found = read(source)
        if not found:
            raise ValueError(f"the source {source} must hold a record; got none. Choose another.")
        things += found
    validation = validation_side([opening(thing) for thing in things], fraction).tolist()
    split = list(zip(things, validation, strict=True))
    return [x for x, held in split if not held], [x for x, held in split if held]


def digest_sides(sides: Sides[Any]) -> str:
    """Compute the SHA-256 of dataclasses and their sides, in hexadecimal; `where` counts not."""
    content = hashlib.sha256()
    for side in sides:
        content.update(len(side).to_bytes(8, "little"))
        for thing in side:
            said = {name: x for name, x in vars(thing).items() if name != "where"}
            text = json.dumps([type(thing).__name__, said], sort_keys=True, default=dict)
            content.update(text.encode() + b"\n")
    return content.hexdigest()


def describe_source(what: str, sources: Sequence[str], in_memory: bool) -> str:
    """Say where data came from."""
    return f"{what}: {'made in this process' if in_memory else ', '.join(sources)}"


def describe_counts(counts: Counter[str]) -> str:
    """List what was done, and how often."""
    return "".join(f"; {what}: {n:,}" for what, n in sorted(counts.items()) if n)


def nothing_left(what: str, side: str, number: int, counts: Counter[str]) -> str:
    """Say that a side is empty, and why."""
    return (
        f"there must be {what} to make rows of for {side}; of {number:,} none is left"
        f"{describe_counts(counts)}. Give others, longer rows, or another policy for too long ones."
    )
