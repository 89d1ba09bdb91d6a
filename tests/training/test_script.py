"""What is around every run: exit codes and words for whatever ends it."""

import os
import signal
import time

import pytest

from genai_jax.training.run_config import RunConfig
from genai_jax.training.run_directory import RunError
from genai_jax.training.script import run_script

CONFIG = RunConfig(workdir="", steps=1, batch_size=8)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_after_the_last_step_ends_in_words(capfd, number, code):
    def run(config, stop):
        os.kill(os.getpid(), number)
        while not stop:
            time.sleep(0.01)
        stop.check()
        return 0

    assert run_script(CONFIG, run) == code
    assert "the same command again does the rest" in capfd.readouterr().err


@pytest.mark.parametrize("error", [RunError, ValueError, FileNotFoundError])
def test_a_refusal_is_a_line(capsys, error):
    def run(config, stop):
        raise error("No.")

    assert run_script(CONFIG, run) == 2
    assert capsys.readouterr().err == "ERROR: No.\n"


def test_the_exit_code_is_that_of_the_run():
    assert run_script(CONFIG, lambda config, stop: 7) == 7
