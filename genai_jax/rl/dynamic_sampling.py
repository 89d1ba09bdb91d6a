"""Answers to learn from: drawn again until enough groups differ within themselves.

A group whose answers are all worth the same says nothing about which of them to prefer.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from genai_jax.rl.advantages import of_several_scores
from genai_jax.rl.rewards import Rewarded
from genai_jax.rl.rollouts import Rollouts


class Drawn(NamedTuple):
    """Answers and what they have earned.

    Attributes:
        rollouts: The answers.
        rewarded: What each has earned.
    """

    rollouts: Rollouts
    rewarded: Rewarded


def draw_differing(
    draw: Callable[[int], Drawn], *, wanted: int, group: int, most: int
) -> tuple[Drawn, int]:
    """Draw until there are enough groups that differ, or the most draws are made.

    Those that differ are taken first, in their order; where they are too few, others fill up, to be
    left out of the update by `AdvantageConfig.drop_equal_scores`.

    Args:
        draw: Makes draw 0, 1, ..., each of at least one group; the first of at least `wanted`.
        wanted: Groups.
        group: Answers of a group.
        most: Draws.

    Returns:
        The groups, and how many draws it took.

    Reference: Yu et al. (DAPO), arXiv:2503.14476, section 3.2, "dynamic sampling".
    """
    drawn: list[Drawn] = []
    differ = np.zeros(0, bool)
    while not drawn or (len(drawn) < most and differ.sum() < wanted):
        drawn.append(draw(len(drawn)))
        last = drawn[-1].rewarded
        scores, counted = (jnp.float32(x.reshape(-1, group)) for x in (last.scores, last.valid))
        differ = np.append(differ, of_several_scores(scores, counted))
    chosen = np.sort(np.argsort(~differ, kind="stable")[:wanted])
    return _taken(drawn, (chosen[:, None] * group + np.arange(group)).reshape(-1)), len(drawn)


def _taken(drawn: Sequence[Drawn], places: np.ndarray) -> Drawn:
    """Take some of all answers."""
    prompts = [x for one in drawn for x in one.rollouts.prompts]
    answers = [x for one in drawn for x in one.rollouts.answers]
    rollouts = Rollouts(
        tuple(prompts[i] for i in places),
        tuple(answers[i] for i in places),
        drawn[0].rollouts.weights_step,
    )
    scores, valid = (
        np.concatenate([getattr(one.rewarded, name) for one in drawn])[places]
        for name in ("scores", "valid")
    )
    faults = tuple(dict.fromkeys(fault for one in drawn for fault in one.rewarded.faults))
    return Drawn(rollouts, Rewarded(scores, valid, faults))
