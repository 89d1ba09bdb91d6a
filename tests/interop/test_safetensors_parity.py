"""Our reader and writer beside the package of the format."""

import os

import numpy as np
import pytest

from genai_jax.interop.safetensors import Outgoing, SafetensorsFile, write_safetensors

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("safetensors", reason="parity needs the extra [parity]")
import safetensors
import safetensors.numpy as reference


def outgoing(values):
    return Outgoing(values.dtype, values.shape, lambda: values)


def test_files_of_the_reference_are_read_and_ours_by_it(tmp_path):
    numbers = np.random.default_rng(0)
    tensors = {
        "layer.0.weight": numbers.normal(size=(3, 5)).astype(np.float32),
        "layer.0.bias": numbers.normal(size=5).astype(np.float16),
        "ids": np.arange(7),
        "é 中": np.zeros((2, 0), np.int8),
    }
    reference.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "theirs")
    assert {name: file[name].tobytes() for name in file.entries} == {
        name: x.tobytes() for name, x in tensors.items()
    }
    # In the order of their bytes ours is the same file.
    again = {name: outgoing(file[name]) for name in file.entries}
    write_safetensors(tmp_path / "ours", again, file.metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    back = reference.load_file(tmp_path / "ours")
    assert all(back[name].tobytes() == x.tobytes() for name, x in tensors.items())


def test_what_the_reference_refuses_is_refused(tmp_path):
    """Cut anywhere, a file is refused by both."""
    reference.save_file({"a": np.arange(6.0), "b": np.zeros(3, np.int16)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(safetensors.SafetensorError):
            reference.load_file(tmp_path / "cut")
        with pytest.raises(ValueError):
            SafetensorsFile(tmp_path / "cut")
