import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.training.json_lines import JsonLines, read_json_lines, write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def written(path: Path, steps: range) -> list[dict]:
    records = [{"step": step, "train/loss": 1 / step} for step in steps]
    lines = JsonLines(path)
    for record in records:
        lines.append(record)
    lines.close()
    return records


def test_a_line_is_in_the_file_when_append_returns(path):
    lines = JsonLines(path)
    assert not path.exists()
    lines.append({"step": 1, "train/loss": 0.5})
    assert path.read_bytes() == b'{"step": 1, "train/loss": 0.5}\n'
    lines.close()


def test_what_is_written_is_what_is_read(path):
    assert read_json_lines(path) == []
    assert written(path, range(1, 4)) == read_json_lines(path)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_as_the_same_double(value):
    assert json.loads(json.dumps(value)) == value
    assert math.copysign(1, json.loads(json.dumps(value))) == math.copysign(1, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(path, value):
    """NaN is no JSON: every reader but Python's would refuse the file."""
    lines = JsonLines(path)
    lines.append({"step": 1, "val/loss": value})
    lines.close()
    assert path.read_bytes() == b'{"step": 1, "val/loss": null}\n'


@pytest.mark.parametrize("torn", range(1, 10))
def test_torn_last_line_is_dropped_and_written_over(path, torn):
    records = written(path, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    assert read_json_lines(path) == records[:2]
    lines = JsonLines(path)
    assert lines.cut(3) == records[:2]
    lines.append(records[2])
    lines.close()
    assert path.read_bytes() == whole


def test_cut_keeps_the_lines_up_to_a_step(path):
    """A step may have two lines: of training and of evaluation."""
    lines = JsonLines(path)
    for record in ({"step": 1}, {"step": 2, "a": 1}, {"step": 2, "b": 2}, {"step": 3}):
        lines.append(record)
    assert lines.cut(2) == [{"step": 1}, {"step": 2, "a": 1}, {"step": 2, "b": 2}]
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "a": 1}\n{"step": 2, "b": 2}\n'
    assert lines.cut(9) == read_json_lines(path)
    assert lines.cut(0) == []
    assert path.read_bytes() == b""
    lines.close()


def test_lines_after_a_cut_follow_the_ones_that_stay(path):
    """Also through the descriptor that was open when the file was cut."""
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.append({"step": step})
    lines.cut(1)
    lines.append({"step": 2})
    lines.close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_cut_of_a_missing_file_is_nothing(path):
    assert JsonLines(path).cut(5) == []
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"{]\n", b"[1]\n", b"\n", b"\xff\xfe\n"])
def test_damaged_line_is_named(path, damage):
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is not.*Remove that line"):
        read_json_lines(path)


def test_disabled_files_are_neither_written_nor_cut(path):
    records = written(path, range(1, 4))
    lines = JsonLines(path, enabled=False)
    lines.append({"step": 4})
    assert lines.flush(to_disk=True)
    assert lines.cut(1) == records[:1]
    lines.close()
    assert read_json_lines(path) == records


def test_lines_wait_for_room_on_a_full_disk(path, monkeypatch, capsys):
    """They are written in order, and a line of which only a part found room is completed."""
    lines, write = JsonLines(path), os.write
    lines.append({"step": 1})
    room = 5

    def write_into_little_room(descriptor: int, content: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(descriptor, content[:room])
        room -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_into_little_room)
        lines.append({"step": 2})
        lines.append({"step": 3})
        assert not lines.flush(to_disk=True)
    assert path.read_bytes() == b'{"step": 1}\n{"ste'
    assert lines.flush(to_disk=True)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    lines.close()
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 1, "one complaint, however many lines wait"
    assert "No space left" in complaints[0]
    assert str(path) in complaints[0]


def test_atomic_write_replaces_text_and_bytes(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
