"""Records in, conversations out: five forms, two kinds of sources, and what a line lacks."""

import gzip
import json
import subprocess
import sys

import pytest

from genai_jax.data.conversation_files import read_examples, read_judged, read_preferences
from genai_jax.data.conversations import Example, Judged, Preference, opening_of, said

USER, ANSWER = said("user", "1 + 1?"), said("assistant", "2")


@pytest.fixture
def source(tmp_path):
    def write(*records, name="chat.jsonl"):
        lines = "".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in records)
        content = lines.encode("utf-8", "surrogatepass")
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        return f"files:{tmp_path / name}"

    return write


def test_demonstrations_of_both_forms_are_told_apart_by_line(source):
    system = said("system", "Be brief.")
    found = source(
        {"messages": [system, USER, ANSWER], "id": 7},
        "",
        {"prompt": "1 + 1?", "completion": "2"},
        {"prompt": [system, USER], "completion": [ANSWER]},
        {"prompt": [USER, ANSWER, USER], "completion": "2", "unread": None},
        {"messages": [USER, ANSWER | {"weight": 0}, USER | {"weight": 1}, ANSWER | {"weight": 1}]},
    )
    examples = list(read_examples(found))
    assert examples == [
        Example((system, USER, ANSWER)),
        Example((USER, ANSWER)),
        Example((system, USER, ANSWER)),
        # Of a completion nothing else is learnt, and of messages what has no weight is not.
        Example((USER, ANSWER, USER, ANSWER), (1,)),
        Example((USER, ANSWER, USER, ANSWER), (1,)),
    ]
    assert examples[1] == Example.of("1 + 1?", "2")
    assert [x.where.rsplit(":", 1)[1] for x in examples] == ["1", "3", "4", "5", "6"]


def test_a_form_by_name_reads_what_would_be_doubtful(source):
    found = source({"prompt": "a", "completion": "b", "label": False})
    with pytest.raises(ValueError, match=r"chat.jsonl:1: a demonstration must.*of the form judged"):
        list(read_examples(found))
    assert list(read_examples(found, form="completion")) == [Example.of("a", "b")]
    both = source({"prompt": "a", "messages": [USER, ANSWER], "chosen": "x", "rejected": "y"})
    assert list(read_examples(both)) == [Example((USER, ANSWER))]
    assert next(read_preferences(both)).answers == ("x", "y")
    with pytest.raises(ValueError, match="for a preference, one of ranking, pair; got 'messages'"):
        list(read_preferences(both, form="messages"))
    with pytest.raises(ValueError, match=r"the form ranking must have .*ranking is missing"):
        list(read_preferences(both, form="ranking"))


def test_preferences_are_pairs_and_rankings(source):
    found = source(
        {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "margin": 0.5},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [USER, said("assistant", "")]},
        {"prompt": "1 + 1?", "ranking": ["2", [said("assistant", "two")], "3"]},
        name="chat.jsonl.gz",
    )
    assert list(read_preferences(found)) == [
        Preference((USER,), ("2", "3"), 0.5),
        Preference((USER,), ("2", ""), None),
        Preference((USER,), ("2", "two", "3"), None),
    ]
    assert list(read_preferences(found)) == list(read_judged(found))
    judged = source({"prompt": "a", "completion": "b", "label": True})
    assert list(read_judged(judged)) == [Judged((said("user", "a"),), "b", True)]


WRONG = {
    "must be one JSON object; Expecting": "{'prompt'",
    r"must be one JSON object; got \[1": "[1]",
    "`content` must be text; got list": {"messages": [USER | {"content": [{"type": "text"}]}]},
    "`role` must be one of": {"messages": [{"role": "developer", "content": ""}]},
    "nothing else; got .'content', 'role', 'tool_calls'": {"messages": [USER | {"tool_calls": []}]},
    "nothing else; got 'hello'": {"messages": ["hello"]},
    "`messages` must be a list of messages, at least one": {"messages": []},
    "text only; it has `tools`": {"messages": [USER, ANSWER], "tools": [{"type": "function"}]},
    "`weight` of message 0 must be 0 or 1; got 0.5": {"messages": [ANSWER | {"weight": 0.5}]},
    "must have the fields messages; or prompt, completion; got prompt, answer. Rename": {
        "prompt": "",
        "answer": "",
    },
    "got prompt, chosen, rejected, which is of the form pair": {
        "prompt": "",
        "chosen": "",
        "rejected": "",
    },
    "got no field": {},
    "`completion` must be a text, or messages that end with one of the assistant's": {
        "prompt": "a",
        "completion": [USER, ANSWER],
    },
    "`content` must be Unicode": '{"prompt": "\\ud83d", "completion": ""}',
    "each line must be UTF-8": '{"prompt": "\ud83d", "completion": ""}',
}


@pytest.mark.parametrize("match", WRONG)
def test_what_is_wrong_is_told_with_its_line(source, match):
    right = {"prompt": "", "completion": ""}
    with pytest.raises(ValueError, match=rf"chat.jsonl:2: .*{match}"):
        list(read_examples(source(right, WRONG[match], right)))


def test_wrong_preferences_are_told_with_their_line(source):
    for match, record in {
        "`margin` must be a number; got 'much'": {"margin": "much"},
        "`margin` must be finite; got nan": {"margin": float("nan")},
        "`rejected` must be a text": {"rejected": [USER]},
    }.items():
        pair = {"prompt": "a", "chosen": "b", "rejected": "c"} | record
        with pytest.raises(ValueError, match=rf"chat.jsonl:1: {match}"):
            list(read_preferences(source(pair)))
    for match, ranking in {
        "must be two answers or more": ["a"],
        "`ranking` must be a": "ab",
    }.items():
        with pytest.raises(ValueError, match=rf"chat.jsonl:1: .*{match}"):
            list(read_preferences(source({"prompt": "a", "ranking": ranking})))
    with pytest.raises(ValueError, match=r"chat.jsonl:1: `label` must be true or false; got 'yes'"):
        list(read_judged(source({"prompt": "a", "completion": "b", "label": "yes"})))


def test_sources_are_refused_by_name(source, tmp_path):
    with pytest.raises(ValueError, match=r"must be files:GLOB .* got 'chat.jsonl'.*files:chat"):
        list(read_examples("chat.jsonl"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"must be JSON lines.*got .*notes.txt"):
        list(read_examples(f"files:{tmp_path / 'notes.txt'}"))
    with pytest.raises(FileNotFoundError, match="matches no file"):
        list(read_examples(f"files:{tmp_path / '*.jsonl'}"))
    found = source({"prompt": "a", "completion": "b"}, name="chat.jsonl.gz")
    # Of a folder the files of JSON lines are read, and nothing else.
    assert list(read_examples(f"files:{tmp_path}")) == list(read_examples(found))
    path = tmp_path / "chat.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"chat.jsonl.gz must be whole gzip data"):
        list(read_examples(found))


# In a process of its own, so that the test's has only the files.
PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyTalks(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text, number = tfds.features.Text(), tfds.features.Scalar(np.float32)
        messages = tfds.features.Sequence({"role": text, "content": text})
        names = {"messages": messages, "prompt": text, "chosen": text, "rejected": text,
                 "margin": number, "ranking": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(names))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            messages = [{"role": role, "content": content}
                        for role, content in (("user", f"{i} é?"), ("assistant", "!"))]
            yield i, {"messages": messages, "prompt": f"{i}", "chosen": "a", "rejected": "b",
                      "margin": 0.25, "ranking": ["x", "y", "z"]}

TinyTalks(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_tensorflow_datasets_are_read_by_the_same_road(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    command = [sys.executable, "-W", "ignore", "-c", PREPARE, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    original = tfds.data_source
    monkeypatch.setattr(
        tfds, "data_source", lambda name, **more: original(name, **more | {"data_dir": tmp_path})
    )
    examples = list(read_examples("tfds:tiny_talks"))
    assert sorted(x.messages[0]["content"] for x in examples) == [f"{i} é?" for i in range(3)]
    assert all(x.messages[1] == said("assistant", "!") for x in examples)
    pairs = list(read_preferences("tfds:tiny_talks:train", form="pair"))
    assert {(x.answers, x.margin) for x in pairs} == {(("a", "b"), 0.25)}
    rankings = read_preferences("tfds:tiny_talks", form="ranking")
    assert [x.answers for x in rankings] == [("x", "y", "z")] * 3
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match=r"tfds:tiny_talks\[0\]: .*label is missing"):
        list(read_judged("tfds:tiny_talks", form="judged"))


def test_an_opening_ends_before_the_first_answer():
    system = said("system", "s")
    assert opening_of([system, USER, ANSWER, USER, ANSWER]) == (system, USER)
    assert opening_of([system, USER]) == (system, USER)
    # A greeting answers nobody.
    assert opening_of([ANSWER, USER, ANSWER]) == (ANSWER, USER)
    assert Example((USER, ANSWER)).opening == Preference((USER,), ("a", "b")).opening
    assert Judged((USER,), "a", True).opening == (USER,)


def test_silence_is_the_assistants():
    with pytest.raises(ValueError, match="numbers of the assistant's messages; got 0"):
        Example((USER, ANSWER), (0,))
    with pytest.raises(ValueError, match="numbers of the assistant's messages; got 2"):
        Example((USER, ANSWER), (2,))
