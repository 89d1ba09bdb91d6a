import datetime
import ipaddress
import itertools
import json
import re
import uuid

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_formats import FORMATS
from genai_jax.constraints.json_strings import inside, strings, strings_but
from tests.constraints.test_regular_expressions import PATTERNS, WORDS, sample

CHECK = jsonschema.Draft202012Validator.FORMAT_CHECKER


def accepts(dfa, text):
    return dfa.accepts(inside(text))


@given(st.text(max_size=20))
@example('"\\\b\f\n\r\t\x00\x1f\x7f/\u2028\ud7ff\U0010ffff')
def test_strings_are_written_as_python_writes_them(text):
    written = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    assert inside(text) == written
    assert strings().accepts(written)


@pytest.mark.parametrize("text", [r"\/", r"\u0041", r"\u001F", r"\ud800", '"', "\n", "\\", r"\x"])
def test_nothing_else_is_written(text):
    assert not strings().accepts(text.encode())


@given(st.text(max_size=8), st.integers(0, 6), st.sampled_from([None, 0, 1, 2, 5]))
def test_lengths_count_characters(text, least, more):
    most = None if more is None else least + more
    expected = least <= len(text) and (most is None or len(text) <= most)
    assert accepts(strings(least, most), text) == expected


@given(PATTERNS, st.integers(0, 2**32))
def test_patterns_search_and_agree_with_python(pattern, seed):
    """What is generated is matched by Python; what Python matches is in the wide language."""
    narrow, wide = strings(patterns=(pattern,)), strings(patterns=(pattern,), wide=True)
    search = re.compile(pattern).search
    for word in WORDS:
        found = bool(search(word))
        assert found or not accepts(narrow, word)
        assert accepts(wide, word) or not found
    rng = np.random.default_rng(seed)
    for _ in range(0 if narrow.is_empty else 3):
        text = sample(narrow, rng)
        assert text is None or search(json.loads(b'"' + text + b'"'))


@pytest.mark.parametrize(
    ("pattern", "matched", "refused"),
    [
        ("b", ["b", "abc", "\nb\n"], ["", "ac"]),
        ("^b", ["b", "bc"], ["ab"]),
        ("b$", ["ab"], ["bc", "b\n"]),
        ("^a|b$", ["ax", "xb"], ["xa", "bx"]),
        ('^"\\\\$', ['"\\'], ['"']),
        ("^.$", ["é"], ["\n", "\r", "\u2028"]),
        (r"^\S$", ["é", "a"], ["\xa0", "\x1c", " "]),
        (r"^\W$", ["-"], ["é", "a"]),
        (r"^\d$", ["3"], ["\u0663"]),
    ],
)
def test_patterns_of_decoded_strings(pattern, matched, refused):
    dfa = strings(patterns=(pattern,))
    assert [text for text in matched if not accepts(dfa, text)] == []
    assert [text for text in refused if accepts(dfa, text)] == []


def test_patterns_lengths_and_formats_hold_together():
    dfa = strings(3, 4, ("^a", "b$"))
    words = ["".join(w) for n in range(6) for w in itertools.product("abc", repeat=n)]
    found = [word for word in words if accepts(dfa, word)]
    assert found == [w for w in words if 3 <= len(w) <= 4 and w[0] == "a" and w[-1] == "b"]
    leap = strings(patterns=("-02-29$",), formats=("date",))
    assert accepts(leap, "2024-02-29") and not accepts(leap, "2023-02-29")
    assert strings(5, 5, (), ("date",)).is_empty


def test_long_strings_with_short_patterns_are_small():
    """Lengths are counted beside the pattern, so that only what both allow is built."""
    assert len(strings(0, 10**9, ("^[a-z]{1,5}$",)).accepting) == 6


def test_every_date_of_four_centuries():
    dfa = strings(formats=("date",))
    day = datetime.date(1899, 12, 31)
    dates = {(day + datetime.timedelta(n)).isoformat() for n in range(401 * 366)}
    for year, month, date in itertools.product(range(1900, 2300), range(14), range(33)):
        text = f"{year:04}-{month:02}-{date:02}"
        assert dfa.accepts(text.encode()) == (text in dates), text
    assert dfa.accepts(b"0001-01-01") and dfa.accepts(b"9999-12-31") and dfa.accepts(b"0400-02-29")
    assert not dfa.accepts(b"0000-01-01") and not dfa.accepts(b"0100-02-29")


def is_time(text):
    datetime.datetime.fromisoformat(f"2024-01-01T{re.sub('[.][0-9]+', '', text)}")
    return bool(re.search("(Z|[+-][0-9][0-9]:[0-9][0-9])$", text))


ORACLES = {
    "time": is_time,
    "date-time": lambda text: CHECK.conforms(text[:10], "date") and is_time(text[11:]),
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_are_what_their_names_say(name):
    dfa = strings(formats=(name,))
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        text = (sample(dfa, rng) or b"").decode()
        if text:
            found.add(text)
            assert CHECK.conforms(text, name), text
            assert ORACLES.get(name, bool)(text), text
    assert len(found) > 30


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("time", ["23:59:59Z", "00:00:00.125+05:30"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
        ("date-time", ["2024-02-29T12:00:00Z"], ["2023-02-29T12:00:00Z", "2024-02-29 12:00:00Z"]),
        ("duration", ["P1Y2M3DT4H5M6S", "PT5M", "P3W", "P1D"], ["P", "PT", "P1Y3D", "P1W1D"]),
        ("email", ["a.b+c@x-y.org"], ["a@", "@x.org", "a..b@x.org", "a@-x.org", "a b@x.org"]),
        ("hostname", ["a", "x1.example.com"], ["", ".a", "a.", "-a", "a-", "1.2", "a" * 64]),
        ("ipv4", ["0.0.0.0", "255.255.255.255"], ["256.0.0.0", "01.0.0.0", "1.2.3"]),
        ("ipv6", ["::", "::1", "1:2:3:4:5:6:7:8", "1::8"], ["1:2", "1::2::3", "12345::", ":::"]),
        ("uri", ["https://x.org:80/a/b?c=d#e", "urn:isbn:1"], ["x", "//x.org", "http://x y"]),
        ("uuid", [str(uuid.UUID(int=7))], [uuid.UUID(int=7).hex]),
    ],
)
def test_formats_by_example(name, right, wrong):
    dfa = strings(formats=(name,))
    assert [text for text in right if not accepts(dfa, text)] == []
    assert [text for text in wrong if accepts(dfa, text)] == []


def test_unknown_formats_are_refused():
    with pytest.raises(ConstraintError, match=r"must be one of date, .*; got 'phone'"):
        strings(formats=("phone",))


@given(st.lists(st.text(max_size=4), max_size=4), st.text(max_size=4))
def test_all_strings_but_some(excluded, text):
    dfa = strings_but(excluded)
    assert accepts(dfa, text) == (text not in excluded)
    assert not any(accepts(dfa, name) for name in excluded)


def test_strings_that_would_be_too_long_are_refused():
    with pytest.raises(ConstraintError, match="32,000 states"):
        strings(0, 10**9)
