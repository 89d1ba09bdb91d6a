"""Rewards of tokens: where the score goes, what the divergence takes, and the penalties."""

import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.rl.token_rewards import (
    clip_scores,
    counted_answers,
    overlong_penalty,
    score_missing_end,
    token_rewards,
)

MASK = jnp.asarray([[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], jnp.float32)


def test_the_score_comes_with_the_last_counted_token_and_keeps_its_fraction():
    scores = jnp.asarray([0.75, -0.25, 0.5, 7.0])
    unknown = jnp.where(MASK > 0, 0.5, jnp.nan)
    found = token_rewards(scores, unknown, MASK, 0.2)
    wanted = [[0, -0.1, 0.65, 0], [-0.1, -0.1, -0.1, -0.35], [0, -0.1, 0, 0.4], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    assert found.dtype == jnp.float32


def test_the_sum_is_the_score_less_the_divergence_of_the_answer():
    rng = np.random.default_rng(0)
    scores, ratio = rng.normal(size=4), rng.normal(size=(4, 4))
    found = token_rewards(*(jnp.asarray(x, jnp.float32) for x in (scores, ratio)), MASK, 0.3)
    wanted = np.where(MASK.any(-1), scores, 0) - 0.3 * (ratio * MASK).sum(-1)
    np.testing.assert_allclose(found.sum(-1), wanted, atol=1e-6)
    plain = token_rewards(jnp.asarray(scores, jnp.float32), jnp.zeros((4, 4)), MASK, 0.0)
    np.testing.assert_allclose(plain.sum(-1)[:3], scores[:3], atol=1e-6)


def test_no_number_and_no_token_are_excluded():
    scores = jnp.asarray([jnp.nan, jnp.inf, 1.0, 1.0])
    assert counted_answers(scores, MASK).tolist() == [False, False, True, False]


def test_scores_within_bounds():
    scores = jnp.asarray([-12.0, 0.5, 30.0])
    assert clip_scores(scores, 10.0).tolist() == [-10, 0.5, 10]
    assert clip_scores(scores, 0.0).tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("rule", "wanted"), [("none", [2, 3]), ("replace", [2, -1.5]), ("subtract", [2, 1.5])]
)
def test_a_missing_end_is_punished(rule, wanted):
    ended = jnp.asarray([True, False])
    found = score_missing_end(jnp.asarray([2.0, 3.0]), ended, rule=rule, penalty=1.5)
    assert found.tolist() == wanted


def test_the_penalty_for_length_grows_over_the_buffer():
    """Of at most 20 tokens with a buffer of 4: from 16 on, a quarter a token."""
    lengths = jnp.asarray([1, 16, 17, 19, 20, 25])
    found = overlong_penalty(lengths, longest=20, buffer=4, most=2.0)
    assert found.tolist() == [0, 0, 0.5, 1.5, 2, 2]
    assert overlong_penalty(lengths, longest=20, buffer=0).tolist() == [0] * 6
