"""Drawn until enough groups teach something: which are taken, and when it ends."""

import numpy as np
import pytest

from genai_jax.rl.dynamic_sampling import Drawn, draw_differing
from genai_jax.rl.rewards import Rewarded
from genai_jax.rl.rollouts import Prompt, Rollouts

GROUP = 2


def a_draw(number, *scores, valid=None, faults=()):
    """Answers whose names say the draw and the place."""
    prompts = tuple(Prompt(np.zeros(1, np.int32), f"{number}.{i // GROUP}") for i in range(4))
    answers = tuple(f"{number}.{i}" for i in range(len(scores)))
    known = np.ones(len(scores), bool) if valid is None else np.array(valid) > 0
    return Drawn(Rollouts(prompts, answers, 7), Rewarded(np.array(scores), known, faults))


def taken(draws, wanted=2, most=3):
    found, count = draw_differing(draws.__getitem__, wanted=wanted, group=GROUP, most=most)
    return found, count, found.rollouts.answers


def test_one_draw_is_enough_where_all_differ():
    draws = [a_draw(0, 0.0, 1.0, 1.0, 0.0)]
    found, count, answers = taken(draws)
    assert count == 1 and answers == ("0.0", "0.1", "0.2", "0.3")
    assert found.rewarded.scores.tolist() == [0, 1, 1, 0]


def test_others_take_the_place_of_groups_that_teach_nothing():
    draws = [
        a_draw(0, 1.0, 1.0, 0.0, 1.0, faults=("a",)),
        a_draw(1, 0.0, 0.0, 2.0, 2.0, faults=("b", "a")),
        a_draw(2, 0.0, 3.0, 4.0, 0.0),
    ]
    found, count, answers = taken(draws)
    assert count == 3 and answers == ("0.2", "0.3", "2.0", "2.1")
    assert [prompt.text for prompt in found.rollouts.prompts] == ["0.1", "0.1", "2.0", "2.0"]
    assert found.rewarded.scores.tolist() == [0, 1, 0, 3]
    assert found.rewarded.faults == ("a", "b") and found.rollouts.weights_step == 7


def test_where_draws_end_the_first_others_fill_up():
    draws = [a_draw(0, 1.0, 1.0, 0.0, 0.0), a_draw(1, 0.0, 0.0, 0.0, 2.0)]
    _, count, answers = taken(draws, most=2)
    assert count == 2 and answers == ("0.0", "0.1", "1.2", "1.3")
    _, count, answers = taken(draws, most=1)
    assert count == 1 and answers == ("0.0", "0.1", "0.2", "0.3")


@pytest.mark.parametrize("most", [1, 2])
def test_what_has_no_reward_teaches_nothing(most):
    draws = [a_draw(0, 1.0, 0.0, 0.0, 1.0, valid=[1, 0, 1, 1]), a_draw(1, 0.0, 1.0, 1.0, 1.0)]
    found, _, answers = taken(draws, most=most)
    assert answers[:2] == (("0.0", "0.1") if most == 1 else ("0.2", "0.3"))
    assert found.rewarded.valid.all() == (most == 2)
