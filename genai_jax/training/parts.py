"""Scripts made of other scripts, each in a process of its own, whose commands are printed.

The same command again goes on where it was stopped, since every part does.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def command_of(script: Path, preset: str, flags: Mapping[str, object], more: str = "") -> list[str]:
    """Write the command of a part.

    Args:
        script: Of the part.
        preset: Its first word.
        flags: Values by the names of flags.
        more: Flags that somebody adds, which win.
    """
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return [str(word) for word in (sys.executable, script, preset, *given, *more.split())]


def run_parts(commands: Mapping[str, Sequence[str]]) -> tuple[int, dict[str, float]]:
    """Run parts one after the other, until one fails.

    Args:
        commands: By the names of the parts.

    Returns:
        The exit code of the last that ran, and the seconds that each took.
    """
    seconds: dict[str, float] = {}
    for name, command in commands.items():
        print(f"\n=== {name}\n{' '.join(['python', *command[1:]])}", flush=True)
        began = time.monotonic()
        code = call_script(command)
        seconds[name] = time.monotonic() - began
        if code:
            said = f"{name} ended with {code}; the same command again goes on there."
            print(said, file=sys.stderr)
            return code, seconds
    return 0, seconds


def call_script(command: Sequence[str]) -> int:
    """Run a script as a part of another; Ctrl-C is for it, since it knows how to stop.

    Args:
        command: Its words.

    Returns:
        Its exit code.
    """
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # once the part has not inherited it
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
