"""Runs a Python function in a process of its own, for `python_grader`: a request in, values out.

Only this process runs it: nothing of it is called where models live. What bounds it are limits that
the kernel keeps: the processor's time, memory, no file written, and no descriptor opened: no file,
no socket. Those are limits for accidents, not a sandbox: it is the same user's process, which may
for instance send signals to others.
"""

import json
import sys
import types
from collections.abc import Sequence
from typing import Any

from genai_jax.data.chat_rendering import limit_resources


def limit_descriptors() -> None:
    """Have this process open no file and no socket any more, nor start another process."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):  # the latter not for root
        try:
            resource.setrlimit(what, (0, 0))
        except (ValueError, OSError):
            continue


def is_value(value: Any) -> bool:
    """Whether a value is one of the small language's: an integer, or a list of integers."""
    if isinstance(value, list):
        return all(type(item) in (int, bool) for item in value)
    return type(value) in (int, bool)


def call_program(text: str, inputs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Run a program, then the last function that it defines on each of some arguments.

    Returns:
        For each, `value`; or nothing where it failed, or gave something else than integers.
    """
    names: dict[str, Any] = {"__name__": "program"}
    nothing: dict[str, Any] = {}
    try:
        exec(compile(text, "program", "exec"), names)
    except BaseException:  # whatever a program can raise, the end of the process too
        return [nothing for _ in inputs]
    functions = [x for x in names.values() if isinstance(x, types.FunctionType)]
    results = []
    for given in inputs:
        try:
            value = functions[-1](*given)
            results.append({"value": value} if is_value(value) and json.dumps(value) else nothing)
        except BaseException:
            results.append(nothing)
    return results


def main() -> None:
    """Answer the request on stdin."""
    import collections
    import functools
    import itertools
    import math
    import re
    import warnings

    del collections, functools, itertools, math, re  # loaded, before files are out of reach
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.buffer.read())
    answers = sys.stdout
    sys.stdout = sys.stderr  # where nobody reads
    limit_resources(request["seconds"])
    limit_descriptors()
    results = call_program(request["text"], request["inputs"])
    answers.write(json.dumps(results))
    answers.flush()


if __name__ == "__main__":
    main()
