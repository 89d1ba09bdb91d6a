import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.interop.safetensors import (
    DTYPES,
    Outgoing,
    SafetensorsError,
    SafetensorsFile,
    write_safetensors,
)

# Written out by hand from the description of the format: two tensors, padded with spaces.
HEADER = (
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"I16","shape":[2],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}'
)
HEADER += b" " * (-len(HEADER) % 8)
BODY = b"\x01\x00\xff\xff" + b"\x00\x00\x80\x3f"
FILE = len(HEADER).to_bytes(8, "little") + HEADER + BODY


def outgoing(values):
    values = np.asarray(values)
    return Outgoing(values.dtype, values.shape, lambda: values)


def write(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def file_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_a_file_written_by_hand_is_read(tmp_path):
    file = SafetensorsFile(write(tmp_path, FILE))
    assert file.metadata == {"format": "pt"}
    assert list(file.entries) == ["a", "b"]
    np.testing.assert_array_equal(file["a"], np.array([1, -1], np.int16))
    assert file["b"].shape == () and file["b"] == np.float32(1)
    assert not file["a"].flags.writeable


def test_writing_gives_that_file(tmp_path):
    tensors = {"a": outgoing(np.array([1, -1], np.int16)), "b": outgoing(np.float32(1))}
    write_safetensors(tmp_path / "x", tensors, {"format": "pt"})
    assert (tmp_path / "x").read_bytes() == FILE
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_comes_back_to_the_last_bit(name, tmp_path):
    count = 6 * DTYPES[name].itemsize
    numbers = np.random.default_rng(0).integers(0, 256, count).astype(np.uint8)
    values = (numbers % 2 if name == "BOOL" else numbers).view(DTYPES[name]).reshape(2, 3)
    empty = np.zeros((0, 5), DTYPES[name])
    tensors = {"x": outgoing(values), "none": outgoing(empty), "turned": outgoing(values.T)}
    write_safetensors(tmp_path / "x", tensors, {})
    file = SafetensorsFile(tmp_path / "x")
    assert file.entries["x"].dtype == name and file.metadata == {}
    assert file["x"].tobytes() == values.tobytes()
    assert file["turned"].tobytes() == values.T.tobytes()
    assert file["none"].shape == (0, 5)


FAULTY = {
    "empty": (b"", "must begin with 8 bytes"),
    "only a length": (FILE[:8], "cut off"),
    "cut in the header": (FILE[:40], "cut off"),
    "cut in the tensors": (FILE[:-1], "the file is cut off"),
    "bytes at the end": (FILE + b"\0", "belong to no tensor"),
    "a length beyond the limit": ((1 << 40).to_bytes(8, "little") + HEADER, "at most 100,000,000"),
    "a length below zero": (b"\xff" * 8 + HEADER, "at most 100,000,000"),
    "not an object": (file_of(b"[]"), "begin with '{'"),
    "not JSON": (file_of(b"{'a': 1}"), "not valid"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not valid"),
    "nested": (file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deeply"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), "stands twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "texts by name"),
    "an entry that is none": (file_of({"a": 3}), "must have dtype"),
    "an entry with more": (file_of({"a": entry() | {"more": 1}}, bytes(4)), "must have dtype"),
    "an unknown type": (file_of({"a": entry("F7")}, bytes(4)), "not known. Known are BOOL"),
    "a type that is a list": (file_of({"a": entry() | {"dtype": []}}, bytes(4)), "not known"),
    "a negative shape": (file_of({"a": entry(shape=(-2, -2))}, bytes(4)), "shape of counts"),
    "a shape of fractions": (file_of({"a": entry(shape=(2.0, 2))}, bytes(4)), "shape of counts"),
    "a shape of truths": (file_of({"a": entry(shape=(True, 4))}, bytes(4)), "shape of counts"),
    "a huge shape": (file_of({"a": entry(shape=(2**62, 2**62))}, bytes(4)), "must have 21"),
    "one offset": (file_of({"a": entry(offsets=(0,))}, bytes(4)), "two offsets"),
    "offsets backwards": (file_of({"a": entry(offsets=(4, 0))}, bytes(4)), "give -4"),
    "too few bytes": (file_of({"a": entry(offsets=(0, 3))}, bytes(4)), "must have 4 bytes"),
    "beyond the end": (file_of({"a": entry(offsets=(4, 8))}, bytes(4)), "leave a gap"),
    "an overlap": (
        file_of({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
        "tensor 'a' and tensor 'b' overlap",
    ),
    "a gap": (file_of({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)), "leave a gap"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_faulty_files_are_refused(case, tmp_path):
    content, rule = FAULTY[case]
    path = write(tmp_path, content)
    with pytest.raises(SafetensorsError) as caught:
        SafetensorsFile(path)
    assert rule in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(FILE)),
    st.binary(max_size=12),
)
def test_a_damaged_file_is_read_whole_or_refused(tmp_path_factory, changes, cut, more):
    """Whatever a byte becomes: no other error, and no tensor that leaves the file."""
    content = bytearray(FILE)
    for place, byte in changes:
        content[place] = byte
    path = write(tmp_path_factory.mktemp("damaged"), bytes(content[: cut or None]) + more)
    try:
        file = SafetensorsFile(path)
    except SafetensorsError:
        return
    assert sum(file[name].nbytes for name in file.entries) <= len(FILE)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner),
    max_leaves=12))  # fmt: skip
def test_any_header_is_read_or_refused(tmp_path_factory, header):
    path = write(tmp_path_factory.mktemp("any"), file_of(header, bytes(8)))
    try:
        file = SafetensorsFile(path)
    except SafetensorsError:
        return
    assert sum(file[name].nbytes for name in file.entries) == 8


def test_what_was_announced_is_what_is_written(tmp_path):
    lying = Outgoing(np.dtype(np.float32), (2,), lambda: np.zeros(3, np.float32))
    with pytest.raises(SafetensorsError, match=r"announced as float32 \(2,\); got float32 \(3,\)"):
        write_safetensors(tmp_path / "x", {"a": lying}, {})
    strange = outgoing(np.zeros(1, np.complex64))
    with pytest.raises(SafetensorsError, match="no name for"):
        write_safetensors(tmp_path / "x", {"a": strange}, {})
    assert not list(tmp_path.iterdir())  # not even a part
