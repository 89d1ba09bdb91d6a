"""Asks the program `chat_rendering` to render conversations, many at once: a start takes longer."""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genai_jax.data import chat_rendering

_BATCH = 1024  # conversations of a process
_BATCH_CHARACTERS = 1 << 20
_LEAST_JINJA2 = (3, 1, 6)  # strangers' templates have left the sandboxes of older ones
_OUT_OF_TIME = (-9, -24)  # by SIGKILL or SIGXCPU


def render_in_process(
    request: Mapping[str, Any], batch: Sequence[dict[str, Any]]
) -> Iterator[Mapping[str, str]]:
    """Have conversations rendered, many by one process, but not so many that it may not.

    Args:
        request: `source`, `tokens`, `marks`, `today` and `seconds` of the template.
        batch: What it may read of each conversation.

    Returns:
        For each, `plain` and `marked`, or `error`.

    Raises:
        ModuleNotFoundError: If Jinja2 is not installed.
    """
    first = 0
    while first < len(batch):
        last, size = first + 1, _size(batch[first])
        while last < len(batch) and last - first < _BATCH:
            size += _size(batch[last])
            if size > _BATCH_CHARACTERS:
                break
            last += 1
        yield from _ask_or_halve(request, batch[first:last])
        first = last


def _size(given: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in given["messages"])


def _ask_or_halve(
    request: Mapping[str, Any], batch: Sequence[dict[str, Any]]
) -> Iterator[Mapping[str, str]]:
    """Have conversations rendered; where they are too much together, in halves."""
    answers = _ask(dict(request) | {"conversations": list(batch)})
    if len(batch) == 1:
        yield answers[0] if isinstance(answers, list) else answers
    elif isinstance(answers, list):
        for answer, given in zip(answers, batch, strict=True):
            # Alone it may have what it lacks: the memory that others took.
            yield from _ask_or_halve(request, [given]) if "error" in answer else [answer]
    else:
        middle = len(batch) // 2
        yield from _ask_or_halve(request, batch[:middle])
        yield from _ask_or_halve(request, batch[middle:])


def _ask(request: Mapping[str, Any]) -> list[Mapping[str, str]] | Mapping[str, str]:
    """Run `chat_rendering` as a program: an answer each, or why there are none."""
    try:
        version = importlib.metadata.version("jinja2")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < _LEAST_JINJA2:
        raise ModuleNotFoundError(
            "a chat template needs the package jinja2, "
            f"{'.'.join(map(str, _LEAST_JINJA2))} or newer, which is not installed. "
            "Install it: pip install -e '.[chat]'."
        )
    # -P: the files beside the program are not modules of its own (tokenizers.py, text.py).
    command = [sys.executable, "-P", str(Path(chat_rendering.__file__))]
    content = json.dumps(request).encode()
    too_long = {"error": f"it takes longer than {request['seconds']} s"}
    try:
        # The clock is for systems that do not bound a process's own time; a start may be slow.
        patience = 3 * request["seconds"] + 30
        done = subprocess.run(command, input=content, capture_output=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return too_long
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode in _OUT_OF_TIME:
        return too_long
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return {"error": f"its process ended with {done.returncode}: {' '.join(said)[:300]}"}
