"""Rewards from rankings: optima of free rewards, and what absent answers and ties must not do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.objectives.reward_model import (
    RewardLossConfig,
    answer_rewards,
    make_reward_model_objective,
)
from tests.objectives.tabular import (
    Rewards,
    answer_rows,
    bradley_terry,
    logit,
    optimise,
    pair_rows,
    two_answers,
)

RATES = np.array([0.15, 0.35, 0.5, 0.6, 0.8])
UTILITIES = np.array([[0.0, 0.5, 1.0, 2.0], [0.7, 0.0, -0.6, 0.3]])
MARGIN = 0.7


def converged(batch, shape, *, loss="bradley_terry", centring=0.0):
    start = Rewards(jnp.asarray(np.random.default_rng(0).normal(2, 1, shape), jnp.float32))
    objective = make_reward_model_objective(RewardLossConfig(loss, centring))
    models, metrics = optimise(objective, start, batch, stages=10)
    return np.asarray(models[-1].table, np.float64), metrics


def unsigned_root(p, margin):
    q, c = 1 - p, np.exp(-margin)
    return np.log(((p - q) + np.sqrt((p - q) ** 2 + 4 * p * q * c**2)) / (2 * q * c))


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
@pytest.mark.parametrize(
    ("signed", "centring", "wanted"),
    [
        (True, 0.0, logit(RATES) + MARGIN),
        (False, 0.0, unsigned_root(RATES, MARGIN)),
        (True, 0.5, logit(RATES) + MARGIN),
    ],
)
def test_a_gap_is_the_logit_of_the_rate_and_the_margin(loss, signed, centring, wanted):
    """A margin that flips with the label is added; one that does not widens what there is."""
    batch = pair_rows(two_answers(RATES), margin=MARGIN, signed=signed)
    rewards, metrics = converged(batch, (5, 2), loss=loss, centring=centring)
    np.testing.assert_allclose(rewards[:, 0] - rewards[:, 1], wanted, atol=1e-3)
    if centring:  # moves the sum, and no gap
        np.testing.assert_allclose(rewards.sum(1), 0, atol=1e-3)
        assert metrics["centring"] == pytest.approx(0, abs=1e-4)
    else:
        assert np.abs(rewards.sum(1)).min() > 1


def all_rankings(answers):
    """Every ranking of some answers of each prompt, with its probability under Plackett-Luce."""
    orders = np.array(list(itertools.permutations(answers)))
    prompts, rankings, weight = [], [], []
    for prompt, utilities in enumerate(UTILITIES):
        strengths = np.exp(utilities[orders])
        left = np.cumsum(strengths[:, ::-1], axis=1)[:, ::-1]
        prompts += [prompt] * len(orders)
        rankings += orders.tolist()
        weight += (strengths / left).prod(1).tolist()
    return np.array(prompts), np.array(rankings), np.array(weight)


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_rankings_give_back_the_utilities_that_made_them(loss):
    prompts, rankings, weight = all_rankings(range(4))
    assert weight.sum() == pytest.approx(2)
    batch = answer_rows(prompts, rankings, weight)
    rewards, metrics = converged(batch, (2, 4), loss=loss, centring=0.1)
    centred = UTILITIES - UTILITIES.mean(1, keepdims=True)
    np.testing.assert_allclose(rewards, centred, atol=1e-3)
    # The reward model is calibrated: it is as sure as it is right, and right as often as it can be.
    p = bradley_terry(UTILITIES)[:, ~np.eye(4, dtype=bool)]
    assert metrics["accuracy"] == pytest.approx(np.maximum(p, 1 - p).mean(), abs=1e-3)
    assert metrics["confidence"] == pytest.approx(metrics["accuracy"], abs=1e-3)
    assert metrics["brier"] == pytest.approx((p * (1 - p)).mean(), abs=1e-3)
    assert metrics["reward"] == pytest.approx(0, abs=1e-3)
    assert metrics["reward_square"] == pytest.approx(np.square(centred).mean(), abs=1e-3)
    if loss == "plackett_luce":
        entropy = -(weight * np.log(weight)).sum() / 2
        assert metrics["loss"] == pytest.approx(entropy, abs=1e-4)


def test_rankings_of_three_out_of_four_with_a_gap_anywhere_give_back_the_utilities():
    parts = [all_rankings(some) for some in itertools.combinations(range(4), 3)]
    prompts, rankings, weight = (np.concatenate(x) for x in zip(*parts, strict=True))
    places = np.random.default_rng(0).integers(0, 4, len(rankings))
    holed = np.array([np.insert(r, i, -1) for r, i in zip(rankings, places, strict=True)])
    batch = answer_rows(prompts, holed, weight)
    rewards, _ = converged(batch, (2, 4), loss="plackett_luce")
    differences = rewards - rewards[:, :1]
    np.testing.assert_allclose(differences, UTILITIES - UTILITIES[:, :1], atol=1e-3)


def test_centring_pulls_pairs_out_of_several_answers_together_by_its_weight():
    """What the module's docstring owns up to: not all pairs of four answers can sum to zero."""
    batch = pair_rows(bradley_terry(UTILITIES))
    gaps = []
    for centring in (0.0, 0.01, 0.1):
        rewards, _ = converged(batch, (2, 4), centring=centring)
        gaps.append(rewards.max(1) - rewards.min(1))
    wanted = UTILITIES.max(1) - UTILITIES.min(1)
    np.testing.assert_allclose(gaps[0], wanted, atol=1e-3)
    assert np.all(gaps[1] < 0.98 * wanted) and np.all(gaps[1] > 0.9 * wanted)
    assert np.all(gaps[2] < gaps[1])


def reference_loss(loss, rewards, margin):
    """The formulas of the docstring for one ranking, term by term in float64."""
    n, total = len(rewards), 0.0
    if loss == "bradley_terry":
        for i, j in itertools.combinations(range(n), 2):
            total += np.log1p(np.exp(-(rewards[i] - rewards[j] - margin))) / (n * (n - 1) / 2)
    else:
        for i in range(n - 1):
            winner = np.exp(rewards[i] - margin)
            total -= np.log(winner / (winner + np.exp(rewards[i + 1 :]).sum()))
    return total


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_rows_with_fewer_answers_lose_nothing(loss):
    """Values beside the definition; absent answers, wherever they are, and rows of one or none."""
    rng = np.random.default_rng(0)
    model = Rewards(jnp.asarray(rng.normal(size=(5, 5)), jnp.float32))
    answers = [[3, 0, 2, 1], [-1, 4, -1, 2], [1, 2, -1, 3], [-1, -1, 2, -1], [-1] * 4]
    margin = np.array([0.3, -0.5, 0.2, 9.0, 9.0])
    weight = np.array([1.0, 2.0, 0.5, 3.0, 3.0])
    batch = jax.tree.map(jnp.asarray, answer_rows([1, 1, 4, 2, 0], answers, weight, margin=margin))
    objective = make_reward_model_objective(RewardLossConfig(loss, centring=0.01))

    @jax.jit
    @jax.grad
    def gradient_of(model):
        return objective(model, batch)["loss"].sum

    terms = jax.jit(objective)(model, batch)
    table = np.asarray(model.table, np.float64)
    wanted, square = 0.0, 0.0
    for row, prompt in enumerate((1, 1, 4)):
        rewards = table[prompt, [a for a in answers[row] if a >= 0]]
        wanted += weight[row] * reference_loss(loss, rewards, margin[row])
        square += weight[row] * (2 * rewards.mean()) ** 2
    assert float(terms["loss"].sum) == pytest.approx(wanted, rel=1e-5)
    assert float(terms["centring"].sum) == pytest.approx(square, rel=1e-5)
    assert {float(term.weight) for term in terms.values()} == {3.5}
    gradient = gradient_of(model)
    assert np.all(np.isfinite(gradient.table))
    assert not np.any(np.asarray(gradient.table)[[0, 2]])


def test_a_tie_is_half_right():
    model = Rewards(jnp.asarray([[1.0, 1.0, 0.0]]))
    batch = jax.tree.map(jnp.asarray, answer_rows([0, 0, 0], [[0, 1], [0, 2], [2, 0]], np.ones(3)))
    terms = jax.jit(make_reward_model_objective())(model, batch)
    assert float(terms["accuracy"].sum) == 1.5
    assert float(terms["accuracy"].weight) == 3
    np.testing.assert_array_equal(answer_rewards(model, batch), [[1, 1], [1, 0], [0, 1]])


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match=r"`centring` must not be negative; got -1"):
        RewardLossConfig(centring=-1.0)
    batch = jax.tree.map(jnp.asarray, answer_rows([0], [[0]], np.ones(1)))
    with pytest.raises(ValueError, match="at least two answers a row; got 1"):
        make_reward_model_objective()(Rewards(jnp.zeros((1, 2))), batch)
