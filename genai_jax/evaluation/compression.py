"""What a general compressor makes of a text: the bar for a language model's bits per byte."""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class XzBits(NamedTuple):
    """Bits per byte of held-out documents under `xz -9`.

    Attributes:
        by_file: Each document on its own: what a model that has learnt nothing must find out of
            each document anew.
        one_stream: All documents joined: repetitions between them are found too.
        primed: After the training text: what the held-out text adds to its archive. The fair
            opponent of a model that has seen the training text.
    """

    by_file: float
    one_stream: float
    primed: float


def xz_bits_per_byte(validation: Sequence[bytes], training: Sequence[bytes]) -> XzBits:
    """Measure what `xz -9` makes of held-out documents.

    Its dictionary of 64 MiB bounds how much of the training text primes it: the last 60 MB of it
    are used.

    Args:
        validation: The held-out documents.
        training: The documents of the training split.

    Raises:
        ValueError: If there is no held-out text.
    """
    held_out = b"".join(validation)
    if not held_out:
        raise ValueError("the held-out documents must hold text; got none. Choose a larger split.")
    prime = b"".join(training)[-60_000_000:]
    with ThreadPoolExecutor() as pool:  # xz lets go of the interpreter
        both, alone, stream, *files = pool.map(
            _xz_size, [prime + held_out, prime, held_out, *validation]
        )
    bits = 8 / len(held_out)
    return XzBits(sum(files) * bits, stream * bits, (both - alone) * bits)


def _xz_size(text: bytes) -> int:
    return len(lzma.compress(text, preset=9))
