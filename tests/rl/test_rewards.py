"""Rewards, and everything that a reward function can do wrong."""

import math
import threading

import numpy as np
import pytest

from genai_jax.rl.rewards import (
    RewardError,
    RewardPolicy,
    Sample,
    graded,
    length_penalty,
    matches,
    mixture,
    per_sample,
    reward_samples,
)


def sample(answer, task=None, ended=True, tokens=None):
    ids = np.zeros(len(answer) + 1 if tokens is None else tokens, np.int32)
    return Sample("?", answer, np.ones(2, np.int32), ids, ended, task)


SAMPLES = [sample("aa"), sample("b"), sample("ccc")]


def test_rewards_add_up():
    total = mixture(
        {
            "grade": (2.0, graded(lambda task, text: float(text == task))),
            "length": (0.5, length_penalty(0.1)),
            "format": (1.0, matches(str.isalpha)),
        }
    )
    samples = [sample("ok", "ok"), sample("no", "ok"), sample("1", "ok"), sample("ok", "ok", False)]
    wanted = [2 + 1 - 0.15, 1 - 0.15, -0.1, 1 - 0.15]
    np.testing.assert_allclose(reward_samples(total, samples).scores, wanted)


def test_an_answer_that_did_not_end_is_not_right():
    grade = graded(lambda task, text: 1.0)
    assert grade([sample("x"), sample("x", ended=False)]) == [1.0, 0.0]


@pytest.mark.parametrize("error", [KeyError("b"), SystemExit("b")], ids=repr)
def test_those_are_left_out_that_have_no_reward(error):
    def picky(one):
        if one.answer == "b":
            raise error
        return len(one.answer)

    found = reward_samples(per_sample(picky), SAMPLES)
    assert found.scores.tolist() == [2.0, 0.0, 3.0]
    assert found.valid.tolist() == [True, False, True]
    assert f"it raised {type(error).__name__}: " in found.faults[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_left_out(bad):
    found = reward_samples(lambda samples: [1.0, bad, 2.0], SAMPLES)
    assert found.scores.tolist() == [1.0, 0.0, 2.0]
    assert found.valid.tolist() == [True, False, True]
    assert "must be a finite number" in found.faults[0]


def test_a_reward_must_say_one_number_for_each():
    found = reward_samples(lambda samples: [1.0], SAMPLES)
    assert found.scores.tolist() == [1.0] * 3  # one by one it does
    found = reward_samples(lambda samples: [[1.0, 2.0]], SAMPLES)
    assert not found.valid.any()
    assert "must say 1 numbers" in found.faults[0]


def test_a_reward_that_stalls_is_left_behind():
    forever = threading.Event()
    try:
        found = reward_samples(
            lambda samples: [forever.wait()], SAMPLES, RewardPolicy(seconds=0.05)
        )
    finally:
        forever.set()
    assert not found.valid.any()
    assert found.faults == ("it took longer than 0.05 s",)


def test_those_alone_are_left_out_that_stall():
    forever = threading.Event()

    def slow(one):
        if one.answer == "b":
            forever.wait()
        return len(one.answer)

    try:
        found = reward_samples(per_sample(slow), SAMPLES, RewardPolicy(seconds=0.8))
    finally:
        forever.set()
    assert found.scores.tolist() == [2.0, 0.0, 3.0]
    assert found.valid.tolist() == [True, False, True]
    assert found.faults == ("it took longer than 0.8 s",)


def test_what_always_stalls_is_not_asked_for_ever():
    forever, calls = threading.Event(), []

    def slow(samples):
        calls.append(len(samples))
        return [forever.wait()]

    try:
        found = reward_samples(slow, SAMPLES * 10, RewardPolicy(seconds=0.05))
    finally:
        forever.set()
    assert calls == [30, 1, 1, 1] and not found.valid.any()


def test_a_run_can_be_stopped_instead():
    def broken(samples):
        raise ZeroDivisionError("no")

    with pytest.raises(RewardError, match=r"3 of 3 answers .* ZeroDivisionError: no"):
        reward_samples(broken, SAMPLES, RewardPolicy("stop"))


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="must have a reward"):
        mixture({})
    with pytest.raises(ValueError, match="must be a number; got nan"):
        mixture({"x": (math.nan, length_penalty(1.0))})
    with pytest.raises(ValueError, match="must not be negative; got -1"):
        RewardPolicy(seconds=-1)
