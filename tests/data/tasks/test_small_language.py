"""The small language: what programs give, what is refused, and that any text ends so."""

import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genai_jax.data.tasks.small_language import MOST_ITEMS, run_program
from genai_jax.data.tasks.small_parser import parse_program
from genai_jax.data.tasks.small_reader import MOST_CHARACTERS
from genai_jax.data.tasks.small_syntax import ProgramError

GCD = """
def gcd(a, b):
    while b:  # Euclid
        c = a % b
        a = b; b = c
    return a
"""
COLLATZ = """def f(n):
  steps = 0
  while n != 1:
    if n % 2 == 0:
      n //= 2
    else:
      n = 3 * n + 1
    steps += 1
  return steps
"""
GRADE = """def f(x):
    if x < 0: return -1
    elif x == 0:
        return 0
    elif x < 10: return 1
    else:
        pass
    return 2
"""
PRIMES = """def f(n):
    found = []
    for i in range(2, n):
        prime = True
        for p in found:
            if i % p == 0: prime = False
        if prime: found = found + [i]
    return found
"""

KNOWN = [
    ("def f(x): return x*3 if x>4 else x+2", (5,), 15),
    ("def f(x): return x*3 if x>4 else x+2", (4,), 6),
    (GCD, (252, 198), 18),
    (COLLATZ, (27,), 111),
    (GRADE, (-5,), -1),
    (GRADE, (0,), 0),
    (GRADE, (9,), 1),
    (GRADE, (10,), 2),
    (PRIMES, (20,), [2, 3, 5, 7, 11, 13, 17, 19]),
    ("def f(): return -2**2 + 2**3**2 % 7", (), -3),
    ("def f(): return 2**-0", (), 1),
    ("def f(): return -7 // 2 * 10 + -7 % 3", (), -38),
    ("def f(): return 2 - 3 - 4 == -5 and not 1 > 2", (), True),
    ("def f(x, y): return 0 < x < y <= 3", (1, 3), True),
    ("def f(x, y): return x and 1 // y", (0, 0), 0),
    ("def f(x, y): return x or 1 // y", ([7], 0), [7]),
    ("def f(xs): return xs[::-1] + xs[1:] + [xs[-1]]", ([1, 2, 3],), [3, 2, 1, 2, 3, 3]),
    ("def f(xs): return sorted(xs)[0] in xs and 9 not in xs", ([3, 1],), True),
    ("def f(n): return sum(range(n)) + len([0]*n) + max(1, n) - min([n, 2])", (4,), 12),
    ("def f(n): return list(range(n, 0, -2))", (5,), [5, 3, 1]),
    ("def f(x): y = abs(x); y *= 2; return y;", (-4,), 8),
]


@pytest.mark.parametrize(("text", "arguments", "wanted"), KNOWN)
def test_programs_give_what_they_should(text, arguments, wanted):
    found = run_program(text, arguments)
    assert found == wanted and type(found) is type(wanted)


def test_python_gives_the_same():
    code = "import json, sys\nfor text, given in json.load(sys.stdin):\n"
    code += "    names = {}\n    exec(text, names)\n"
    code += "    print(json.dumps([*names.values()][-1](*given)))\n"
    asked = json.dumps([(text, given) for text, given, _ in KNOWN])
    done = subprocess.run(
        [sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True
    )
    assert list(map(json.loads, done.stdout.splitlines())) == [wanted for *_, wanted in KNOWN]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "return 1",
        "def f(x): return x\ndef g(x): return x",
        "def f(x): return x\nx",
        " def f(x): return x",
        "def f(x):\nreturn x",
        "def f(x):\n  return x\n    return x",
        "def f(x):\n    if x:\n        return 1\n  return 2",
        "def f(x): if x: return 1",
        "def f(x, x): return 1",
        "def f(,): return 1",
        "def f(f): return 1",
        "def max(x): return x",
        "def f(x): return lambda: x",
        "def f(x): return y = 1",
        "def f(x): x = y = 1",
        "def f(x): return x,",
        "def f(x): return (x, x)",
        "def f(x): return x not 1",
        "def f(x): return 1 == not x",
        "def f(x): return print(x)",
        "def f(x): return x.real",
        "def f(x): return x / 2",
        "def f(x): return 1.0",
        "def f(x): return 01",
        "def f(x): return 1_0",
        "def f(x): return 1if x else 2",
        "def f(x): return 0x1",
        "def f(x): return x[]",
        "def f(x): return x[1:2:3:4]",
        "def f(x): return x[1 2]",
        "def f(x): __debug__ = 1",
        "def f(x):\treturn x",
        "def f(x): return 'x'",
        "def f(x): return " + "(" * 40 + "x" + ")" * 40,
        "def f(x): return " + "x+" * 200 + "x",
        "def f(x): return " + " " * MOST_CHARACTERS + "x",
        "def f(x): return " + "9" * 19,
    ],
)
def test_what_is_no_program_is_refused(text):
    with pytest.raises(ProgramError):
        parse_program(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(x): return 1 // x", "ZeroDivisionError"),
        ("def f(x): return y", "no value"),
        ("def f(x): x = 1", "nothing"),
        ("def f(x): return range(3)", "a range"),
        ("def f(x): return [1][1]", "IndexError"),
        ("def f(x): return x[0]", "TypeError"),
        ("def f(x): return [[1]]", "integers"),
        ("def f(x): return max([])", "ValueError"),
        ("def f(x): return 2**65", "exponent"),
        ("def f(x): return 2**-1", "exponent"),
        ("def f(x): return 10**9 * 10**9 + 1", "integer lies"),
        (f"def f(x): return [0] * {MOST_ITEMS + 1}", "items"),
        ("def f(x):\n  while True: pass", "steps"),
        ("def f(x):\n  for i in range(10**18): pass", "steps"),
        ("def f(x): return sum(range(10**18))", "steps"),
        ("def f(x): return list(range(10**18))", "steps"),
        ("def f(x): return [1] in range(10**18)", "sought"),
        ("def f(x):\n  y = [1]\n  y += [2]\n  return y", "integers"),
    ],
)
def test_what_has_no_result_says_why(text, said):
    with pytest.raises(ProgramError, match=said):
        run_program(text, (0,))


def test_arguments_are_counted_and_fuel_is_what_it_is_given():
    with pytest.raises(ProgramError, match="takes 1 arguments; got 2"):
        run_program("def f(x): return x", (1, 2))
    loop = "def f(n):\n  for i in range(n): pass\n  return 7"
    assert run_program(loop, (10,), fuel=100) == 7
    with pytest.raises(ProgramError, match="steps"):
        run_program(loop, (10,), fuel=10)


def test_arguments_are_not_changed():
    given_ = [3, 1, 2]
    assert run_program("def f(x): x = sorted(x) + [9]; return x", (given_,)) == [1, 2, 3, 9]
    assert given_ == [3, 1, 2]


WORDS = st.sampled_from(
    [
        *("def", "f", "(", "x", ")", ":", "return", "pass", "if", "elif", "else", "while", "for"),
        *("in", "and", "or", "not", "True", "0", "1", "23", "+", "-", "*", "//", "%", "**", "<"),
        *("==", "[", "]", ",", ";", "=", "+=", "range", "sum", "max", "sorted", "list", "len"),
        *("\n", "\n  ", "\n    ", "y"),
    ]
)


@settings(max_examples=100)
@given(st.one_of(st.text(), st.lists(WORDS, max_size=60).map(" ".join)), st.integers(-9, 9))
@example("def f(x): return x\0", 1)
@example("def f(x):" + "\n" * 900, 1)
@example("\ud800", 1)
def test_any_text_ends_with_a_value_or_the_error(text, x):
    for program in (text, "def f(x): return " + text, "def f(x):\n  " + text):
        try:
            value = run_program(program, (x,))
        except ProgramError:
            continue
        assert isinstance(value, int | list)


def test_a_deep_caller_gets_the_error_and_nothing_else():
    def deep(n):
        if n:
            return deep(n - 1)
        with pytest.raises(ProgramError):
            run_program("def f(x): return " + "-" * 250 + "x" + "+", (1,))
        return run_program("def f(x): return x", (1,))

    assert deep(300) == 1
