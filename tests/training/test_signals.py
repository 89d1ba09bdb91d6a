"""A signal becomes a question that the loop asks; the second one ends the process at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from genai_jax.training.signals import Stopped, StopRequest, stop_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_is_only_noted(number, code, capfd):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop
        assert stop.exit_code == 0
        stop.check()
        os.kill(os.getpid(), number)
        assert stop
        assert stop.exit_code == code
        with pytest.raises(Stopped):
            stop.check()
    assert signal.getsignal(number) is before
    assert "saving after this step" in capfd.readouterr().err


def test_second_signal_ends_the_process_at_once():
    """Even where the main thread never comes back to Python, as inside a compilation."""
    code = (
        "import ctypes\n"
        "from genai_jax.training.signals import stop_signals\n"
        "with stop_signals():\n"
        "    print('ready', flush=True)\n"
        "    seconds = 60\n"
        "    while seconds:\n"
        "        seconds = ctypes.CDLL(None).sleep(seconds)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert "saving after this step" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert "exiting at once" in process.stderr.read()
    process.stdout.close()
    process.stderr.close()


def test_other_threads_get_a_request_that_never_comes():
    seen = []

    def body():
        with stop_signals() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_nothing_was_requested():
    stop = StopRequest()
    assert not stop
    stop.check()
