import numpy as np

from genai_jax.decoding.prefixes import Prefixes


def ids(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_reading_begins_at_the_end_of_a_chunk_that_is_shared():
    prefixes = Prefixes(2, 4, whole=False)
    assert prefixes.longest(ids("abcdefgh")) == (0, None)
    prefixes.keep(ids("abcdefghi"), "first")
    assert prefixes.longest(ids("abcdefgX")) == (4, "first")
    assert prefixes.longest(ids("abcdefghiXYZ")) == (8, "first")
    assert prefixes.longest(ids("abcdefghi")) == (9, "first")  # the very same text
    assert prefixes.longest(ids("abc")) == (0, None)
    assert prefixes.branch(ids("abcdefgX")) == 0


def test_what_was_not_used_for_longest_is_forgotten():
    prefixes = Prefixes(2, 4, whole=False)
    for text in ("aaaa1", "bbbb1"):
        prefixes.keep(ids(text), text)
    prefixes.longest(ids("aaaa2"))
    prefixes.keep(ids("cccc1"), "cccc1")
    assert prefixes.longest(ids("aaaa2")) == (4, "aaaa1")
    assert prefixes.longest(ids("bbbb2")) == (0, None)
    none = Prefixes(0, 4, whole=False)
    none.keep(ids("aaaa1"), "x")
    assert none.longest(ids("aaaa1")) == (0, None)


def test_caches_that_forget_are_gone_on_with_where_they_end():
    prefixes = Prefixes(4, 4, whole=True)
    prefixes.keep(ids("abcdefghijkl"), "long")
    assert prefixes.longest(ids("abcdefghX")) == (0, None)
    assert prefixes.branch(ids("abcdefghX")) == 8  # so one is kept there, on the way
    prefixes.keep(ids("abcdefgh"), "branch")
    assert prefixes.longest(ids("abcdefghYY")) == (8, "branch")
    assert prefixes.longest(ids("abcdefghijklm")) == (12, "long")
    prefixes.keep(ids("abcdef"), "not whole")
    assert prefixes.longest(ids("abcdefX")) == (0, None)
    assert prefixes.longest(ids("abcdef")) == (6, "not whole")
