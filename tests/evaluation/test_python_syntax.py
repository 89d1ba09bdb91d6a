import inspect
import json.decoder

import pytest

from genai_jax.evaluation.python_syntax import parses, share_of_lines_that_parse


@pytest.mark.parametrize(
    "line",
    [
        "x = 1",
        "    return x",
        "def f(x):",
        "async def f(x):  # why",
        "if x:",
        "else:",
        "elif x == 2:",
        "elif(x):",
        "try:",
        "except ValueError as error:",
        "except* ValueError:",
        "finally:",
        "case 3:",
        "match x:",
        "@decorator",
        "class A(B): pass",
        "with open(x) as f:",
        "yield x",
    ],
)
def test_lines_of_programs_parse(line):
    assert parses(line)


@pytest.mark.parametrize(
    "line", ["f(a,", "}", "x x", "def f(:", "else", "return return", '"""Open', "\0", "import"]
)
def test_fragments_and_nonsense_do_not(line):
    assert not parses(line)


def test_blank_lines_comments_and_the_last_line_do_not_count():
    assert share_of_lines_that_parse(["a = 1\n\n# what\n)(\nx = ", "b\n", ""]) == (2, 3)


def test_most_lines_of_real_programs_parse_and_shuffled_ones_do_not():
    source = inspect.getsource(json.decoder)
    parsed, lines = share_of_lines_that_parse([source])
    assert parsed / lines > 0.6
    backwards = "\n".join(line[::-1] for line in source.split("\n"))
    parsed, lines = share_of_lines_that_parse([backwards])
    assert parsed / lines < 0.2
