"""What every script that trains does around its run: memory, devices, Ctrl-C, errors in a line."""

import sys
from collections.abc import Callable
from typing import TypeVar

from genai_jax.parallel.cpu_devices import cores_that_divide, split_cpu
from genai_jax.parallel.huge_pages import restart_with_huge_pages
from genai_jax.training.run_config import RunConfig
from genai_jax.training.run_directory import RunError
from genai_jax.training.signals import Stopped, StopRequest, stop_signals

Config = TypeVar("Config", bound=RunConfig)


def run_script(config: Config, run: Callable[[Config, StopRequest], int]) -> int:
    """Call `run` with devices made of the CPU, and with what Ctrl-C asks for.

    Where it is called by the script that was started, and not by a module that was imported, that
    may be started again: `restart_with_huge_pages`.

    Args:
        config: What the command line said.
        run: Takes it and the request to stop, which it looks at; returns the exit code.

    Returns:
        The exit code of the process: 2 where the run was refused, for a reason that was printed.
    """
    if sys._getframe(1).f_globals.get("__name__") == "__main__":
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
