"""Contenders side by side: each a process of its own that stays alive; they take turns.

A B C, C B A, ...: whatever else the machine does falls on all of them.
"""

import dataclasses
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from genai_jax.parallel.huge_pages import environment_for_huge_pages

Call = Callable[[], float]
"""What is timed: one step, or one batch of samples; its number is read back every time."""

_WARM_UP = 3
_REST = 0.3  # seconds before a turn: the threads of the one before may wait for work by spinning


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a contender took.

    Attributes:
        seconds: Of one call, a number a turn.
        peak_bytes: Most memory that its process ever held.
        about: What its maker says of it, such as a number of parameters.
    """

    seconds: list[float]
    peak_bytes: int
    about: str

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The fewest seconds."""
        return min(self.seconds)


def time_in_turn(
    makers: Mapping[str, Callable[[], Call | tuple[Call, str]]], *, turns: int, calls: int
) -> dict[str, Timing]:
    """Time contenders alternately, each in a process of its own.

    Args:
        makers: By name, what makes the call to be timed, and says a word about it. Run in the
            contender's process: a function of a module, or a `functools.partial` of one.
        turns: How often each is timed.
        calls: Calls of a turn.
    """
    os.environ.update(environment_for_huge_pages())  # for all contenders
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes, about = [], {}
    for name, make in makers.items():  # one after the other: no warm-up disturbs another's
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        value, seconds, about[name] = pipes[name].recv()
        words = f", {about[name]}" if about[name] else ""
        print(
            f"{name}: first value {value:.4f}, first {_WARM_UP} calls {seconds:.1f} s{words}",
            flush=True,
        )
    seconds_of: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(turns):
        for name in makers if turn % 2 == 0 else reversed(list(makers)):
            time.sleep(_REST)
            pipes[name].send(calls)
            seconds_of[name].append(pipes[name].recv() / calls)
    timings = {}
    for name, pipe in pipes.items():
        pipe.send(0)
        timings[name] = Timing(seconds_of[name], pipe.recv(), about[name])
    for process in processes:
        process.join()
    return timings


def _serve(make: Callable[[], Any], pipe: Connection) -> None:
    """Live as one contender: answer every number of calls by the seconds that they took."""
    import resource

    made = make()
    call, about = made if isinstance(made, tuple) else (made, "")
    began = time.perf_counter()
    values = [call() for _ in range(_WARM_UP)]
    pipe.send((values[0], time.perf_counter() - began, about))
    while calls := pipe.recv():
        call()  # not timed: what others' turns have driven out of the caches comes back
        began = time.perf_counter()
        for _ in range(calls):
            call()
        pipe.send(time.perf_counter() - began)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def print_table(timings: Mapping[str, Timing], ours: str, unit: str, amount: float) -> None:
    """Print speed and memory of all, and our ratio to the fastest of the others.

    Args:
        timings: By name.
        ours: Name of ours.
        unit: What a call makes or reads.
        amount: Units of a call.
    """
    width = max(map(len, timings))
    print(f"{'':{width}} {'median ms':>10} {'min ms':>10} {unit + '/s':>10} {'peak MiB':>10}")
    for name, timing in timings.items():
        print(
            f"{name:{width}} {timing.median * 1e3:10.1f} {timing.best * 1e3:10.1f} "
            f"{amount / timing.median:10,.0f} {timing.peak_bytes / 2**20:10,.0f}"
        )
    others = [timing for name, timing in timings.items() if name != ours]
    if others:
        median = min(other.median for other in others) / timings[ours].median
        best = min(other.best for other in others) / timings[ours].best
        print(
            f"our {unit}/s are {median:.2f} (medians), {best:.2f} (minima) times those of the "
            "fastest PyTorch"
        )


@functools.cache
def torch_versions(*packages: str) -> str | None:
    """Say which versions of PyTorch and of other packages there are; None where one is missing."""
    import importlib.metadata

    try:
        return ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", *packages))
    except importlib.metadata.PackageNotFoundError:
        return None
