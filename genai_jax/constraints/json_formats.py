r"""The formats of strings that JSON Schema names, as regular expressions.

Each is a part of what its standard allows: what is written by it is right to every reader, not all
that is right is written. Left out are what is rare or read differently: leap seconds, lower-case
`t` and `z`, quoted local parts, literal addresses, host names of more than 63 characters.
"""

_DAY = "(0[1-9]|[12][0-9]|3[01])"
_MONTHS_OF_31, _MONTHS_OF_30 = "(0[13578]|1[02])", "(0[469]|11)"
# Every year but 0000, which Python does not know; and those with a 29th of February.
_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DIVISIBLE_BY_4 = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_DIVISIBLE_BY_4}|{_DIVISIBLE_BY_4}00)"
_DATE = (
    f"({_YEAR}-({_MONTHS_OF_31}-{_DAY}|{_MONTHS_OF_30}-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](\.[0-9]{{1,9}})?(Z|[+-]{_CLOCK})"

_LABEL = "[A-Za-z0-9]+(-[A-Za-z0-9]+)*"
_HOST = rf"({_LABEL}\.)*[A-Za-z]+(-[A-Za-z0-9]+)*"
_ATOM = r"[A-Za-z0-9_+-]+"

_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_H16 = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [
        f"({_H16}:){{7}}{_H16}",
        f"({_H16}:){{1,7}}:",
        *(f"({_H16}:){{1,{left}}}(:{_H16}){{1,{7 - left}}}" for left in range(1, 7)),
        f":(:{_H16}){{1,7}}",
        "::",
    ]
)

_PATH_CHARACTER = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_URI = (
    rf"[A-Za-z][A-Za-z0-9+.-]*:(//{_HOST}(:[0-9]{{1,5}})?(/{_PATH_CHARACTER}*)*"
    rf"|{_PATH_CHARACTER}+(/{_PATH_CHARACTER}*)*)"
    rf"(\?({_PATH_CHARACTER}|[/?])*)?(#({_PATH_CHARACTER}|[/?])*)?"
)

_NUMBER = "[0-9]{1,9}"
_DAYS = f"({_NUMBER}Y({_NUMBER}M({_NUMBER}D)?)?|{_NUMBER}M({_NUMBER}D)?|{_NUMBER}D)"
_HOURS = f"T({_NUMBER}H({_NUMBER}M({_NUMBER}S)?)?|{_NUMBER}M({_NUMBER}S)?|{_NUMBER}S)"

FORMATS: dict[str, tuple[str, int | None]] = {
    "date": (_DATE, None),
    "time": (_TIME, None),
    "date-time": (f"{_DATE}T{_TIME}", None),
    "duration": (f"P({_DAYS}({_HOURS})?|{_HOURS}|{_NUMBER}W)", None),
    "email": (rf"{_ATOM}(\.{_ATOM})*@{_HOST}", 64),
    "hostname": (_HOST, 63),
    "ipv4": (rf"{_BYTE}(\.{_BYTE}){{3}}", None),
    "ipv6": (_IPV6, None),
    "uri": (_URI, None),
    "uuid": ("[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", None),
}
"""Of each format the expression that a whole string matches, and the most characters.

Reference: RFC 3339, sections 5.6 and appendix A; RFC 5321, section 4.1.2; RFC 1123, section 2.1;
    RFC 4291, section 2.2; RFC 3986, section 3; RFC 9562, section 4.
"""
