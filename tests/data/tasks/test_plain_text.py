"""Plain text of the tasks: true, of the training side alone, and a source of documents."""

import itertools
import re

from genai_jax.data.corpora import read_documents, source_stamp
from genai_jax.data.tasks.arithmetic import ARITHMETIC
from genai_jax.data.tasks.plain_text import SENTENCES, make_document
from genai_jax.data.tasks.split import FAMILIES, side_of, tasks

DOCUMENTS = [make_document(0, i) for i in range(60)]
LINES = "".join(DOCUMENTS).splitlines()


def test_a_document_is_a_function_of_its_number():
    assert make_document(0, 7) == DOCUMENTS[7]
    assert len({make_document(1, 7), *DOCUMENTS}) == 61
    assert all(text.endswith("\n") and text.isascii() for text in DOCUMENTS)
    assert all(len(text.splitlines()) == SENTENCES for text in DOCUMENTS)


def test_sums_that_are_told_are_true_and_never_held_out():
    told = [re.search(r"(\d+(?: [-+] \d+)+) (?:=|is) (\d+)\.", line) for line in LINES]
    told = [found for found in told if found]
    assert len(told) > 40
    for found in told:
        assert eval(found[1]) == int(found[2])
        assert side_of(ARITHMETIC.name, found[1]) == "train"


def test_every_family_tells_its_answer():
    for family in FAMILIES:
        for difficulty in ("easy", "hard"):
            source = tasks((family,), difficulty, "train", 3)
            for i in range(20):
                task, told = source[i], family.tell(3, source[i].number, difficulty)
                assert task.answer in told and task.prompt not in told


def test_it_tells_nothing_that_is_asked_of_the_held_out():
    """No held-out sum, word or list occurs, in whichever of its statements."""
    text = "\n" + "\n".join(LINES)
    held_out = tasks(FAMILIES, "easy", "held out", 5)
    for i in range(300):
        task = held_out[i]
        told = next(f for f in FAMILIES if f.name == task.family).tell(5, task.number, "easy")
        assert f"\n{told}\n" not in text


def test_it_is_a_source():
    first = list(itertools.islice(read_documents("tasks"), 3))
    assert [text.decode() for _, text in first] == DOCUMENTS[:3]
    assert first == list(itertools.islice(read_documents("tasks:0"), 3))
    other = next(iter(read_documents("tasks:4")))
    assert other == ("tasks:4[0]", make_document(4, 0).encode())
    assert source_stamp("tasks:1") != source_stamp("tasks:2")
    assert source_stamp("tasks:1") == source_stamp("tasks:1")
