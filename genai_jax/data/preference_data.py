"""Preferences and judged answers for post-training: from files, or from memory, to rows."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from genai_jax.data.answer_rows import (
    AnsweredPrompt,
    AnswerRows,
    TooLongPrompt,
    WholeAnswerRows,
    behind_another,
    choose_partners,
    fit_answers,
)
from genai_jax.data.chat_data import (
    Sides,
    check_fraction,
    describe_counts,
    describe_source,
    digest_sides,
    nothing_left,
    read_sides,
    render_all,
)
from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.conversation_files import Form, read_judged, read_preferences
from genai_jax.data.conversations import Judged, Messages, Preference, digest_of_messages, said


@dataclasses.dataclass(frozen=True)
class PreferenceDataConfig:
    """Which preferences, and how rows are made of them.

    Attributes:
        path: A file of JSON lines (*.jsonl, *.jsonl.gz), a folder or a glob; replaces `sources`.
        sources: Where preferences come from: files:GLOB (JSON lines), tfds:NAME[:SPLIT].
        form: pair ({"prompt": ..., "chosen": ..., "rejected": ...}, and "margin"), ranking
            ({"prompt": ..., "ranking": [best, ..., worst]}), judged ({"prompt": ...,
            "completion": ..., "label": true}; for KTO), or auto, which tells them apart line by
            line.
        answers: Answers of a row; of a ranking of more the best, the worst and some evenly
            between them are taken. 0 is as many as the longest ranking has.
        identical: What to do with a prompt that has the same answer twice: drop it, or stop with
            an error.
        too_long: What to do with a prompt and answer of more tokens than a row: drop them, or
            truncate the beginning of the prompt.
        validation_fraction: Share of the prompts that are for validation, between 0 and 1.
    """

    path: str | None = None
    sources: tuple[str, ...] = ()
    form: Literal["auto", "pair", "ranking", "judged"] = "auto"
    answers: int = 0
    identical: Literal["drop", "error"] = "drop"
    too_long: TooLongPrompt = "drop"
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_fraction(self.validation_fraction)
        if self.answers < 0 or self.answers == 1:
            raise ValueError(
                f"`answers` must be at least 2, or 0 for all; got {self.answers}. Try 2."
            )

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The sources, once `path` has replaced them."""
        return self.sources if self.path is None else (f"files:{self.path}",)


@dataclasses.dataclass(frozen=True)
class AnswerData:
    """Answers to prompts, ready for training.

    Attributes:
        train: Rows by number, without end; `len` of them are an epoch.
        validation: Rows that hold the validation split once, and padding after that.
        num_answers: K, answers of a row.
        train_examples: What the rows are made of, dropped ones too.
        validation_examples: The same of validation.
        content_digest: SHA-256 of all examples and of their sides, in hexadecimal.
        summary: What was read, and what was done to it, for human eyes.
    """

    train: AnswerRows
    validation: WholeAnswerRows
    num_answers: int
    train_examples: tuple[Preference | Judged, ...]
    validation_examples: tuple[Preference | Judged, ...]
    content_digest: str
    summary: str


def load_preferences(
    config: PreferenceDataConfig,
    renderer: ChatRenderer,
    *,
    length: int,
    seed: int,
    preferences: Sides[Preference] | None = None,
) -> AnswerData:
    """Read preferences, render them, and plan rows of them.

    An empty answer is an answer: its end counts. What is dropped is counted in the summary.

    Args:
        config: Which, and how.
        renderer: What turns conversations into ids.
        length: T, tokens of a prompt with an answer.
        seed: Of the order of the rows.
        preferences: Those for training and those for validation, in place of any source; there may
            be none for validation.

    Raises:
        ValueError: If a record or a preference is not as it must be, or nothing is left.
        FileNotFoundError: If no file matches.
    """
    form: Form = config.form
    sides = preferences
    if sides is None:
        sides = read_sides(
            config.all_sources,
            config.validation_fraction,
            lambda source: list(read_preferences(source, form=form)),
            lambda preference: preference.opening,
        )
    most = max((len(x.answers) for side in sides for x in side), default=2)
    num_answers = config.answers or most
    rows, lines = [], []
    for name, side in zip(("train", "validation"), sides, strict=True):
        counts: Counter[str] = Counter()
        chosen = [_spread(preference, num_answers) for preference in side]
        tasks = [(x.prompt, answers, x.margin or 0.0, x.where) for x, answers in chosen]
        kept = [x for x in _rendered(tasks, renderer, config, length, counts) if x is not None]
        if not kept and (side or name == "train"):
            raise ValueError(nothing_left("preferences", name, len(side), counts))
        rows.append(WholeAnswerRows(kept, length=length, num_answers=num_answers))
        margins = sum(x.margin is not None for x in side)
        lines.append(
            f"{name}: {len(side):,} preferences, {margins:,} with a margin, {len(kept):,} rows of "
            f"{num_answers} answers in {length} tokens" + describe_counts(counts)
        )
    source = describe_source("preferences", config.all_sources, preferences is not None)
    return AnswerData(
        train=AnswerRows(rows[0], seed=seed),
        validation=rows[1],
        num_answers=num_answers,
        train_examples=tuple(sides[0]),
        validation_examples=tuple(sides[1]),
        content_digest=digest_sides(sides),
        summary="\n".join([source, *lines]),
    )


def load_judged(
    config: PreferenceDataConfig,
    renderer: ChatRenderer,
    *,
    length: int,
    seed: int,
    judged: Sides[Judged | Preference] | None = None,
) -> AnswerData:
    """Read judged answers, render them, and plan rows of each beside an answer to another prompt.

    Of a preference the best answer is desirable and the worst is not; others are left out. A row
    has K = 2: the answer, and behind the same prompt an answer to another one, the same in every
    epoch, whose end is cut off where it does not fit; and `desirable`, 1 or 0.

    Args:
        config: Which, and how.
        renderer: What turns conversations into ids.
        length: T, tokens of a prompt with an answer.
        seed: Of the order of the rows, and of the partners.
        judged: Those for training and those for validation, in place of any source; there may be
            none for validation.

    Raises:
        ValueError: If a record or an answer is not as it must be, nothing is left, or a side has
            one prompt only.
        FileNotFoundError: If no file matches.

    Reference: Ethayarajh et al., "KTO", arXiv:2402.01306, section 4.1, where the reference point is
        estimated from answers to other prompts of the same batch; here a partner is drawn from all
        of the side, so that a row does not depend on its batch.
    """
    form: Form = config.form
    sides = judged
    if sides is None:
        sides = read_sides(
            config.all_sources,
            config.validation_fraction,
            lambda source: list(read_judged(source, form=form)),
            lambda answer: answer.opening,
        )
    rows, lines = [], []
    for name, side in zip(("train", "validation"), sides, strict=True):
        counts: Counter[str] = Counter()
        answers = [answer for x in _distinct(side, config, counts) for answer in _apart(x)]
        tasks = [(x.prompt, (x.answer,), 0.0, x.where) for x in answers]
        found = _rendered(tasks, renderer, config, length, counts)
        pairs = [(a, x) for a, x in zip(answers, found, strict=True) if x is not None]
        if not pairs and (side or name == "train"):
            raise ValueError(nothing_left("judged answers", name, len(side), counts))
        rows.append(_judged_rows(pairs, name, length, seed))
        good = sum(answer.desirable for answer, _ in pairs)
        lines.append(
            f"{name}: {good:,} desirable answers and {len(pairs) - good:,} undesirable, a row of "
            f"{length} tokens each" + describe_counts(counts)
        )
    source = describe_source("judged answers", config.all_sources, judged is not None)
    return AnswerData(
        train=AnswerRows(rows[0], seed=seed),
        validation=rows[1],
        num_answers=2,
        train_examples=tuple(sides[0]),
        validation_examples=tuple(sides[1]),
        content_digest=digest_sides(sides),
        summary="\n".join([source, *lines]),
    )


def _spread(preference: Preference, most: int) -> tuple[Preference, tuple[str, ...]]:
    """Take at most so many answers of a ranking, the best and the worst among them."""
    answers = preference.answers
    places = np.linspace(0, len(answers) - 1, min(most, len(answers))).round().astype(int)
    return preference, tuple(answers[i] for i in places.tolist())


def _apart(answer: Judged | Preference) -> tuple[Judged, ...]:
    """Judge the answers of a preference: its best and its worst."""
    if isinstance(answer, Judged):
        return (answer,)
    best, worst = answer.answers[0], answer.answers[-1]
    return (
        Judged(answer.prompt, best, True, answer.where),
        Judged(answer.prompt, worst, False, answer.where),
    )


_SAME = "dropped since two answers are the same"


def _distinct(
    side: Sequence[Judged | Preference], config: PreferenceDataConfig, counts: Counter[str]
) -> list[Judged | Preference]:
    """Leave out preferences whose best answer is the worst too."""
    kept = []
    for answer in side:
        if isinstance(answer, Preference) and answer.answers[0] == answer.answers[-1]:
            _refuse_same(config, answer.where)
            counts[_SAME] += 1
        else:
            kept.append(answer)
    return kept


def _refuse_same(config: PreferenceDataConfig, where: str) -> None:
    if config.identical == "error":
        raise ValueError(
            f"{where or 'a preference'}: the answers to a prompt must differ; got one twice. "
            "Leave the line out, or give --data.identical drop."
        )


def _rendered(
    tasks: Sequence[tuple[Messages, tuple[str, ...], float, str]],
    renderer: ChatRenderer,
    config: PreferenceDataConfig,
    length: int,
    counts: Counter[str],
) -> list[AnsweredPrompt | None]:
    """Render prompts with their answers, and make them fit; None and counted is what is dropped."""
    conversations = [
        (*prompt, said("assistant", answer)) for prompt, answers, *_ in tasks for answer in answers
    ]
    names = [where for _, answers, _, where in tasks for _ in answers]
    rendered = iter(render_all(renderer, conversations, names, True))
    found: list[AnsweredPrompt | None] = []
    for _, answers, margin, where in tasks:
        turns = [next(rendered) for _ in answers]
        # Before every answer a renderer writes the same.
        prompt = turns[0].ids[: turns[0].turns[-1][0]]
        ids = tuple(whole[slice(*places[-1])] for whole, places in turns)
        if len({answer.tobytes() for answer in ids}) < len(ids):
            _refuse_same(config, where)
            counts[_SAME] += 1
            found.append(None)
            continue
        counts["empty answers"] += sum(not answer for answer in answers)
        kept, done = fit_answers(AnsweredPrompt(prompt, ids, margin), length, config.too_long)
        counts.update(done)
        found.append(kept)
    return found


def _judged_rows(
    pairs: Sequence[tuple[Judged, AnsweredPrompt]], side: str, length: int, seed: int
) -> WholeAnswerRows:
    """Make rows of judged answers, each beside another prompt's."""
    numbers: dict[bytes, int] = {}
    prompts = [
        numbers.setdefault(digest_of_messages(answer.prompt), len(numbers)) for answer, _ in pairs
    ]
    try:
        partners = choose_partners(np.array(prompts, np.int64), seed=seed)
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from error
    answered = behind_another([x for _, x in pairs], partners, length=length)
    desirable = np.array([answer.desirable for answer, _ in pairs], np.float32)
    return WholeAnswerRows(answered, length=length, num_answers=2, columns={"desirable": desirable})
