"""Policies over seven short strings: gradients are the analytic ones, and training ends where the
mathematics says, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genai_jax.objectives.policy_gradient import PolicyLossConfig
from genai_jax.rl.algorithms import DAPO, GRPO, GSPO, PPO, REINFORCE, RLOO, Algorithm
from genai_jax.rl.targets import AdvantageConfig
from genai_jax.training.passes import Passes
from tests.rl.enumerated import (
    Pair,
    Tabular,
    TabularCritic,
    gradient_of,
    make_population,
    make_training,
    tilted,
    variant,
)
from tests.rl.short_strings import (
    BY_STRING,
    LENGTHS,
    SCORES,
    STRINGS,
    ascent,
    log_softmax,
    of_tokens,
    token_log_probs,
)

BETA = 0.5
RNG = np.random.default_rng(1)
TABLE, REFERENCE_TABLE, VALUES = (
    RNG.normal(size=shape).astype(np.float32) for shape in ((4, 3), (4, 3), (4,))
)
TABLE[1], REFERENCE_TABLE[1] = 0, 0  # after the end there is nothing
UNCLIPPED = {"clip_low": 0.2, "clip_high": 0.2}


LOG_REFERENCE = token_log_probs(REFERENCE_TABLE)
REFERENCE = np.exp(LOG_REFERENCE.sum(-1))
OPTIMUM, VALUE = tilted(REFERENCE, SCORES, BETA)


def surplus(table):
    """r - beta log(pi / pi_ref) of whole strings: its expectation is to be maximised."""
    return SCORES - BETA * (token_log_probs(table) - LOG_REFERENCE).sum(-1)


def population_of(algorithm):
    return make_population(algorithm, STRINGS, LOG_REFERENCE, SCORES)


def gradient(algorithm, model):
    """The ascent that the production loss of all that the model may write asks for."""
    population = population_of(algorithm)
    context = {"beta": jnp.float32(BETA)}
    found, terms = jax.jit(lambda m: gradient_of(algorithm, m, population(m, BETA), context))(model)
    return jax.tree.map(lambda g: -np.asarray(g, np.float64), found), terms


CHANCE = np.exp(token_log_probs(TABLE).sum(-1))
MEAN_LENGTH = float(CHANCE @ LENGTHS)
ABOVE_MEAN = surplus(TABLE) - CHANCE @ surplus(TABLE)
PULL = ascent(TABLE, of_tokens(surplus(TABLE)))
D = token_log_probs(TABLE) - LOG_REFERENCE


TOKEN_MEAN = variant(DAPO, drop_equal_scores=False, overlong_buffer=0)
SEQUENCE_MEAN = variant(GRPO, {"kl_in_loss": "none"})
OF_TWO = {"group_size": 2, "kl_in_reward": True, "baseline": "mean"}


@pytest.mark.parametrize(
    ("algorithm", "wanted"),
    [
        (REINFORCE, PULL),
        (variant(RLOO, group_size=2), PULL),
        (variant(RLOO, {"ratio": "token"}, group_size=2), PULL),
        # A mean over tokens divides by their expected number; a ratio of sequences, like a mean
        # over each, divides by each one's own. The answer's own score is in the mean of two: 1/2.
        (variant(TOKEN_MEAN, **OF_TWO), PULL / MEAN_LENGTH / 2),
        (variant(GSPO, **OF_TWO), ascent(TABLE, of_tokens(ABOVE_MEAN / LENGTHS)) / 2),
        (variant(SEQUENCE_MEAN, **OF_TWO), ascent(TABLE, of_tokens(ABOVE_MEAN / LENGTHS)) / 2),
    ],
    ids=["REINFORCE", "RLOO", "RLOO by ratio", "token mean", "GSPO", "sequence mean"],
)
def test_the_mean_over_all_strings_is_the_analytic_gradient(algorithm, wanted):
    found, terms = gradient(algorithm, Tabular(jnp.asarray(TABLE)))
    np.testing.assert_allclose(found.table, wanted, atol=3e-7)
    divergence = CHANCE @ D.sum(-1)
    assert terms["kl"].sum / terms["kl"].weight == pytest.approx(divergence, abs=1e-6)
    assert terms["kl_k3"].sum / terms["kl_k3"].weight == pytest.approx(divergence, abs=1e-6)
    assert abs(float(terms["first_log_ratio"].sum)) < 1e-6


@pytest.mark.parametrize("gae_lambda", [1.0, 0.95])
def test_the_gradient_of_ppo_is_the_analytic_one(gae_lambda):
    """With lambda 1 whatever the critic says; with less where it knows the values."""
    values = VALUES
    if gae_lambda < 1:
        chance = np.exp(log_softmax(TABLE))
        cost = BETA * (log_softmax(TABLE) - log_softmax(REFERENCE_TABLE))
        values = np.zeros(4)
        for a in (1, 2):
            later = np.array([BY_STRING[a, b] for b in range(3)])
            values[1 + a] = chance[1 + a] @ (later - cost[1 + a])
        values[0] = chance[0] @ (np.array([BY_STRING[0,], *values[2:]]) - cost[0])
    algorithm = variant(PPO, whiten_advantages="none", gae_lambda=gae_lambda)
    model = Pair(Tabular(jnp.asarray(TABLE)), TabularCritic(jnp.asarray(values, jnp.float32), 3))
    found, _ = gradient(algorithm, model)
    np.testing.assert_allclose(found.policy.table, PULL / MEAN_LENGTH, atol=3e-7)


@pytest.mark.parametrize(
    ("estimator", "slope"),
    [
        ("k1", np.ones_like(D)),
        ("k2", D),
        ("k3", 1 - np.exp(-D)),
        ("k3_weighted", D),
    ],
)
def test_the_mean_gradient_of_each_estimator_in_the_loss_is_the_analytic_one(estimator, slope):
    """beta E[slope d log pi]: nothing for k1; of each token's own divergence for k2 and weighted
    k3; of that the other way round for k3."""
    algorithm = Algorithm(
        PolicyLossConfig(ratio="none", aggregation="sequence_sum", kl_in_loss=estimator),
        AdvantageConfig("group", kl_in_reward=False, group_size=1, baseline="none"),
    )
    found, _ = gradient(algorithm, Tabular(jnp.asarray(TABLE)))
    pull = ascent(TABLE, of_tokens(SCORES))
    np.testing.assert_allclose(found.table, pull - BETA * ascent(TABLE, slope), atol=4e-7)
    if estimator == "k1":
        np.testing.assert_allclose(found.table, pull, atol=4e-7)
    if estimator == "k3":  # node by node, reached as often as it is: pi - pi_ref
        p, q = np.exp(log_softmax(TABLE)), np.exp(log_softmax(REFERENCE_TABLE))
        reached = np.array([1, 0, *p[0, 1:]])[:, None]
        np.testing.assert_allclose(pull - found.table, BETA * reached * (p - q), atol=4e-7)


def trained_probabilities(algorithm, model, *, updates=600, rate=2.0, **options):
    training = make_training(
        algorithm,
        model,
        population_of(algorithm),
        optimizer=optax.sgd(rate),
        context={"beta": jnp.float32(BETA)},
        **options,
    )
    return training(updates)


def start():
    return Tabular(jnp.asarray(REFERENCE_TABLE))


def test_ppo_leads_to_the_tilted_reference_and_its_critic_to_the_value():
    """With lambda 0.95 and two clipped updates a step. At the optimum the value of a text is
    beta log sum pi_ref exp(r / beta) over what may follow: of nothing, beta log Z."""
    algorithm = variant(PPO, {"value_coefficient": 0.5}, whiten_advantages="none")
    model = Pair(start(), TabularCritic(jnp.zeros(4), 3))
    trained = trained_probabilities(algorithm, model, passes=Passes(2))
    np.testing.assert_allclose(STRINGS.probabilities(trained.policy), OPTIMUM, atol=5e-4)
    assert float(trained.critic.table[0]) == pytest.approx(VALUE, abs=5e-4)


def test_gspo_leads_to_the_tilted_reference_whatever_the_lengths():
    """E[(R - E R) / |y| d log pi] = 0 for all d only where (R - E R) / |y| is the same for all y,
    and so 0, since its expectation times |y| is."""
    algorithm = variant(GSPO, UNCLIPPED, **OF_TWO)
    trained = trained_probabilities(algorithm, start(), rate=6.0)
    np.testing.assert_allclose(STRINGS.probabilities(trained), OPTIMUM, atol=5e-4)


def test_a_divergence_in_the_loss_does_not_see_later_tokens():
    """Each token balances its own divergence with what it will earn, and not with the divergence
    of what follows: pi(a | s) ~ pi_ref(a | s) exp(Q(s, a) / beta), where Q is the expected score,
    without the log of the partition that pi* would have."""
    algorithm = variant(
        RLOO, {"ratio": "token", "kl_in_loss": "k2"}, group_size=2, kl_in_reward=False
    )
    q = np.exp(log_softmax(REFERENCE_TABLE))
    earned, wanted = np.array([BY_STRING[0,], 0, 0]), {}
    for a in (1, 2):
        later = np.array([BY_STRING[a, b] for b in range(3)])
        second, _ = tilted(q[1 + a], later, BETA)
        earned[a] = second @ later
        wanted |= {(a, b): second[b] for b in range(3)}
    first, _ = tilted(q[0], earned, BETA)
    wanted = {key: first[key[0]] * share for key, share in wanted.items()} | {(0,): first[0]}
    wanted = np.array([wanted[key] for key in BY_STRING])
    assert np.abs(wanted - OPTIMUM).max() > 0.005
    trained = trained_probabilities(algorithm, start())
    np.testing.assert_allclose(STRINGS.probabilities(trained), wanted, atol=5e-4)
