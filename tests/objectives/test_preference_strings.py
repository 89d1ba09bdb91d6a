"""The optima of preference losses, reached by a small transformer over all its short strings.

Strings have at most two of four letters; what ends one is id 0, which also stands for the prompt
and for padding. A string of two letters needs no end, so that the probabilities of all strings sum
to one, whatever the parameters, and no mass can leave the set.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.data.rows import NumberedRows
from genai_jax.data.scored_rows import score_rows_once
from genai_jax.models.heads import ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.preference import PreferenceConfig, make_preference
from genai_jax.objectives.reference import make_reference_scorer
from genai_jax.objectives.reward_model import (
    RewardLossConfig,
    answer_rewards,
    make_reward_model_objective,
)
from genai_jax.objectives.token_log_probs import sum_log_probs
from genai_jax.parallel.mesh import make_mesh
from tests.objectives.tabular import bisect, bradley_terry, optimise, tilted

V, T = 5, 3
CONFIG = TransformerConfig(
    vocab_size=V,
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    mlp_dim=32,
    max_length=T,
    positions="learned",
    init_std=0.3,
)
STRINGS = [
    (0,),
    *((a, 0) for a in range(1, V)),
    *itertools.product(range(1, V), range(1, V)),
]
COUNT = len(STRINGS)
LENGTHS = np.array([len(s) for s in STRINGS])
REWARDS = np.random.default_rng(0).normal(size=COUNT)
RATES = bradley_terry(REWARDS[None])[0]
BETA = 0.8


class StringRows(NumberedRows):
    """Every ordered pair of strings, the first preferred, and how often that happens."""

    pairs = np.array(list(itertools.permutations(range(COUNT), 2)))

    def __len__(self):
        return len(self.pairs)

    def _row(self, i):
        return {**answers(self.pairs[i]), "weight": np.float32(RATES[*self.pairs[i]])}


def answers(numbers):
    tokens, targets = np.zeros((len(numbers), T), np.int32), np.zeros((len(numbers), T), np.int32)
    mask = np.zeros((len(numbers), T), np.float32)
    for row, number in enumerate(numbers):
        string = STRINGS[number]
        tokens[row, 1 : 1 + len(string)] = string[: T - 1]
        targets[row, : len(string)] = string
        mask[row, : len(string)] = 1
    lengths = np.int32([len(STRINGS[number]) + 1 for number in numbers])
    return {"tokens": tokens, "targets": targets, "loss_mask": mask, "lengths": lengths}


def stacked(rows):
    some = [rows[i] for i in range(len(rows))]
    return {name: jnp.asarray(np.stack([row[name] for row in some])) for name in some[0]}


def probabilities(model):
    every = jax.tree.map(lambda x: jnp.asarray(x[None]), answers(range(COUNT)))
    return np.exp(np.asarray(jax.jit(sum_log_probs)(model, every), np.float64))[0]


@pytest.fixture(scope="module")
def reference():
    return LanguageModel(CONFIG, jax.random.key(1))


@pytest.fixture(scope="module")
def population(reference):
    """All pairs, with the reference's log-probabilities as they are cached before training."""
    scorer = make_reference_scorer(reference, make_mesh(devices=jax.devices()[:2]))
    scores = score_rows_once(StringRows(), scorer, batch_size=128)
    return {**stacked(StringRows()), "ref_log_probs": jnp.asarray(scores)}


def simpo_policy():
    """log pi = |y| (r / beta + kappa), with the kappa that makes it a distribution."""

    def log_p(kappa):
        return LENGTHS * (REWARDS / BETA + kappa)

    return np.exp(log_p(bisect(lambda kappa: np.exp(log_p(kappa)).sum() - 1, -20.0, 20.0)))


def test_all_strings_are_a_distribution(reference):
    p = probabilities(reference)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 * np.median(p)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_a_transformer_reaches_the_policy_of_theory(loss, reference, population):
    config = PreferenceConfig(loss, beta=BETA)
    model = LanguageModel(CONFIG, jax.random.key(2))
    models, _ = optimise(
        make_preference(config), model, population, updates=200, learning_rate=0.02
    )
    if loss == "simpo":
        wanted = simpo_policy()
    else:
        tilt = REWARDS if loss == "dpo" else (RATES - 0.5).mean(-1)
        wanted = tilted(probabilities(reference), tilt, BETA)
    policy = probabilities(models[-1])
    np.testing.assert_allclose(policy, wanted, atol=1e-3)


def test_a_reward_model_of_strings_reaches_their_rewards(reference, population):
    model = ScalarModel(reference, jax.random.key(2))
    objective = make_reward_model_objective(RewardLossConfig())
    models, _ = optimise(objective, model, population, updates=300, learning_rate=0.01)
    every = jax.tree.map(lambda x: jnp.asarray(x[None]), answers(range(COUNT)))
    rewards = np.asarray(jax.jit(answer_rewards)(models[-1], every), np.float64)[0]
    np.testing.assert_allclose(rewards - rewards.mean(), REWARDS - REWARDS.mean(), atol=1e-3)
