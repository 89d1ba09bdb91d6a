"""Grading by real Python: as the small language does, within limits, and only if asked for."""

import concurrent.futures

import pytest

from genai_jax.data.tasks.functions import FUNCTIONS
from genai_jax.data.tasks.small_language import run_program
from genai_jax.data.tasks.small_syntax import ProgramError
from genai_jax.evaluation.python_grader import make_python_grader, run_python
from tests.data.tasks.random_programs import random_program

INPUTS = ((0, 1), (5, -3), (-4, 12))


def ours(text, given):
    try:
        return run_program(text, given)
    except ProgramError:
        return None


def test_real_python_agrees_on_random_programs():
    programs = [random_program(seed) for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        theirs = list(pool.map(lambda text: run_python(text, INPUTS), programs))
    pairs = [
        (ours(text, given), found)
        for text, values in zip(programs, theirs, strict=True)
        for given, found in zip(INPUTS, values, strict=True)
    ]
    assert sum(mine is not None for mine, _ in pairs) > 60
    assert len({str(mine) for mine, _ in pairs}) > 20
    for mine, found in pairs:  # what ours stops at a limit, Python may finish
        assert mine is None or (mine == found and type(mine) is type(found))


def test_real_python_is_for_those_who_ask():
    with pytest.raises(ValueError, match="no sandbox"):
        make_python_grader(run_real_python=False)


def test_functions_are_graded_alike():
    grade = make_python_grader(run_real_python=True)
    for number in range(3):
        task = FUNCTIONS.make(0, number, "hard")
        assert grade(task, f" {task.answer}\n") == FUNCTIONS.grade(task, task.answer) == 1
        assert grade(task, task.answer + "+1") == FUNCTIONS.grade(task, task.answer + "+1") == 0
    # Python may do what the small language cannot.
    inside = task.answer.partition("return ")[2]
    text = f"import math\ndef g(x):\n  print('so', end='')\n  h = lambda x: {inside}\n  return h(x)"
    assert grade(task, text) == 1 and FUNCTIONS.grade(task, text) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 3",
        "def f(x): return",
        "def f(x): return 1.0",
        "def f(x): return x +",
        "def f(x): raise SystemExit",
        "import os; os._exit(0)\ndef f(x): return 1",
        "def f(x): return [[1]]",
        "def f(x): return 10 ** 5000",
        "def f(x): return '\0'",
        "def f(x): return 'é'",
        "#" * 20_000,
        "def f(x): return [0] * 10 ** 9",
        "while True: pass",
        "def f(x): return f(x)",
        "import os\nwhile True: os.write(1, b'1' * 4096)",
        "import os; os.write(1, b'[]'); os._exit(0)",
    ],
)
def test_what_gives_no_integer_gives_none(text):
    assert run_python(text, [(1,)], seconds=1) == [None]


def test_files_and_sockets_are_out_of_reach(tmp_path):
    path = tmp_path / "written"
    programs = {
        f"def f(x):\n  open({str(path)!r}, 'w').write('1')\n  return 1": None,
        f"def f(x):\n  open({__file__!r}).read()\n  return 1": None,
        "import _socket\ndef f(x):\n  _socket.socket()\n  return 1": None,
        "import os\ndef f(x):\n  os.pipe()\n  return 1": None,
        "def f(x): return 1": 1,
    }
    assert [run_python(text, [(1,)])[0] for text in programs] == list(programs.values())
    assert not path.exists()


def test_a_failure_is_that_of_one_call():
    assert run_python("def f(x, y): return x // y", [(6, 3), (1, 0), (9, 2)]) == [2, None, 4]
    assert run_python("def f(xs): return xs[::-1]", [([1, 2],), (3,)]) == [[2, 1], None]
    assert run_python("def g(x): return 5\ndef f(x): return g(x) + x", [(2,)]) == [7]
