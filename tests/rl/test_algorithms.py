"""The presets are what their papers say, and each names the optimum that it targets."""

import pytest

from genai_jax.rl.algorithms import (
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    PPO,
    REINFORCE,
    RLOO,
    optimum_of,
)
from tests.rl.enumerated import variant

ALL = (PPO, REINFORCE, RLOO, GRPO, DR_GRPO, DAPO, GSPO)


def test_presets_have_their_papers_numbers():
    assert [a.needs_critic for a in ALL] == [True] + [False] * 6
    assert (PPO.loss.clip_low, PPO.loss.clip_high, PPO.advantages.gae_lambda) == (0.2, 0.2, 0.95)
    assert (PPO.loss.value_coefficient, PPO.loss.value_clip) == (0.1, 0.2)
    assert (DAPO.loss.clip_low, DAPO.loss.clip_high) == (0.2, 0.28)
    assert (GRPO.advantages.ddof, GRPO.advantages.epsilon) == (1, 1e-4)
    aggregations = [a.loss.aggregation for a in ALL]
    assert aggregations == [
        "token_mean",
        "sequence_sum",
        "sequence_sum",
        "sequence_mean",
        "constant",
        "token_mean",
        "sequence_mean",
    ]
    assert [a.loss.ratio for a in ALL] == [
        "token",
        "none",
        "none",
        "token",
        "token",
        "token",
        "sequence",
    ]
    baselines = [a.advantages.baseline for a in ALL[1:]]
    assert baselines == ["none", "leave_one_out", "std", "mean", "std", "std"]
    assert [a.advantages.kl_in_reward for a in ALL] == [True] * 3 + [False] * 4


TILTED = "pi* ~ pi_ref exp(r / beta), the maximum of E r - beta KL"
BEST = "the answer of the highest score"
OWN = "a fixed point of its own, not pi_ref exp(r / beta)"


@pytest.mark.parametrize(
    ("algorithm", "beta", "words"),
    [
        *((algorithm, None, [TILTED]) for algorithm in (PPO, REINFORCE, RLOO)),
        (PPO, 0.0, [BEST]),
        (variant(PPO, gamma=0.9), None, [TILTED, "The discount moves it"]),
        (variant(PPO, whiten_rewards="biased"), None, [TILTED, "Whitened rewards move it"]),
        (variant(RLOO, {"entropy_coefficient": 0.1}), 0.1, [TILTED, "entropy moves it"]),
        (variant(GSPO, kl_in_reward=True), None, [TILTED]),
        (GRPO, None, [OWN, "k3, 0.04", "at every beta"]),
        (variant(GRPO, {"kl_in_loss": "k2"}), None, [OWN, "above a critical beta"]),
        (variant(GRPO, {"kl_coefficient": 0.0}), None, [BEST]),
        *((algorithm, None, [BEST]) for algorithm in (DR_GRPO, DAPO, GSPO)),
        (variant(DR_GRPO, {"kl_in_loss": "k1"}), 0.1, [BEST, "k1 as a loss has no expected"]),
        (
            variant(DR_GRPO, {"kl_in_loss": "k2"}),
            0.1,
            ["pi* ~ pi_ref exp(r / b) with b = 0.1 8 / 7", "token by token"],
        ),
        (
            variant(RLOO, {"kl_in_loss": "k3_weighted"}, kl_in_reward=False),
            None,
            ["pi* ~ pi_ref exp(r / b) with b = beta,"],
        ),
        (
            variant(RLOO, {"kl_in_loss": "k3"}, kl_in_reward=False),
            None,
            ["pi = b pi_ref / (lambda - r) with b = beta,"],
        ),
        (
            variant(PPO, {"kl_in_loss": "k2"}, kl_in_reward=False, whiten_advantages="none"),
            None,
            ["pi* ~ pi_ref exp(r / b) with b = beta,"],
        ),
        (variant(PPO, {"kl_in_loss": "k2"}, kl_in_reward=False), None, [OWN]),
        (variant(PPO, {"kl_in_loss": "k2"}), None, ["between two pulls"]),
    ],
)
def test_a_choice_says_its_optimum(algorithm, beta, words):
    sentence = optimum_of(algorithm, beta)
    assert all(word in sentence for word in words), sentence
    assert sum(other in sentence for other in (TILTED, BEST, OWN)) <= 1
