import lzma

import numpy as np
import pytest

from genai_jax.evaluation.compression import xz_bits_per_byte


def test_noise_has_eight_bits_and_a_copy_next_to_none():
    noise = np.random.default_rng(0).bytes(100_000)
    xz = xz_bits_per_byte([noise, noise], [noise])
    assert xz.by_file == pytest.approx(8, rel=0.01)
    assert xz.one_stream == pytest.approx(4, rel=0.01)
    assert xz.primed == pytest.approx(0, abs=0.03)  # references to the copy


def test_sizes_are_those_of_xz():
    documents = [b"a line of text\n" * 40, b"another\n" * 30]
    expected = sum(len(lzma.compress(text, preset=9)) for text in documents) * 8
    bits = xz_bits_per_byte(documents, [b""])
    assert bits.by_file == pytest.approx(expected / sum(map(len, documents)))
    assert bits.one_stream < bits.by_file


def test_there_must_be_text():
    with pytest.raises(ValueError, match="must hold text"):
        xz_bits_per_byte([b""], [b"x"])
