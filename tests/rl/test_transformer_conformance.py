"""A transformer over seven short strings ends where the mathematics says, under each algorithm."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import root

from genai_jax.models.heads import ActorCritic, ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.rl.algorithms import DAPO, DR_GRPO, GRPO, GSPO, PPO, RLOO
from tests.rl.enumerated import make_population, make_training, tilted, variant
from tests.rl.short_strings import (
    LENGTHS,
    NODES,
    PLACES,
    SCORES,
    STRINGS,
    ascent,
    token_log_probs,
)

BETA = 0.5
CONFIG = TransformerConfig(
    vocab_size=3, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16, max_length=2, init_std=0.1
)
MODEL = LanguageModel(CONFIG, jax.random.key(0))
LOG_REFERENCE = np.asarray(STRINGS.log_probs(MODEL))
REFERENCE = np.exp(LOG_REFERENCE.astype(np.float64).sum(-1))
OPTIMUM, _ = tilted(REFERENCE, SCORES, BETA)


def trained_probabilities(algorithm, model=MODEL):
    training = make_training(
        algorithm,
        model,
        make_population(algorithm, STRINGS, LOG_REFERENCE, SCORES),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 400)),
        context={"beta": jnp.float32(BETA)},
    )
    trained = training(400)
    return STRINGS.probabilities(getattr(trained, "policy", trained))


def close(found, wanted):
    assert np.abs(wanted - REFERENCE).max() > 0.05
    np.testing.assert_allclose(found, wanted, atol=5e-4)


def test_rloo_leads_to_the_tilted_reference():
    close(trained_probabilities(variant(RLOO, group_size=2)), OPTIMUM)


def test_ppo_leads_to_the_tilted_reference():
    critic = LanguageModel(CONFIG, jax.random.key(1))
    model = ActorCritic(MODEL, ScalarModel(critic, jax.random.key(2), init_std=0.0))
    algorithm = variant(PPO, {"value_coefficient": 0.5}, whiten_advantages="none")
    close(trained_probabilities(algorithm, model), OPTIMUM)


def fixed_point_of_pairs(algorithm):
    """In float64, for groups of two: the strings' probabilities where the expectation of
    sum_t share (A d log pi_t - beta slope(d_t) d log pi_t) is zero, as each option defines share,
    A and slope. A ratio of sequences has the gradient of a mean over the sequence."""
    loss, advantages = algorithm.loss, algorithm.advantages
    assert advantages.group_size == 2
    by_answer = loss.aggregation == "sequence_mean" or loss.ratio == "sequence"
    apart = (SCORES[:, None] - SCORES) / 2  # r - mean of the two
    if advantages.baseline == "std":
        apart = apart / (np.sqrt(2) * np.abs(apart) + advantages.epsilon)
    kept = apart != 0 if advantages.drop_equal_scores else np.ones(apart.shape, bool)

    def field(table):
        chance = np.exp(token_log_probs(table).sum(-1))
        d = token_log_probs(table) - LOG_REFERENCE
        slope = d if loss.kl_in_loss == "k2" else 1 - np.exp(-d)
        gains = (apart * kept @ chance)[:, None] - BETA * (kept @ chance)[:, None] * slope
        return ascent(table, gains / LENGTHS[:, None] if by_answer else gains)

    table = np.zeros((4, 3))
    for y, t in zip(*np.nonzero(PLACES), strict=True):
        table[NODES[y, t], STRINGS.targets[y, t]] = LOG_REFERENCE[y, t]
    for _ in range(500):
        table = table + field(table)
    free = tuple(np.array(list(itertools.product((0, 2, 3), (0, 1)))).T)

    def pinned(logits):
        moved = table.copy()
        moved[free] = logits
        return field(moved)[free]

    found = root(pinned, table[free], tol=1e-13)
    assert np.abs(found.fun).max() < 1e-9
    table[free] = found.x
    return np.exp(token_log_probs(table).sum(-1))


@pytest.mark.parametrize(
    "algorithm",
    [
        variant(GRPO, {"kl_coefficient": BETA}, group_size=2),
        variant(DR_GRPO, {"kl_in_loss": "k2", "constant_length": 1}, group_size=2),
        variant(DAPO, {"kl_in_loss": "k3"}, group_size=2, overlong_buffer=0),
        variant(
            GSPO,
            {"kl_in_loss": "k3", "clip_low": 0.2, "clip_high": 0.2},
            group_size=2,
        ),
    ],
    ids=["GRPO", "Dr. GRPO", "DAPO", "GSPO"],
)
def test_group_variants_lead_to_their_own_fixed_points(algorithm):
    wanted = fixed_point_of_pairs(algorithm)
    assert np.abs(wanted - OPTIMUM).max() > 0.02
    close(trained_probabilities(algorithm), wanted)
