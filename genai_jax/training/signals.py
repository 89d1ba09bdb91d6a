"""Stop at a step boundary when asked to: SIGTERM (exit 143) and Ctrl-C (exit 130).

Python runs its handlers only between two bytecodes of the main thread, which may be minutes inside
a compilation. The second signal is therefore counted by a thread of its own, and ends the process
there and then.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax

HANDLED = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Raised by `StopRequest.check` inside a long evaluation or sampling loop."""


class StopRequest:
    """Whether somebody asked the run to stop; polled at every step."""

    def __init__(self) -> None:
        """Start with nothing requested."""
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as a shell reports it; 0 while there is none."""
        return 128 + self.signal_number if self.signal_number is not None else 0

    def check(self) -> None:
        """Raise `Stopped` if a signal has arrived: for loops inside evaluation and sampling.

        Does nothing in a run on several hosts, which must leave such a loop all together.
        """
        if self and jax.process_count() == 1:
            raise Stopped


def _watch(receiver: socket.socket) -> None:
    """Announce the first signal, and exit at once on the second."""
    arrived = 0
    # A socket that another part of the program shares may carry other signals (SIGCHLD, ...).
    while numbers := receiver.recv(1):
        if numbers[0] not in HANDLED:
            continue
        arrived += 1
        name = signal.Signals(numbers[0]).name
        if arrived > 1:
            os.write(2, f"\n{name} again: exiting at once, nothing more is saved.\n".encode())
            os._exit(128 + numbers[0])
        message = f"\n{name}: saving after this step, then exiting. Once more exits at once.\n"
        os.write(2, message.encode())


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request that the loop polls; the second one exits at once.

    Outside the main thread Python allows no handlers: there the request simply never comes.

    Yields:
        The request: true once a signal has arrived.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: object) -> None:
        request.signal_number = request.signal_number or number

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(receiver,), name="stop_signals", daemon=True)
    watcher.start()
    old_descriptor = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    old_handlers = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield request
    finally:
        for number, old in old_handlers.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(old_descriptor)
        sender.close()  # ends the watcher: it reads the end of the stream
        watcher.join()
        receiver.close()
