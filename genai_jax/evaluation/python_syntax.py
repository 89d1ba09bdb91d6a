"""Whether what a model writes is Python: the share of its lines that parse."""

import ast
import re
import warnings
from collections.abc import Iterable

_BEFORE = {"else": "if x:\n  x\n", "elif": "if x:\n  x\n", "case": "match x:\n "}
_BEFORE |= dict.fromkeys(("except", "finally"), "try:\n  x\n")

_AFTER = ("", "\n  x", "\n  x\nfinally: x", "\n case x: x", "\nclass x: x")


def parses(line: str) -> bool:
    """Whether `ast.parse` accepts a line, taken on its own.

    Indentation is removed. A line that opens a block is given one, and one that continues a
    statement (`else:`, `except ...:`) is given its beginning: every line of a program with one
    statement a line parses.
    """
    code = line.strip()
    word = re.split(r"\W", code, maxsplit=1)[0]
    code = _BEFORE.get(word, "") + code
    return any(_accepted(code + rest) for rest in _AFTER)


def _accepted(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in strings, say
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def share_of_lines_that_parse(texts: Iterable[str]) -> tuple[int, int]:
    """Count the lines that parse.

    Args:
        texts: Programs. Blank lines and comments do not count; nor does the last line of a text,
            which may be cut off anywhere.

    Returns:
        How many lines parse, and how many there are.
    """
    every = [line.strip() for text in texts for line in text.split("\n")[:-1]]
    lines = [line for line in every if line and not line.startswith("#")]
    return sum(map(parses, lines)), len(lines)
