"""Families of tasks: reproducible, short, many, graded exactly, and never on both sides."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.tasks.arithmetic import ARITHMETIC
from genai_jax.data.tasks.functions import FUNCTIONS, share_of_tests
from genai_jax.data.tasks.json_format import JSON_FORMAT, keeps_format
from genai_jax.data.tasks.lookup import LOOKUP
from genai_jax.data.tasks.sorting import SORTING
from genai_jax.data.tasks.split import FAMILIES, Tasks, side_of, tasks
from genai_jax.data.tasks.strings import STRINGS
from genai_jax.data.tasks.task import DIFFICULTIES, Task

DRAWN = {"easy": 1200, "hard": 200}
ANY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def drawn():
    """Many tasks of each family and difficulty."""
    return {
        (family.name, difficulty): [family.make(3, i, difficulty) for i in range(DRAWN[difficulty])]
        for family in FAMILIES
        for difficulty in DIFFICULTIES
    }


def test_tasks_are_the_same_for_ever():
    """They are a function of (seed, number): on other machines and in later versions too."""
    assert [family.make(7, 1000, "easy").prompt for family in FAMILIES] == PROMPTS["easy"]
    assert [family.make(7, 1000, "hard").prompt for family in FAMILIES] == PROMPTS["hard"]


@ANY
def test_number_and_seed_choose_the_task(family):
    make = family.make
    assert make(0, 5, "easy") == make(0, 5, "easy")
    assert len({make(0, 5, "easy"), make(0, 6, "easy"), make(1, 5, "easy")}) == 3
    with pytest.raises(ValueError, match="2\\^57"):
        make(0, 1 << 57, "easy")


@ANY
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_prompts_are_many_and_short_and_ascii(drawn, family, difficulty):
    some = drawn[family.name, difficulty]
    assert len({task.prompt for task in some}) >= (1000 if difficulty == "easy" else 190)
    assert len({task.content for task in some}) <= family.size(difficulty)
    for task in some:
        assert (task.prompt + task.answer).isascii() and (task.prompt + task.answer).isprintable()
        assert len(task.prompt) <= (60 if difficulty == "hard" else 40)
        assert len(task.answer) <= (40 if difficulty == "hard" else 26)


@pytest.mark.parametrize("family", [ARITHMETIC, FUNCTIONS], ids=lambda family: family.name)
def test_sizes_count_every_content(family):
    """Drawn often enough, most of the contents have come, and no more."""
    size = family.size("easy")
    found = {family.make(0, i, "easy").content for i in range(size)}
    assert 0.6 * size < len(found) <= size  # 1 - 1/e = 0.63 of equally likely ones
    assert size >= 1000


@ANY
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_prompt_says_what_is_asked(drawn, family, difficulty):
    """Two tasks with the same prompt have the same content, and so the same answer and side."""
    contents, answers = {}, {}
    for task in drawn[family.name, difficulty]:
        assert contents.setdefault(task.prompt, task.content) == task.content
        key = json.loads(task.answer) if family is JSON_FORMAT else task.answer
        assert answers.setdefault(task.content, key) == key


@ANY
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_reference_answer_is_right_and_others_are_not(drawn, family, difficulty):
    some = drawn[family.name, difficulty][:60]
    for task, other in zip(some, [*some[1:], some[0]], strict=True):
        assert family.grade(task, task.answer) == 1
        assert family.grade(task, f" \n{task.answer}\t ") == 1
        for wrong in ("", task.prompt, task.answer + ".", task.answer + " x", task.answer[:-1]):
            assert family.grade(task, wrong) == 0
        same = task.content == other.content or task.answer == other.answer
        assert same or family.grade(task, other.answer) == 0


@settings(max_examples=30)
@given(st.one_of(st.text(), st.recursive(st.integers(), st.lists).map(json.dumps)))
def test_any_text_is_graded(text):
    for family in FAMILIES:
        task = family.make(0, 0, "hard")
        assert family.grade(task, text) == 0 and family.grade(task, task.answer + text) in (0, 1)
        assert keeps_format(JSON_FORMAT.make(0, 0, "easy"), text) == 0


def test_answers_are_those_of_their_prompts():
    """Read the prompts back, by other means than those that made them."""
    for i in range(150):
        task = ARITHMETIC.make(1, i, "hard")
        if "+" in task.prompt or "-" in task.prompt:
            assert str(eval(task.prompt.strip("What is=?"))) == task.answer
        task = SORTING.make(1, i, "hard")
        assert sorted(task.answer.split()) == task.answer.split()
        assert sorted(task.answer.split()) == sorted(task.content.split())
        task = LOOKUP.make(1, i, "easy")
        key, pairs = task.content.split(" in ")
        assert task.answer in pairs.split() and task.answer[0] == key
        task = JSON_FORMAT.make(1, i, "hard")
        for key, value in json.loads(task.answer).items():
            assert key in task.prompt and str(value) in task.prompt


def test_string_operations():
    answers = {}
    for i in range(400):
        task = STRINGS.make(2, i, "hard")
        name, _, rest = task.content.rpartition(" ")
        if name.startswith("count"):
            word, letter = name.split()[1], rest
            assert task.answer == str(sum(c == letter for c in word))
        else:
            answers[name] = rest, task.answer
    assert len(answers) == 7
    for name, apply in {
        "reverse": lambda w: "".join(reversed(w)),
        "first": lambda w: w[:1],
        "last": lambda w: w[5:],
        "double": lambda w: w + w,
        "capitals": str.upper,
        "reverse capitals": lambda w: "".join(reversed(w.upper())),
        "reverse twice": lambda w: "".join(reversed(w + w)),
    }.items():
        word, answer = answers[name]
        assert apply(word) == answer


JSON_TASK = Task("json", "easy", 0, "", '{"name":"bo","age":7}', "")


@pytest.mark.parametrize(
    ("text", "grade", "form"),
    [
        ('{"name":"bo","age":7}', 1, 1),
        (' { "age" : 7,\n "name": "bo" } ', 1, 1),
        ('{"name":"bo","age":8}', 0, 1),
        ('{"name":"bo","age":"7"}', 0, 1),
        ('{"name":"bo","age":7.0}', 0, 1),
        ('{"name":"bo","age":true}', 0, 1),
        ('{"name":"bo"}', 0, 0),
        ('{"name":"bo","age":7,"id":1}', 0, 0),
        ('{"name":"bo","age":7,"age":7}', 0, 0),
        ('{"name":"bo","age":NaN}', 0, 0),
        ('["name","age"]', 0, 0),
        ('{"name":"bo","age":7} ', 1, 1),
        ('{"name":"bo","age":7}}', 0, 0),
        ("{'name':'bo','age':7}", 0, 0),
        ("[" * 5000, 0, 0),
        ('{"name":"bo","age":' + "9" * 5000 + "}", 0, 0),
    ],
)
def test_json_is_compared_as_json(text, grade, form):
    assert JSON_FORMAT.grade(JSON_TASK, text) == grade
    assert keeps_format(JSON_TASK, text) == form


def test_one_is_not_true_in_json():
    task = Task("json", "easy", 0, "", '{"age":1,"id":0}', "")
    assert JSON_FORMAT.grade(task, '{"age":true,"id":false}') == 0
    assert JSON_FORMAT.grade(task, '{"id":0,"age":1}') == 1


def test_functions_are_graded_by_what_they_give():
    checks = tuple(((x,), 3 * x + 6) for x in range(-5, 5))
    task = Task("functions", "easy", 0, "", "def f(x): return x*3+6", "", checks)
    for right in (
        "def f(x): return x*3+6",
        "def g(y):\n    return 3 * (y + 2)",
        "def f(x):\n  for i in range(3): x = x + 2 if i else x * 3 + 2\n  return x\n\n",
    ):
        assert FUNCTIONS.grade(task, right) == 1
    for wrong, share in (
        ("def f(x): return x*3+7", 0.0),
        ("def f(x): return 6", 0.1),
        ("def f(x): return x*3+6 if x>-3 else 1//0", 0.7),
        ("def f(x, y): return x*3+6", 0.0),
        ("x*3+6", 0.0),
        ("def f(x): return x*3+6 # and\nmore", 0.0),
    ):
        assert FUNCTIONS.grade(task, wrong) == 0
        assert share_of_tests(task, wrong) == share


def test_a_function_that_gives_true_does_not_give_one():
    task = Task("functions", "easy", 0, "", "", "", (((5,), 1),))
    assert FUNCTIONS.grade(task, "def f(x): return x > 3") == 0
    assert FUNCTIONS.grade(task, "def f(x): return 1") == 1


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_prompt_is_on_both_sides(difficulty):
    """Of any seeds: nor is a question, in other words."""
    sides = {
        side: [tasks(FAMILIES, difficulty, side, seed)[i] for seed in (0, 1) for i in range(420)]
        for side in ("train", "held out")
    }
    for what in ("prompt", "content"):
        train, held_out = ({(t.family, getattr(t, what)) for t in s} for s in sides.values())
        assert not train & held_out
        assert len(train) > 700 and len(held_out) > 600


def test_a_fifth_is_held_out():
    every = [FAMILIES[0].make(0, i, "hard") for i in range(1000)]
    held_out = sum(side_of(task.family, task.content) == "held out" for task in every)
    assert abs(held_out / 1000 - 0.2) < 0.05


def test_tasks_are_read_at_random_and_can_be_made_again():
    some = tasks(FAMILIES, "easy", "held out", 4)
    assert isinstance(some, Tasks)
    assert [some[i].family for i in range(7)] == [f.name for f in (*FAMILIES, FAMILIES[0])]
    task = some[8]
    assert task == some[8] == FAMILIES[2].make(4, task.number, "easy")
    twice = tasks((FAMILIES[2], FAMILIES[2]), "easy", "train", 4)
    assert twice[0] != twice[1] == tasks(FAMILIES[2:3], "easy", "train", 4)[1]
    with pytest.raises(ValueError, match="at least one"):
        tasks((), "easy", "train", 0)
    with pytest.raises(IndexError):
        some[-1]


PROMPTS = {
    "easy": [
        "43 - 2 = ?",
        "Put u i g c in order.",
        "Double the word liva.",
        "e17 f35 b30. Find b.",
        "Write JSON with town na and age 66.",
        "f(x) is x plus 91, times 8. Write it.",
    ],
    "hard": [
        "What is 4 + 7 + 0?",
        "Sort h x e q n.",
        "Reverse lafuti, in capitals.",
        "a49 b29 d77 c92 e7 f23. Find d.",
        "Write JSON with age town name of 18 na me.",
        "f(x) is x times 2 if x over 2, else x plus 8. Write it.",
    ],
}
