"""The cache: what is written comes back, whole or not at all, with any number of writers."""

import multiprocessing
import os
import stat
import threading

import numpy as np
import pytest

from genai_jax.data.token_cache import (
    default_cache_folder,
    open_folder,
    open_tokens,
    write_tokens,
)
from genai_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer

DOCUMENTS = [("a", b"one", 0), ("b", "zwei é".encode(), 1), ("c", b"3", 2)]


def test_written_tokens_come_back(tmp_path):
    write_tokens(tmp_path, iter(DOCUMENTS), ByteTokenizer(), lambda: {"n": 3})
    cache = open_tokens(tmp_path)
    assert cache.names == ("a", "b", "c") and cache.notes == {"n": 3}
    assert cache.groups.tolist() == [0, 1, 2]
    assert cache.byte_lengths.tolist() == [3, 7, 1]
    assert cache.offsets.tolist() == [0, 4, 12, 14]
    assert isinstance(cache.tokens, np.memmap) and cache.tokens.dtype == np.uint16
    assert cache.tokens[:5].tolist() == [256, *b"one", 256]
    assert [cache.text(d) for d in range(3)] == [text for _, text, _ in DOCUMENTS]
    assert cache.tokenizer.digest == ByteTokenizer().digest


def test_one_text_has_no_eot_and_may_be_empty(tmp_path):
    tokenizer = ByteTokenizer(end_of_text=False)
    write_tokens(tmp_path, [("a", b"", 0)], tokenizer)
    cache = open_tokens(tmp_path)
    assert len(cache.tokens) == 0 and cache.offsets.tolist() == [0, 0]
    assert cache.text(0) == b""


def test_many_ids_take_four_bytes(tmp_path):
    points = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000][:70_000]
    tokenizer = CharacterTokenizer("".join(map(chr, points)))
    write_tokens(tmp_path, [("a", chr(points[-1]).encode(), 0)], tokenizer)
    cache = open_tokens(tmp_path)
    assert cache.tokens.dtype == np.uint32 and cache.tokens.tolist() == [70_000, 69_999]


def build(folder, calls=None):
    if calls is not None:
        calls.append(folder)
    write_tokens(folder, DOCUMENTS, ByteTokenizer())


def test_a_whole_folder_is_not_built_again(tmp_path):
    calls = []
    first = open_folder(tmp_path, "key", lambda folder: build(folder, calls))
    again = open_folder(tmp_path, "key", lambda folder: build(folder, calls))
    assert first == again == tmp_path / "key" and len(calls) == 1
    open_folder(tmp_path, "other", lambda folder: build(folder, calls))
    assert len(calls) == 2 and sorted(os.listdir(tmp_path)) == ["key", "other"]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(folder, how, which):
    path = files(folder)[which]
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[:-1])
    else:
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_any_damage_is_seen_and_repaired(tmp_path, how):
    intact = files(open_folder(tmp_path, "key", build))
    for which in range(len(intact)):
        contents = [path.read_bytes() for path in intact]
        damage(tmp_path / "key", how, which)
        calls = []
        open_folder(tmp_path, "key", lambda folder, calls=calls: build(folder, calls))
        assert len(calls) == 1, intact[which]
        assert [path.read_bytes() for path in files(tmp_path / "key")] == contents
        assert os.listdir(tmp_path) == ["key"]


def die_half_way(folder):
    (folder / "tokens.bin").write_bytes(b"half")
    os._exit(9)


def open_in_process(root, build):
    open_folder(root, "key", build)


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=open_in_process, args=(tmp_path, die_half_way))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert not (tmp_path / "key").exists()
    calls = []
    folder = open_folder(tmp_path, "key", lambda scratch: build(scratch, calls))
    assert len(calls) == 1 and open_tokens(folder).names == ("a", "b", "c")
    # What it left is deleted, but not while its writer may be at work.
    (left,) = tmp_path.glob(".key.*")
    os.utime(left, (0, 0))
    open_folder(tmp_path, "other", build)
    assert sorted(os.listdir(tmp_path)) == ["key", "other"]


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "tokens.bin").write_bytes(b"half")
        raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        open_folder(tmp_path, "key", fail)
    assert os.listdir(tmp_path) == []


def test_of_writers_at_once_either_wins(tmp_path):
    count = 6
    inside = threading.Barrier(count)

    def build_together(folder):
        inside.wait(60)  # all of them are writing now
        build(folder)

    results, errors = [], []

    def run():
        try:
            results.append(open_tokens(open_folder(tmp_path, "key", build_together)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len(results) == count
    for cache in results:
        np.testing.assert_array_equal(cache.tokens, results[0].tokens)
    assert os.listdir(tmp_path) == ["key"]


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "genai_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "genai_jax"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PermissionError, match=r"file/text is not .*--data\.cache-dir"):
        open_folder(tmp_path / "file" / "text", "key", build)
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
