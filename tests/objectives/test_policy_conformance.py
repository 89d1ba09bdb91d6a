"""Each algorithm ends in the policy that mathematics says it must: four answers of one token.

Everything is exact: the rows are all groups of the actual size, with their probabilities under the
policy of that moment, and the production objective and step do the rest. Whitening is off.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq, root

from genai_jax.objectives.policy_gradient import PolicyLossConfig
from genai_jax.rl.advantages import group_advantages
from genai_jax.rl.algorithms import DAPO, DR_GRPO, GRPO, GSPO, PPO, REINFORCE, RLOO, Algorithm
from genai_jax.rl.targets import AdvantageConfig
from genai_jax.training.passes import Passes
from tests.rl.enumerated import (
    BETA,
    REFERENCE,
    SCORES,
    Pair,
    Tabular,
    TabularCritic,
    gradient_of,
    letters,
    make_population,
    make_training,
    optimum_reached,
    tilted,
    variant,
)

THREE_DECIMALS = 5e-4
OPTIMUM, VALUE = tilted(REFERENCE, SCORES, BETA)
LOG_REFERENCE = np.log(REFERENCE)[:, None]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=THREE_DECIMALS)


def test_the_worked_example_is_that_of_the_definition():
    """pi* maximises E r - beta KL, whose maximum is beta log Z."""
    assert np.sum(OPTIMUM * (SCORES - BETA * np.log(OPTIMUM / REFERENCE))) == pytest.approx(VALUE)
    np.testing.assert_allclose(OPTIMUM, [0.0970, 0.1582, 0.2151, 0.5297], atol=5e-5)


# With the divergence in the reward: pi*, by whichever baseline, ratio and aggregation.


@pytest.mark.parametrize(
    "algorithm",
    [
        REINFORCE,
        variant(RLOO, group_size=3),
        variant(DR_GRPO, group_size=3, kl_in_reward=True, loss={"constant_length": 2}),
        variant(
            GSPO,
            group_size=2,
            kl_in_reward=True,
            baseline="mean",
            loss={"clip_low": 0.2, "clip_high": 0.2},
        ),
    ],
    ids=["REINFORCE", "RLOO of 3", "Dr. GRPO of 3", "GSPO of 2"],
)
def test_the_divergence_in_the_reward_leads_to_the_tilted_reference(algorithm):
    close(optimum_reached(algorithm), OPTIMUM)


def test_ppo_leads_to_the_tilted_reference_and_its_critic_to_the_value_of_it():
    """Three clipped updates a step: at the optimum the ratio is 1, and no bound binds."""
    algorithm = variant(PPO, whiten_advantages="none")
    outcomes = letters(4)
    population = make_population(algorithm, outcomes, LOG_REFERENCE, SCORES)
    model = Pair(Tabular(jnp.asarray(LOG_REFERENCE.T, jnp.float32)), TabularCritic(jnp.zeros((1,))))
    training = make_training(
        algorithm,
        model,
        population,
        optimizer=optax.sgd(2.0),
        passes=Passes(3),
        context={"beta": jnp.float32(BETA)},
    )
    trained = training(300)
    close(outcomes.probabilities(trained.policy), OPTIMUM)
    assert float(trained.critic.table[0]) == pytest.approx(VALUE, abs=THREE_DECIMALS)


def test_the_width_of_a_group_leaves_the_tilted_reference_where_it_is():
    """With the divergence in the reward all answers have the same one there, beta log Z: whatever
    divides it, the gradient is zero, at pi* alone."""
    algorithm = variant(GRPO, group_size=3, kl_in_reward=True, loss={"kl_in_loss": "none"})
    population = make_population(algorithm, letters(4), LOG_REFERENCE, SCORES)
    gradient = jax.jit(
        lambda model: gradient_of(algorithm, model, population(model, BETA))[0].table
    )

    def norm(policy):
        return np.linalg.norm(gradient(Tabular(jnp.log(jnp.asarray(policy, jnp.float32))[None])))

    assert norm(OPTIMUM) < 2e-3
    for share in (0.1, 0.5, 1.0):
        assert norm((1 - share) * OPTIMUM + share * REFERENCE) > 0.05


# With the divergence in the loss.


@pytest.mark.parametrize("estimator", ["k2", "k3_weighted"])
def test_k2_and_weighted_k3_in_the_loss_lead_to_the_tilted_reference(estimator):
    algorithm = variant(
        RLOO, group_size=2, kl_in_reward=False, loss={"kl_in_loss": estimator, "ratio": "token"}
    )
    close(optimum_reached(algorithm), OPTIMUM)


def test_k3_in_the_loss_leads_elsewhere():
    """It is the gradient of KL(pi_ref || pi): r_k - lambda + beta pi_ref_k / pi_k = 0, and so
    pi = beta pi_ref / (lambda - r)."""
    algorithm = variant(RLOO, group_size=2, kl_in_reward=False, loss={"kl_in_loss": "k3"})

    def policy(multiplier):
        return BETA * REFERENCE / (multiplier - SCORES)

    multiplier = brentq(lambda x: policy(x).sum() - 1, SCORES.max() + 1e-9, 100, xtol=1e-14)
    assert np.abs(policy(multiplier) - OPTIMUM).max() > 0.1
    close(optimum_reached(algorithm, rate=2.0), policy(multiplier))


def test_k1_in_the_loss_has_no_effect():
    """Without it the policy goes to the best answer; with it, the same way."""
    held = variant(RLOO, group_size=2, kl_in_reward=False, loss={"kl_in_loss": "k1"})
    free = variant(RLOO, group_size=2, kl_in_reward=False)
    found = [optimum_reached(algorithm, updates=60) for algorithm in (held, free)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert found[0][3] > 0.98


@pytest.mark.parametrize("size", [2, 4])
def test_dr_grpo_tilts_by_a_smaller_coefficient(size):
    """The answer's own score is in the mean: E[A | y] = (G - 1) / G (r - E r). The divergence in
    the loss has no such factor, so that beta counts as G / (G - 1) times itself."""
    algorithm = variant(DR_GRPO, group_size=size, loss={"kl_in_loss": "k2", "constant_length": 1})
    wanted, _ = tilted(REFERENCE, SCORES, BETA * size / (size - 1))
    close(optimum_reached(algorithm, rate=6.0), wanted)


# Scores divided by the width of their group: fixed points of their own.


def fixed_point(reference, size, scores, beta, divergence, *, eps=1e-4, drop=False):
    """In float64, over all ordered groups: where the expected gradient by the logits of
    1/G sum_i A_i log pi(y_i), minus beta times that of the estimator, is zero. The ascent from the
    reference finds which root, and Newton's method its digits."""
    groups = np.array(list(itertools.product(range(len(reference)), repeat=size)))
    r = scores[groups]
    if drop:
        groups, r = (x[r.max(-1) > r.min(-1)] for x in (groups, r))
    advantages = (r - r.mean(-1, keepdims=True)) / (r.std(-1, ddof=1, keepdims=True) + eps)

    def field(logits):
        policy = np.exp(logits - np.logaddexp.reduce(logits))
        d = np.log(policy / reference)
        slope = d if divergence == "k2" else 1 - np.exp(-d)
        chance = policy[groups].prod(-1, keepdims=True)
        pull = chance / size * (advantages - beta * slope[groups])
        by_answer = np.bincount(groups.ravel(), weights=pull.ravel(), minlength=len(policy))
        return (by_answer - policy * pull.sum()) / chance.sum()

    logits = np.log(reference)
    for _ in range(300):
        logits = logits + field(logits)
    first = logits[0]
    found = root(lambda rest: field(np.append(first, rest))[1:], logits[1:], tol=1e-13)
    assert np.abs(found.fun).max() < 1e-10
    policy = np.exp(np.append(first, found.x))
    return policy / policy.sum()


@pytest.mark.parametrize("size", [2, 4])
def test_grpo_leads_to_its_own_fixed_point(size):
    algorithm = variant(GRPO, group_size=size, loss={"kl_coefficient": None})
    wanted = fixed_point(REFERENCE, size=size, scores=SCORES, beta=BETA, divergence="k3")
    assert np.abs(wanted - OPTIMUM).max() > 0.05
    close(optimum_reached(algorithm, rate=1.0), wanted)


def test_dapo_with_a_divergence_leads_to_its_own_fixed_point():
    """Groups of equal scores are left out, of the divergence too: the expectation is that over the
    groups that are kept."""
    algorithm = variant(
        DAPO, group_size=3, overlong_buffer=0, loss={"kl_in_loss": "k2", "kl_coefficient": 1.5}
    )
    options = {"size": 3, "scores": SCORES, "beta": 1.5, "divergence": "k2"}
    wanted = fixed_point(REFERENCE, drop=True, **options)
    assert np.abs(wanted - fixed_point(REFERENCE, **options)).max() > 0.01
    close(optimum_reached(algorithm, rate=2.0), wanted)


@pytest.mark.parametrize("preset", [DAPO, GSPO, DR_GRPO], ids=["DAPO", "GSPO", "Dr. GRPO"])
def test_without_a_divergence_the_best_answer_takes_all_by_and_by(preset):
    """The gradient of the best answer's logit is E[A_best] pi (1 - pi) > 0 wherever the policy is
    inside: no fixed point but the corner."""
    algorithm = variant(preset, group_size=2, **({"overlong_buffer": 0} if preset is DAPO else {}))
    rate = 400.0 if preset is DR_GRPO else 1.0  # its loss is divided by 256 tokens
    found = optimum_reached(algorithm, rate=rate, updates=(4, 16, 64))
    found = [policy[3] for policy in found]
    assert REFERENCE[3] < found[0] < found[1] < found[2]
    assert found[2] > 0.95


# Scores of 0 and 1.

HALF = np.array([0.5, 0.5])
BINARY = np.array([0.0, 1.0])


@pytest.mark.parametrize("size", [2, 8])
def test_grpo_on_right_and_wrong_leads_to_its_own_share(size):
    """Of j right answers in G the right ones have (1 - j/G) / (s + eps), s^2 = j (G - j) / (G (G -
    1)); the gradient of the logit is E_j[j (G - j) / G^2 / (s + eps)] = beta (p - p_ref)."""
    beta, p_ref = 0.8, 0.3
    j = np.arange(1, size)
    ways = np.array([len(list(itertools.combinations(range(size), k))) for k in j])
    width = np.sqrt(j * (size - j) / (size * (size - 1))) + 1e-4

    def slope(p):
        chance = ways * p**j * (1 - p) ** (size - j)
        return np.sum(chance * j * (size - j) / size**2 / width) - beta * (p - p_ref)

    wanted = brentq(slope, p_ref, 1 - 1e-9, xtol=1e-14)
    algorithm = variant(GRPO, group_size=size, loss={"kl_coefficient": beta})
    reference = np.array([1 - p_ref, p_ref])
    found = optimum_reached(algorithm, scores=BINARY, reference=reference, rate=1.0)
    close(found[1], wanted)


@functools.cache
def infinite_groups(divergence):
    """Make `(beta, updates) -> share of right answers`, from a half, in training on one group of
    all answers, each with its probability."""
    algorithm = Algorithm(
        PolicyLossConfig(kl_in_loss=divergence),
        AdvantageConfig("group", kl_in_reward=False, group_size=2),
    )
    outcomes = letters(2)
    log_reference = jnp.full((2, 1), -np.log(2), jnp.float32)

    def population(model, beta):
        old = outcomes.log_probs(model)
        weight = jnp.exp(old[:, 0])
        scores = jnp.asarray(BINARY, jnp.float32)[None]
        advantages = group_advantages(scores, weight[None], baseline="std", ddof=0, eps=0.0)
        return {
            "tokens": jnp.asarray(outcomes.tokens),
            "targets": jnp.asarray(outcomes.targets),
            "loss_mask": jnp.ones((2, 1)),
            "advantages": advantages.T,
            "old_log_probs": old,
            "ref_log_probs": log_reference,
            "weight": weight,
        }

    training = make_training(
        algorithm,
        Tabular(log_reference.T),
        population,
        optimizer=optax.sgd(1.0),
        context={"beta": jnp.float32(1)},
    )
    return lambda beta, updates: [
        outcomes.probabilities(model)[1] for model in training(updates, {"beta": jnp.float32(beta)})
    ]


def test_infinite_groups_have_the_published_fixed_points():
    """k2: 1 / sqrt(p (1 - p)) = beta (logit p - logit p_ref), of whose two roots the lower one is
    reached; k3: sqrt(p (1 - p)) = beta (p - p_ref)."""

    def inside(p):
        return 1 / np.sqrt(p * (1 - p)) - 3.0 * (np.log(p) - np.log1p(-p))

    close(*infinite_groups("k2")(3.0, [400]), brentq(inside, 0.5, 0.8, xtol=1e-14))
    wanted = brentq(lambda p: np.sqrt(p * (1 - p)) - 0.7 * (p - 0.5), 0.5, 1 - 1e-9, xtol=1e-14)
    close(*infinite_groups("k3")(0.7, [400]), wanted)


def test_below_a_critical_coefficient_infinite_groups_collapse():
    """At p_ref = 1/2 with l = logit p the two sides are 2 cosh(l / 2) and beta l: a line through
    zero meets it where its slope is at least that of the tangent, sinh(l / 2) at
    l / 2 = coth(l / 2)."""
    half = brentq(lambda x: x * np.tanh(x) - 1, 0.5, 2)
    critical = np.sinh(half)
    assert critical == pytest.approx(1.5089, abs=1e-4)
    found = infinite_groups("k2")(0.8 * critical, [5, 20, 80])
    assert 0.5 < found[0] < found[1] < found[2]
    assert found[2] > 0.999
    stays = 1 / (
        1
        + np.exp(
            -brentq(lambda x: 2 * np.cosh(x / 2) - 1.2 * critical * x, 0.1, 2 * half, xtol=1e-14)
        )
    )
    close(*infinite_groups("k2")(1.2 * critical, [400]), stays)
