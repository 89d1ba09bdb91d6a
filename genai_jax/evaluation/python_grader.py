"""Grades functions by real Python, where that is asked for; the default is the small language.

A process runs each program (`python_process`), within limits of time and memory, without files and
network. That keeps accidents in; it is NO security sandbox. Do not give it the programs of
strangers, nor those of a model that may have learned to do harm, on a machine that matters.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import genai_jax
from genai_jax.data.tasks.task import Task
from genai_jax.evaluation.python_process import is_value

_MOST_CHARACTERS = 10_000
_MOST_ANSWER = 1 << 20
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from genai_jax.evaluation import {0}; {0}.main()"
)


def run_python(
    text: str, inputs: Sequence[Sequence[Any]], *, seconds: int = 2
) -> list[int | list[int] | None]:
    """Call the last function that a text defines, in a Python process of its own.

    Args:
        text: The program.
        inputs: Arguments of each call.
        seconds: Of the processor's time, for all the calls together. Where the system does not
            bound that, or the program sleeps, thrice as long by the clock and ten seconds.

    Returns:
        Of each call, an integer or a list of integers; None where it failed, or gave anything else.
        A process that ends early gives None for all, and so does a text that is very long.
    """
    nothing: list[int | list[int] | None] = [None for _ in inputs]
    if len(text) > _MOST_CHARACTERS:
        return nothing
    request = json.dumps({"text": text, "inputs": list(map(list, inputs)), "seconds": seconds})
    answer = _ask(request.encode(), 3 * seconds + 10)
    try:
        found = json.loads(answer)
        values = [one.get("value") for one in found]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return nothing
    if len(values) != len(inputs):
        return nothing
    return [value if is_value(value) else None for value in values]


def _ask(request: bytes, patience: float) -> bytes:
    """Start the process, hand it a request, and read what it answers, up to a bound."""
    root = Path(genai_jax.__file__).parent.parent
    command = [sys.executable, "-I", "-c", _START.format("python_process"), str(root)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(patience, _end, [process])
    timer.start()
    try:
        with process.stdin, process.stdout:
            process.stdin.write(request)
            process.stdin.close()
            return process.stdout.read(_MOST_ANSWER)
    except BrokenPipeError:
        return b""
    finally:
        timer.cancel()
        _end(process)
        process.wait()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process, and whatever it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def make_python_grader(*, run_real_python: bool, seconds: int = 2) -> Callable[[Task, str], float]:
    """Make `(task, text) -> grade` for functions, which runs the text by real Python.

    Args:
        run_real_python: Must be True: says that whoever calls this knows what it does.
        seconds: Of the processor's time, for a text.

    Returns:
        A function that gives 1 where the last function of the text passes every test of the task,
        else 0.

    Raises:
        ValueError: If it is not asked for.
    """
    if not run_real_python:
        raise ValueError(
            "`run_real_python` must be True for programs to be run by Python itself, which is no "
            "sandbox; got False. Use FUNCTIONS.grade, which runs them by an interpreter of ours."
        )

    def grade(task: Task, text: str) -> float:
        found = run_python(text.strip(), [given for given, _ in task.checks], seconds=seconds)
        wanted = [value for _, value in task.checks]
        same = (type(x) is type(y) and x == y for x, y in zip(found, wanted, strict=True))
        return float(all(same))

    return grade
