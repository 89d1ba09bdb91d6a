"""From scores to targets: each option acts where it says, and no excluded answer acts at all."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.rl.advantages import generalized_advantages, whiten
from genai_jax.rl.targets import AdvantageConfig, final_scores, rollout_targets

RNG = np.random.default_rng(0)
ROWS, T = 8, 6
STARTS, ENDS = RNG.integers(0, 3, (ROWS, 1)), RNG.integers(3, T + 1, (ROWS, 1))
MASK = jnp.asarray((np.arange(T) >= STARTS) & (np.arange(T) < ENDS), jnp.float32)
RATIO, VALUES = (jnp.asarray(RNG.normal(size=(ROWS, T)), jnp.float32) for _ in range(2))
SCORES = jnp.asarray([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5])
BETA = 0.2
GAE = AdvantageConfig()
GROUP = AdvantageConfig("group", group_size=4)


def targets(config, scores=SCORES, mask=MASK, ratio=RATIO, values=VALUES, **options):
    function = jax.jit(functools.partial(rollout_targets, config), static_argnames=())
    return function(scores, mask, ratio, BETA, values=values, **options)


def test_a_critic_gets_returns_that_are_not_whitened():
    rewards = jnp.where(MASK > 0, -BETA * RATIO, 0.0)
    last = (ENDS - 1)[:, 0]
    rewards = rewards.at[jnp.arange(ROWS), last].add(SCORES)
    advantages, returns = generalized_advantages(rewards, VALUES, MASK)
    plain, found = targets(GAE), targets(dataclasses.replace(GAE, whiten_advantages="bessel"))
    np.testing.assert_allclose(plain.advantages, advantages, atol=1e-6)
    np.testing.assert_allclose(found.returns, returns, atol=1e-6)
    np.testing.assert_allclose(found.advantages, whiten(advantages, MASK, bessel=True), atol=1e-5)
    counted = np.asarray(found.advantages)[np.asarray(MASK) > 0]
    assert counted.mean() == pytest.approx(0, abs=1e-6)
    assert counted.std(ddof=1) == pytest.approx(1, abs=1e-5)


def test_whitened_rewards_keep_their_mean():
    config = dataclasses.replace(GAE, whiten_rewards="biased", gae_lambda=1.0)
    rewards = np.where(MASK > 0, -BETA * np.asarray(RATIO), 0)
    rewards[np.arange(ROWS), (ENDS - 1)[:, 0]] += np.asarray(SCORES)
    counted = rewards[np.asarray(MASK) > 0]
    found = targets(config).returns[np.arange(ROWS), STARTS[:, 0]]  # sums, with gamma = lambda = 1
    whitened = (counted - counted.mean()) / counted.std() + counted.mean()
    assert float(found.sum()) == pytest.approx(whitened.sum(), abs=1e-4)
    assert float(found.sum()) == pytest.approx(counted.sum(), abs=1e-4)
    assert (
        np.abs(
            found
            - targets(dataclasses.replace(GAE, gae_lambda=1.0)).returns[
                np.arange(ROWS), STARTS[:, 0]
            ]
        ).max()
        > 0.1
    )


@pytest.mark.parametrize("in_reward", [True, False])
def test_a_group_compares_scores_less_the_divergence_of_whole_answers(in_reward):
    config = dataclasses.replace(GROUP, kl_in_reward=in_reward)
    found = targets(config)
    whole = np.asarray(SCORES) - BETA * in_reward * np.asarray((RATIO * MASK).sum(-1))
    wanted = (whole.reshape(2, 4) - whole.reshape(2, 4).mean(-1, keepdims=True)).reshape(-1, 1)
    np.testing.assert_allclose(found.advantages, wanted * MASK, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        GROUP,
        dataclasses.replace(GROUP, baseline="std", whiten_advantages="biased"),
        dataclasses.replace(
            GAE,
            group_size=1,
            whiten_advantages="bessel",
            whiten_rewards="bessel",
            missing_end="replace",
        ),
    ],
    ids=["mean", "std", "gae"],
)
@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_an_excluded_answer_changes_no_other(config, unknown):
    """As if it had never been drawn: of a group, one of three is left."""
    excluded = np.array([1, 6])
    scores = SCORES.at[excluded].set(unknown)
    ratio = RATIO.at[excluded].set(jnp.nan)
    ended = jnp.arange(ROWS) != 6
    found = targets(config, scores, ratio=ratio, ended=ended)
    assert found.counted.tolist() == [i not in excluded for i in range(ROWS)]
    assert not np.asarray(found.loss_mask)[excluded].any()
    assert not np.asarray(found.advantages)[excluded].any()
    assert np.asarray(found.scores)[excluded].tolist() == [0, 0]
    kept = np.setdiff1d(np.arange(ROWS), excluded)
    smaller = dataclasses.replace(config, group_size=3 if config.group_size == 4 else 1)
    wanted = targets(smaller, SCORES[kept], MASK[kept], RATIO[kept], VALUES[kept])
    for name in ("loss_mask", "advantages", "returns"):
        np.testing.assert_allclose(
            getattr(found, name)[kept], getattr(wanted, name), atol=2e-6, err_msg=name
        )


def test_an_answer_without_a_token_is_excluded():
    found = targets(GROUP, mask=MASK.at[0].set(0.0))
    assert found.counted.tolist() == [False] + [True] * 7


def test_groups_of_equal_scores_are_left_out():
    config = dataclasses.replace(GROUP, baseline="std", drop_equal_scores=True)
    found = targets(config)
    np.testing.assert_array_equal(found.loss_mask, MASK.at[4:].set(0.0))
    assert found.counted.all()  # left out of the loss, not of the report
    alike = targets(config, SCORES.at[:4].set(jnp.asarray([1.0, 1, jnp.nan, 1])))
    assert not alike.loss_mask.any()


def test_scores_are_bounded_then_punished():
    config = AdvantageConfig(
        reward_clip=2.0,
        missing_end="subtract",
        missing_end_penalty=0.5,
        overlong_buffer=2,
        overlong_penalty=3.0,
        longest_answer=4,
    )
    mask = jnp.asarray(np.arange(5) < [[1], [3], [4], [3]], jnp.float32)
    ended = jnp.asarray([True, True, True, False])
    found = final_scores(config, jnp.asarray([9.0, 1.0, 1.0, -9.0]), ended, mask)
    assert found.tolist() == [2, -0.5, -2, -4]
    replaced = dataclasses.replace(config, missing_end="replace")
    found = final_scores(replaced, jnp.asarray([9.0, 1.0, 1.0, -9.0]), ended, mask)
    assert found.tolist() == [2, -0.5, -2, -2]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="divisible by `group_size`; got 8 and 3"):
        targets(dataclasses.replace(GROUP, group_size=3))
    with pytest.raises(ValueError, match="needs a critic's `values`"):
        targets(GAE, values=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "`gamma` must be in"),
        ({"gae_lambda": -0.1}, "`gae_lambda` must be in"),
        ({"reward_clip": -1.0}, "`reward_clip` must be at least 0"),
        ({"group_size": 0}, "`group_size` must be at least 1"),
        ({"ddof": 2}, "`ddof` 0 or 1"),
        ({"overlong_buffer": 4}, "`overlong_buffer` must be at most `longest_answer`"),
        ({"estimator": "group"}, "a group needs two answers"),
        ({"drop_equal_scores": True}, "a group needs two answers"),
        (
            {"estimator": "group", "group_size": 2, "whiten_rewards": "biased"},
            "`whiten_rewards` is for rewards of tokens",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdvantageConfig(**options)
