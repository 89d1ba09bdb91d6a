"""Rewards: functions from answers to numbers, and what becomes of an answer that has none."""

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from genai_jax.training.loop import BatchError

_MOST_STALLS = 3


class Sample(NamedTuple):
    """An answer to be rewarded.

    Attributes:
        prompt: What was asked, as text.
        answer: What was answered, as text, without the token that ends it.
        prompt_ids: Ids that were read.
        answer_ids: Ids that were drawn, the one that ends the answer included.
        ended: Whether the answer has ended by itself.
        task: Whatever the prompt came with, for graders.
    """

    prompt: str
    answer: str
    prompt_ids: np.ndarray
    answer_ids: np.ndarray
    ended: bool
    task: Any = None


Reward = Callable[[Sequence[Sample]], Sequence[float]]
"""Says a number for each of some samples; NaN says that there is none."""


class RewardError(BatchError):
    """A reward function raised, stalled, or said what is no number."""


def per_sample(reward: Callable[[Sample], float]) -> Reward:
    """Make a reward of a function of one sample: where it raises, the others keep theirs."""

    def each(samples: Sequence[Sample]) -> list[float]:
        return [float(reward(sample)) for sample in samples]

    return each


def graded(grade: Callable[[Any, str], float]) -> Reward:
    """Make a reward of a grader of tasks.

    Args:
        grade: `(task, answer) -> grade` in [0, 1]. An answer that did not end is wrong.
    """
    return per_sample(lambda sample: grade(sample.task, sample.answer) if sample.ended else 0.0)


def length_penalty(per_token: float) -> Reward:
    """Make a reward that takes off a fixed amount for each token.

    Args:
        per_token: What a token costs.
    """
    return per_sample(lambda sample: -per_token * len(sample.answer_ids))


def matches(accepts: Callable[[str], bool]) -> Reward:
    """Make a reward of 1 for answers of a format, and 0 for others.

    Args:
        accepts: Says whether a text has the format.
    """
    return per_sample(lambda sample: float(accepts(sample.answer)))


def mixture(parts: Mapping[str, tuple[float, Reward]]) -> Reward:
    """Make the weighted sum of rewards.

    Args:
        parts: (weight, reward) by name.

    Raises:
        ValueError: If there is none, or a weight is no number.
    """
    if not parts:
        raise ValueError("a mixture must have a reward; got none.")
    for name, (weight, _) in parts.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of the reward {name!r} must be a number; got {weight}.")

    def total(samples: Sequence[Sample]) -> list[float]:
        sums = np.zeros(len(samples))
        for weight, reward in parts.values():
            sums += weight * np.asarray(reward(samples), float)
        return sums.tolist()

    return total


@dataclasses.dataclass(frozen=True)
class RewardPolicy:
    """What becomes of an answer whose reward raises, stalls, or is no number.

    Attributes:
        on_failure: exclude leaves the answer out of the update, counts it and goes on; stop saves
            the steps so far and ends the run; the same command again goes on.
        seconds: How long rewarding the answers of a step may take at once; 0 waits for ever.
    """

    on_failure: Literal["exclude", "stop"] = "exclude"
    seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"`seconds` must not be negative; got {self.seconds}.")


class Rewarded(NamedTuple):
    """What samples have earned.

    Attributes:
        scores: Of each; 0 where there is none.
        valid: Whether there is one.
        faults: What went wrong, in words, the first of each kind.
    """

    scores: Float[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]
    faults: tuple[str, ...]


def reward_samples(
    reward: Reward, samples: Sequence[Sample], policy: RewardPolicy = RewardPolicy()
) -> Rewarded:
    """Reward samples, whatever the function does.

    All are given to it at once. Where that fails they are given to it one by one, so that only
    those are left out that it fails at. After a stall each may take an eighth of the time, and
    after three more stalls the rest is left out, too: each leaves a thread behind.

    Args:
        reward: The function.
        samples: What to reward.
        policy: What to do about failures.

    Raises:
        RewardError: If it fails and the policy is to stop.
    """
    faults: dict[str, str] = {}
    scores = _called(reward, samples, policy.seconds, faults)
    if scores is None:
        scores = _one_by_one(reward, samples, policy.seconds, faults)
    valid = np.isfinite(scores)
    if not valid.all() and not faults:
        faults["number"] = f"a reward must be a finite number; got {scores[~valid][0]}"
    if faults and policy.on_failure == "stop":
        raise RewardError(
            f"{int((~valid).sum())} of {len(samples)} answers could not be rewarded: "
            + "; ".join(faults.values())
            + ". Mend the reward, or leave such answers out: --rewarding.on-failure exclude."
        )
    return Rewarded(np.where(valid, scores, 0.0), valid, tuple(faults.values()))


def _one_by_one(
    reward: Reward, samples: Sequence[Sample], seconds: float, faults: dict[str, str]
) -> Float[np.ndarray, " n"]:
    """Reward each by itself, after all at once have failed; NaN where that fails again."""
    scores = np.full(len(samples), math.nan)
    if "stall" in faults:
        seconds /= 8
    else:
        faults.clear()
    stalls = 0
    for number, sample in enumerate(samples):
        again: dict[str, str] = {}
        one = _called(reward, [sample], seconds, again)
        faults |= again | faults  # the first of each kind
        stalls += "stall" in again
        if one is not None:
            scores[number] = one[0]
        if stalls == _MOST_STALLS:
            break
    return scores


def _called(
    reward: Reward, samples: Sequence[Sample], seconds: float, faults: dict[str, str]
) -> Float[np.ndarray, " n"] | None:
    """Call a reward in a thread of its own, which is left behind if it stalls."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(np.asarray(reward(samples), float))
        except BaseException as error:  # SystemExit, too: in this thread nobody else hears of it
            found.append(error)

    thread = threading.Thread(target=work, daemon=True, name="reward")
    thread.start()
    thread.join(seconds or None)
    if not found:
        faults.setdefault("stall", f"it took longer than {seconds:g} s")
        return None
    (result,) = found
    if isinstance(result, BaseException):
        faults.setdefault("raise", f"it raised {type(result).__name__}: {result}")
        return None
    if result.shape != (len(samples),):
        shape = list(result.shape)
        faults.setdefault("shape", f"it must say {len(samples)} numbers; got the shape {shape}")
        return None
    return result
