"""Tests of huge pages: who gets them, and that a script is started again once, as it was."""

import subprocess
import sys

import pytest

from genai_jax.parallel.huge_pages import environment_for_huge_pages, tunables_with_huge_pages

_MADVISE = "always [madvise] never\n"


@pytest.mark.parametrize(
    ("tunables", "modes", "libc", "expected"),
    [
        ("", _MADVISE, "glibc", "glibc.malloc.hugetlb=1"),
        ("glibc.a.b=2", _MADVISE, "glibc", "glibc.a.b=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", _MADVISE, "glibc", None),  # the user's word
        ("", "[always] madvise never\n", "glibc", None),  # the kernel gives them anyhow
        ("", "always madvise [never]\n", "glibc", None),
        ("", "", "glibc", None),  # not Linux
        ("", _MADVISE, "", None),  # musl, macOS
    ],
)
def test_huge_pages_are_asked_for_where_that_helps(
    tunables: str, modes: str, libc: str, expected: str | None
):
    assert tunables_with_huge_pages(tunables, modes, libc) == expected


def test_a_script_is_started_again_once_with_its_arguments(tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    expected = environment_for_huge_pages().get("GLIBC_TUNABLES")  # None where it has no effect
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from genai_jax.parallel.huge_pages import restart_with_huge_pages\n"
        "print('begun', os.getpid())\n"
        "restart_with_huge_pages()\n"
        "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), sys.flags.dev_mode)\n"
    )
    command = [sys.executable, "-X", "dev", str(script), "a b", "--steps=5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *begun, last = done.stdout.splitlines()
    assert last == f"{['a b', '--steps=5']} {expected} True"
    assert len(begun) == (1 if expected is None else 2)
    assert len(set(begun)) == 1  # the same process
