import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.decoding.lookup import look_up

S, COUNT = 16, 5
guess = jax.jit(lambda tokens, position: look_up(tokens, position, COUNT))


def expected(text):
    """The same by lists: the longest match of up to three tokens, the newest of these."""
    best, place = 0, -1
    for end in range(len(text) - 1):
        length = 0
        while length < 3 and end >= length and text[end - length] == text[-1 - length]:
            length += 1
        if length and length >= best:
            best, place = length, end
    if not best:
        return [-1] * COUNT
    period = text[place + 1 :]
    return [period[i % len(period)] for i in range(COUNT)]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=S), st.integers(0, 3))
def test_guesses_follow_the_newest_of_the_longest_matches(text, behind):
    tokens = np.full((2, S), behind, np.int32)  # what lies behind the last token is ignored
    tokens[0, : len(text)] = text
    tokens[1, 0] = 7
    found = np.asarray(guess(tokens, np.array([len(text) - 1, 0], np.int32)))
    assert found[0].tolist() == expected(text)
    assert found[1].tolist() == [-1] * COUNT
