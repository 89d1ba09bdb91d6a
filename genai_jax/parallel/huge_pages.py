"""Huge pages for large arrays on a CPU: glibc can ask for them, but only from its first moment on.

Every step's temporaries are new memory to the process. In pages of 4 KiB the kernel is asked for
each of them anew, 40,000 times a step of a small U-Net; in pages of 2 MiB the step takes 0.77 times
the time (benchmarks/README.md).
"""

import os
import platform
import sys
from pathlib import Path

_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"


def tunables_with_huge_pages(tunables: str, modes: str, libc: str) -> str | None:
    """Say what GLIBC_TUNABLES should be; None where it should stay as it is.

    Args:
        tunables: What it is; who names the tunable there has decided.
        modes: Those of the kernel, the current one in brackets: `always [madvise] never`.
        libc: Name of the C library.
    """
    if libc != "glibc" or "[madvise]" not in modes or _TUNABLE in tunables:
        return None
    return f"{tunables}:{_TUNABLE}=1".removeprefix(":")


def environment_for_huge_pages() -> dict[str, str]:
    """Say what a new process needs in its environment to have huge pages; mostly nothing."""
    try:
        modes = _MODES.read_text()
    except OSError:  # another system, or a container that hides it
        modes = ""
    current = os.environ.get("GLIBC_TUNABLES", "")
    tunables = tunables_with_huge_pages(current, modes, platform.libc_ver()[0])
    return {} if tunables is None else {"GLIBC_TUNABLES": tunables}


def restart_with_huge_pages() -> None:
    """Start this program again, in the same process, where that gives it huge pages; else return.

    It is for scripts, as early as they can: whatever they have computed is lost. Set
    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 to do without.
    """
    additions = environment_for_huge_pages()
    if not additions:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, os.environ | additions)
