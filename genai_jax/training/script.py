"""What every script that trains does around its run: memory, devices, Ctrl-C, errors in a line."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from genai_jax.parallel.cpu_devices import cores_that_divide, split_cpu
from genai_jax.parallel.huge_pages import restart_with_huge_pages
from genai_jax.training.run_config import RunConfig
from genai_jax.training.run_directory import RunError
from genai_jax.training.signals import Stopped, StopRequest, stop_signals

Config = TypeVar("Config", bound=RunConfig)


def run_script(config: Config, run: Callable[[Config, StopRequest], int]) -> int:
    """Call `run` with devices made of the CPU, and with what Ctrl-C asks for.

    Where `run` is of the script that was started, and not of a module that was imported, it may be
    started again: `restart_with_huge_pages`.

    Args:
        config: What the command line said.
        run: Takes it and the request to stop, which it looks at; returns the exit code.

    Returns:
        The exit code of the process: 2 where the run was refused, for a reason that was printed.
    """
    if run.__module__ == "__main__":
        restart_with_huge_pages()
    together = config.rows_at_once, config.evaluation_rows
    split_cpu(config.cpu_devices or cores_that_divide(*together))
    try:
        with stop_signals() as stop:
            try:
                return run(config, stop)
            except Stopped:  # outside of the loop: in what comes after the last step
                print(
                    "stopped before the end; the same command again does the rest", file=sys.stderr
                )
                return stop.exit_code
    except (RunError, ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2


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
