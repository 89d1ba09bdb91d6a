"""Sources: what they hold, in which order, and what they say when it is not what it should be."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tokenize

import pytest

from genai_jax.data.corpora import matching_files, read_documents, source_stamp


def write_files(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_standard_library_is_python_without_tests():
    documents = list(read_documents("stdlib"))
    names = [document.name for document in documents]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not any(re.search(r"(^|/)(tests?|idle_test|site-packages)/", name) for name in names)
    assert sum(len(document.text) for document in documents) > 8_000_000
    text = dict(documents)["argparse.py"]
    assert sum(1 for _ in tokenize.tokenize(io.BytesIO(text).readline)) > 1000


def test_reference_holds_each_paragraph_once():
    documents = list(read_documents("reference"))
    paragraphs = [
        " ".join(paragraph.split())
        for _, text in documents
        for paragraph in re.split(r"\n\s*\n", text.decode())
    ]
    assert len(documents) > 50 and all(paragraphs)
    assert len(set(paragraphs)) == len(paragraphs)
    from pydoc_data.topics import topics

    raw = [p for text in topics.values() for p in re.split(r"\n\s*\n", text) if p.strip()]
    assert len(paragraphs) == len({" ".join(p.split()) for p in raw}) < len(raw)


def test_files_are_read_by_glob_folder_and_name(tmp_path):
    write_files(
        tmp_path,
        {
            "b.txt": b"bee",
            "a/deep/er.md": b"deep",
            "a/x.txt.gz": gzip.compress(b"zipped"),
            ".hidden/secret.txt": b"no",
            "a/picture.png": b"\x89PNG\0\0",
        },
    )
    every = list(read_documents(f"files:{tmp_path}"))
    assert [text for _, text in every] == [b"deep", b"zipped", b"bee"]
    assert list(read_documents(f"files:{tmp_path}/**/*.txt*")) == every[1:]
    assert [d.text for d in read_documents(f"files:{tmp_path}/b.txt")] == [b"bee"]


def test_a_name_with_brackets_is_a_file_and_not_a_pattern(tmp_path):
    write_files(tmp_path, {"notes[1].txt": b"one"})
    assert matching_files(f"{tmp_path}/notes[1].txt") == [tmp_path / "notes[1].txt"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_are_documents(tmp_path, suffix):
    lines = ['{"text": "one\\n\\u00e9", "id": 3}', "", '{"text": "half \\ud83d pair"}']
    content = b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"text": "raw \xff byte"}'
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    documents = list(read_documents(f"files:{path}"))
    assert [name for name, _ in documents] == [f"{path}:1", f"{path}:3", f"{path}:4"]
    assert documents[0].text == "one\né".encode()
    # What is not UTF-8 arrives as it is: what to do about it is a policy.
    assert documents[1].text == b"half \xed\xa0\xbd pair"
    assert documents[2].text == b"raw \xff byte"


def test_json_lines_without_the_field_say_where_and_what_there_is(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"body": "a"}\n{"title": "b", "n": 3}\n')
    assert next(read_documents(f"files:{path}", field="body")).text == b"a"
    with pytest.raises(ValueError, match=r"x\.jsonl:2: the field `body` .* There are: title, n"):
        list(read_documents(f"files:{path}", field="body"))
    with pytest.raises(ValueError, match=r"x\.jsonl:1: .* found no `n`"):
        list(read_documents(f"files:{path}", field="n"))
    path.write_text('{"n": 3}\n')
    with pytest.raises(ValueError, match="found `n` is int"):
        list(read_documents(f"files:{path}", field="n"))
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2: each line must be one JSON object"):
        list(read_documents(f"files:{path}"))
    path.write_text('["text"]\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1: .*no fields"):
        list(read_documents(f"files:{path}"))


def test_errors_name_the_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\*\.txt matches no file.*Check the path"):
        next(read_documents(f"files:{tmp_path}/nothing*.txt"))
    with pytest.raises(FileNotFoundError, match="holds no text file"):
        list(read_documents(f"files:{tmp_path}"))
    for wrong in ("stdlibs", "files:", "tfds:", "synthetic:x", "books/*.txt"):
        with pytest.raises(ValueError, match=f"got '{re.escape(wrong)}'"):
            read_documents(wrong)
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(b"content" * 100)[:-9])
    with pytest.raises(ValueError, match=r"broken\.txt\.gz must be whole gzip data"):
        list(read_documents(f"files:{tmp_path}/broken.txt.gz"))


def test_synthetic_text_is_a_function_of_its_seed():
    first, again, other = (
        [next(documents).text for _ in range(3)]
        for documents in map(read_documents, ("synthetic", "synthetic:0", "synthetic:1"))
    )
    assert first == again != other
    assert len(set(first)) == 3 and all(len(text) == 4096 for text in first)
    assert first[0].decode("ascii").replace(" ", "").islower()


def test_stamp_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = f"files:{tmp_path}/*.txt"
    before = source_stamp(source)
    assert json.loads(json.dumps(before)) == source_stamp(source)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("two")
    os.utime(path, ns=times)  # as a copying tool would
    assert source_stamp(source) != before
    assert source_stamp("stdlib") == source_stamp("stdlib") != source_stamp("reference")
    assert source_stamp("synthetic:1") != source_stamp("synthetic:2")


# A user's own set, prepared as any; in a process of its own, so that the test's has only the files.
PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyPoems(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"poem": tfds.features.Text(), "year": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"poem": f"poem {i} é", "year": i}

TinyPoems(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, "-W", "ignore", "-c", PREPARE, str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture
def data_folder(prepared_set, monkeypatch):
    import tensorflow_datasets as tfds

    original = tfds.data_source

    def data_source(name, **arguments):
        return original(name, data_dir=prepared_set, **arguments)

    monkeypatch.setattr(tfds, "data_source", data_source)


def test_tensorflow_datasets_are_read_without_tensorflow(data_folder):
    documents = list(read_documents("tfds:tiny_poems", field="poem"))
    assert sorted(text.decode() for _, text in documents) == [f"poem {i} é" for i in range(7)]
    named = read_documents("tfds:tiny_poems:train", field="poem")
    assert [text for _, text in named] == [text for _, text in documents]
    assert len(list(read_documents("tfds:tiny_poems:test", field="poem"))) == 2
    assert "tensorflow" not in sys.modules
    stamp = source_stamp("tfds:tiny_poems")
    assert any("array_record" in str(entry) for entry in stamp)
    with pytest.raises(ValueError, match=r"tfds:tiny_poems\[0\]: .*There are: (poem|year)"):
        list(read_documents("tfds:tiny_poems"))
    with pytest.raises(ValueError, match=r"cannot be read.*valid.*\['train', 'test'\]"):
        list(read_documents("tfds:tiny_poems:valid"))


@pytest.mark.filterwarnings("ignore")
def test_unprepared_sets_say_which_command_to_run(data_folder):
    with pytest.raises(ValueError, match="must be prepared") as error:
        list(read_documents("tfds:lm1b"))
    command = re.search(r'python -c "(.*)"', str(error.value))[1]
    compile(command, "command", "exec")
    assert "'lm1b'" in command and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="knows no set 'no_such_set'"):
        list(read_documents("tfds:no_such_set"))


def test_room_imports_nothing_heavy():
    """Neither TensorFlow nor its datasets are imported before they are asked for."""
    code = (
        "import sys, genai_jax.data.text, genai_jax.data.loader\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
