"""Conversations from JSON lines and from prepared sets of tensorflow-datasets.

Forms of a record:

    messages     {"messages": [{"role": "user", "content": ...}, ...]}, as OpenAI's
    completion   {"prompt": ..., "completion": ...}
    pair         {"prompt": ..., "chosen": ..., "rejected": ..., "margin": 0.5}; margin may lack
    ranking      {"prompt": ..., "ranking": [best, ..., worst]}
    judged       {"prompt": ..., "completion": ..., "label": true}

A prompt is a text, which the user says, or messages. An answer is a text, which the assistant says,
or messages: one of the assistant's, alone or after those of the prompt. Other fields are not read.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from genai_jax.data.chat_templates import check_messages
from genai_jax.data.conversations import Example, Judged, Messages, Preference, opening_of, said
from genai_jax.data.corpora import matching_files
from genai_jax.data.prepared_sets import open_prepared_set

Form = Literal["auto", "messages", "completion", "pair", "ranking", "judged"]
Kind = TypeVar("Kind")
Record = Mapping[str, Any]

_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "ranking": ("prompt", "ranking"),
    "pair": ("prompt", "chosen", "rejected"),
    "judged": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
}


def read_examples(source: str, *, form: Form = "auto") -> Iterator[Example]:
    """Read demonstrations: records of the forms messages and completion.

    Args:
        source: `files:GLOB` of `.jsonl` or `.jsonl.gz` (a folder stands for all in it), or
            `tfds:NAME[:SPLIT]`.
        form: Of the records; auto tells them apart one by one.

    Raises:
        ValueError: Naming the file and the line, if a record is not as it must be.
        FileNotFoundError: If no file matches.
    """
    makers = {"messages": _from_messages, "completion": _from_completion}
    return _read(source, form, makers, "a demonstration")


def read_preferences(source: str, *, form: Form = "auto") -> Iterator[Preference]:
    """Read answers in order: records of the forms pair and ranking; arguments: `read_examples`."""
    makers = {"ranking": _from_ranking, "pair": _from_pair}
    return _read(source, form, makers, "a preference")


def read_judged(source: str, *, form: Form = "auto") -> Iterator[Judged | Preference]:
    """Read judged answers, alone or in order: records of the forms judged, pair and ranking.

    Arguments: `read_examples`.
    """
    makers: dict[str, Callable[[Record, str], Judged | Preference]] = {
        "judged": _from_judged,
        "ranking": _from_ranking,
        "pair": _from_pair,
    }
    return _read(source, form, makers, "a judged answer")


def read_prompts(source: str) -> Iterator[tuple[Messages, str | None]]:
    """Read what is to be answered, and right answers where records have one.

    A record has a `prompt`, text or messages, or `messages`, of which those before the assistant's
    first answer are taken; and perhaps an `answer`, the text that is right. Other fields are not
    read, so that demonstrations and preferences serve too.

    Args:
        source: As in `read_examples`.

    Raises:
        ValueError: Naming the file and the line, if a record is not as it must be.
        FileNotFoundError: If no file matches.
    """
    for where, record in _records(source):
        try:
            if record.get("prompt") is not None:
                asked = _prompt(record)
            elif record.get("messages") is not None:
                asked = opening_of(_messages(record["messages"], "messages")[0])
            else:
                raise ValueError(
                    f"there must be a `prompt`, or `messages`; got {_names(record)}. Rename the "
                    "fields."
                )
            answer = record.get("answer")
            if answer is not None and not isinstance(answer, str):
                raise ValueError(f"`answer` must be a text; got {answer!r:.80}.")
            yield asked, answer
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _read(
    source: str, form: Form, makers: Mapping[str, Callable[[Record, str], Kind]], what: str
) -> Iterator[Kind]:
    """Make something of every record of a source."""
    if form != "auto" and form not in makers:
        raise ValueError(
            f"`form` must be auto or, for {what}, one of {', '.join(makers)}; got {form!r}."
        )
    for where, record in _records(source):
        try:
            chosen = _form_of(record, makers, what) if form == "auto" else form
            missing = [name for name in _FIELDS[chosen] if record.get(name) is None]
            if missing:
                raise ValueError(
                    f"a record of the form {chosen} must have the fields "
                    f"{', '.join(_FIELDS[chosen])}; {', '.join(missing)} is missing. There are: "
                    f"{_names(record)}."
                )
            yield makers[chosen](record, where)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _form_of(record: Record, makers: Mapping[str, Any], what: str) -> str:
    """Tell a record's form by its fields."""
    has = [
        form for form, needed in _FIELDS.items() if all(record.get(x) is not None for x in needed)
    ]
    fitting = [form for form in has if form in makers]
    if not fitting or (fitting[0] == "completion" and "judged" in has):
        wanted = "; or ".join(", ".join(_FIELDS[form]) for form in makers)
        other = f", which is of the form {has[0]}" if has else ""
        raise ValueError(
            f"{what} must have the fields {wanted}; got {_names(record)}{other}. Rename the "
            "fields, or give the form by name."
        )
    return fitting[0]


def _names(record: Record) -> str:
    return ", ".join(map(str, record)) or "no field"


def _records(source: str) -> Iterator[tuple[str, Record]]:
    """Read the records of a source, with a name for each."""
    kind, _, rest = source.partition(":")
    if kind == "files" and rest:
        return _file_records(rest)
    if kind == "tfds" and rest:
        return _tfds_records(rest)
    raise ValueError(
        f"a source of conversations must be files:GLOB or tfds:NAME[:SPLIT]; got {source!r}. For "
        f"files of your own write files:{rest or source}."
    )


def _is_lines(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _file_records(pattern: str) -> Iterator[tuple[str, Record]]:
    found = matching_files(pattern)
    files = [path for path in found if _is_lines(path)]
    if not files or (len(files) < len(found) and not Path(pattern).expanduser().is_dir()):
        other = next(path for path in found if not _is_lines(path))
        raise ValueError(
            f"conversations must be JSON lines, in files named *.jsonl or *.jsonl.gz; got {other}. "
            "Write an object a line, and name the file so."
        )
    for path in files:
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    where = f"{path}:{number}"
                    if line.strip():
                        yield where, _object(line.removeprefix(b"\xef\xbb\xbf"), where)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} must be whole gzip data; {error}. Compress it again, or drop its `.gz`."
            ) from error


def _object(line: bytes, where: str) -> Record:
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: each line must be UTF-8; {error}. Write the file again as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: each line must be one JSON object; {error}. Write it on one line, or name "
            "a file that is no JSON lines otherwise."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: each line must be one JSON object; got {found!r:.80}.")
    return found


def _tfds_records(spec: str) -> Iterator[tuple[str, Record]]:
    name, _, split = spec.partition(":")
    source = open_prepared_set(name, split or "train")
    for i in range(len(source)):
        where = f"tfds:{spec}[{i}]"
        try:
            yield where, {name: _plain(value) for name, value in source[i].items()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: texts must be UTF-8; {error}.") from error


def _plain(value: Any) -> Any:
    """Make what JSON would hold of what tensorflow-datasets gives."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    fields = {name: _plain(each) for name, each in value.items()}
    # A sequence of features is kept as a sequence for each of them.
    if fields.keys() >= {"role", "content"} and isinstance(fields["role"], list):
        columns = [fields[name] for name in fields]
        return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]
    return fields


def _messages(value: Any, name: str) -> tuple[Messages, tuple[int, ...]]:
    """Read messages, and the numbers of those that say by their `weight` that they are silent."""
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"`{name}` must be a list of messages, at least one; got {value!r:.80}. A message is "
            '{"role": "user", "content": "..."}.'
        )
    kept: list[Any] = []
    silent = []
    for number, message in enumerate(value):
        if isinstance(message, dict) and "weight" in message:
            weight = message["weight"]
            if weight not in (0, 1):
                raise ValueError(f"`weight` of message {number} must be 0 or 1; got {weight!r}.")
            if weight == 0 and message.get("role") == "assistant":
                silent.append(number)
            message = {key: x for key, x in message.items() if key != "weight"}
        kept.append(message)
    return tuple(check_messages(kept)), tuple(silent)


def _prompt(record: Record) -> Messages:
    """Read a prompt."""
    prompt = record["prompt"]
    return (said("user", prompt),) if isinstance(prompt, str) else _messages(prompt, "prompt")[0]


def _answer(value: Any, name: str, prompt: Messages) -> str:
    """Read an answer: a text, or a message of the assistant's, alone or after the prompt's."""
    if isinstance(value, str):
        return value
    messages, _ = _messages(value, name)
    if messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    last = messages[-1] if messages else None
    is_answer = isinstance(last, dict) and last.get("role") == "assistant"
    if len(messages) != 1 or not is_answer or not isinstance(messages[0].get("content"), str):
        raise ValueError(
            f"`{name}` must be a text, or messages that end with one of the assistant's after "
            f"those of `prompt`, or with nothing before it; got {value!r:.120}. Give the text."
        )
    return messages[0]["content"]


def _from_messages(record: Record, where: str) -> Example:
    for name in ("tools", "functions"):
        if record.get(name):
            raise ValueError(f"a conversation must be text only; it has `{name}`. Leave it out.")
    return Example(*_messages(record["messages"], "messages"), where)


def _from_completion(record: Record, where: str) -> Example:
    prompt = _prompt(record)
    answer = said("assistant", _answer(record["completion"], "completion", prompt))
    silent = tuple(i for i, message in enumerate(prompt) if message["role"] == "assistant")
    return Example((*prompt, answer), silent, where)


def _from_pair(record: Record, where: str) -> Preference:
    prompt, margin = _prompt(record), record.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise ValueError(f"`margin` must be a number; got {margin!r:.40}. Leave it out.")
    answers = tuple(_answer(record[name], name, prompt) for name in ("chosen", "rejected"))
    return Preference(prompt, answers, None if margin is None else float(margin), where)


def _from_ranking(record: Record, where: str) -> Preference:
    prompt, ranking = _prompt(record), record["ranking"]
    if not isinstance(ranking, list):
        raise ValueError(f"`ranking` must be a list, the best first; got {ranking!r:.80}.")
    answers = tuple(_answer(x, f"ranking[{i}]", prompt) for i, x in enumerate(ranking))
    return Preference(prompt, answers, None, where)


def _from_judged(record: Record, where: str) -> Judged:
    prompt, label = _prompt(record), record["label"]
    if label not in (True, False):
        raise ValueError(f"`label` must be true or false; got {label!r:.40}.")
    return Judged(prompt, _answer(record["completion"], "completion", prompt), bool(label), where)
