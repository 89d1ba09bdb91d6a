"""Experience: known answers for the targets, and everything that must be noticed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.models.heads import ActorCritic, ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import add_lora, merge_lora
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.policy_gradient import make_policy_gradient
from genai_jax.objectives.row_metrics import WithRowMetrics
from genai_jax.parallel.mesh import make_mesh
from genai_jax.paths import map_named
from genai_jax.rl.algorithms import PPO
from genai_jax.rl.experience import Experience, make_on_policy_check, with_targets
from genai_jax.rl.kl_control import Moments
from genai_jax.rl.rewards import RewardPolicy
from genai_jax.rl.rollouts import Prompt, RolloutConfig, make_scorer
from genai_jax.rl.targets import AdvantageConfig
from genai_jax.training.json_lines import JsonLines, read_json_lines
from genai_jax.training.loop import BatchError, StepError
from genai_jax.training.state import TrainState

BETA = 0.3


def hand_made(rng):
    """Four answers of 2, 3, 1 and 4 tokens; the second was cut, the third has no reward."""
    mask = np.zeros((4, 7))
    for row, (start, count) in enumerate([(1, 2), (2, 3), (0, 1), (2, 4)]):
        mask[row, start : start + count] = 1
    return {
        "tokens": np.zeros((4, 7), np.int32),
        "targets": np.zeros((4, 7), np.int32),
        "loss_mask": mask,
        "old_log_probs": rng.normal(size=(4, 7)),
        "ref_log_probs": rng.normal(size=(4, 7)),
        "old_values": rng.normal(size=(4, 7)),
        "score": np.array([1.0, 2.0, 0.0, -0.5]),
        "valid": np.array([1.0, 1.0, 0.0, 1.0]),
        "ended": np.array([1.0, 0.0, 1.0, 1.0]),
        "weights_step": np.full(4, 3, np.int32),
    }


def in_float32(rows):
    return {
        n: jnp.asarray(x, jnp.float32 if x.dtype == float else x.dtype) for n, x in rows.items()
    }


@pytest.mark.parametrize("normalised", [False, True])
def test_targets_of_a_batch_are_those_of_their_definitions(normalised):
    rows = hand_made(np.random.default_rng(0))
    context = {"beta": jnp.float32(BETA)}
    scores = rows["score"].copy()
    if normalised:  # mean 0.5, variance 4
        context["reward_moments"] = Moments(*map(jnp.float32, (10.0, 0.5, 40.0)))
        scores = (scores - 0.5) / 2
    config = AdvantageConfig(
        gamma=0.9, gae_lambda=0.8, missing_end="replace", missing_end_penalty=1.5
    )
    found = with_targets(config, in_float32(rows), context)

    scores[1], valid = -1.5, rows["valid"] > 0  # it was cut
    mask = rows["loss_mask"] * valid[:, None]
    apart = (rows["old_log_probs"] - rows["ref_log_probs"]) * rows["loss_mask"]
    for row in range(4):
        places = np.flatnonzero(mask[row])
        rewards = -BETA * apart[row, places]
        if len(places):
            rewards[-1] += scores[row]
        values = np.append(rows["old_values"][row, places], 0.0)
        deltas = rewards + 0.9 * values[1:] - values[:-1]
        wanted = np.zeros((2, 7))
        for t, place in enumerate(places):
            powers = (0.9 * 0.8) ** np.arange(len(places) - t)
            wanted[0, place] = (powers * deltas[t:]).sum()
            wanted[1, place] = wanted[0, place] + values[t]
        np.testing.assert_allclose(found["advantages"][row], wanted[0], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(
            np.asarray(found["returns"][row])[places], wanted[1][places], rtol=2e-5, atol=2e-6
        )
    np.testing.assert_array_equal(found["loss_mask"], mask)
    assert np.isnan(found["scores"][2])
    np.testing.assert_allclose(found["scores"][np.array([0, 1, 3])], rows["score"][[0, 1, 3]])
    np.testing.assert_allclose(
        found["metrics/rollout_final_score"], np.where(valid, scores, 0), rtol=1e-6
    )
    np.testing.assert_allclose(found["metrics/rollout_kl"], apart.sum(1), rtol=1e-5)
    assert found["counts/rollout_kl"].tolist() == valid.astype(float).tolist()
    assert found["metrics/rollout_excluded"].tolist() == [0, 0, 1, 0]
    assert found["metrics/rollout_tokens"].tolist() == [2, 3, 1, 4]
    assert found["metrics/rollout_ended"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("estimator", ["gae", "group"])
def test_a_batch_of_which_nothing_counts_has_no_number_that_is_none(estimator):
    rows = hand_made(np.random.default_rng(1)) | {"valid": np.zeros(4)}
    config = AdvantageConfig(estimator, group_size=2, whiten_advantages="bessel", baseline="std")
    context = {"beta": jnp.float32(BETA), "reward_moments": Moments(*[jnp.zeros(())] * 3)}
    found = with_targets(config, in_float32(rows), context)
    assert np.isnan(found.pop("scores")).all()
    assert not found["loss_mask"].any() and not found["advantages"].any()
    assert all(np.isfinite(x).all() for x in found.values())


TOKENIZER = ByteTokenizer()
SHAPE = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    max_length=24,
    init_std=0.4,
)
ROLLOUTS = RolloutConfig(prompts=4, group=1, max_tokens=6, temperature=0.7)


class Counting:
    """Prompts of one byte, which is their number."""

    def take(self, first, count):
        return [
            Prompt(np.array([i % 256], np.int32), f"{i}", i) for i in range(first, first + count)
        ]


def lengths(samples):
    return [float(len(sample.answer_ids)) for sample in samples]


def experience(**changed):
    options = {
        "prompts": Counting(),
        "config": ROLLOUTS,
        "length": 24,
        "seed": 0,
        "tokenizer": TOKENIZER,
        "stop_ids": (TOKENIZER.eot_id, *range(0, 256, 5)),
        "reward": lengths,
        "rewarding": RewardPolicy(),
        "advantages": PPO.advantages,
        "mesh": make_mesh(devices=jax.devices()[:2]),
    }
    return Experience(**options | changed)


@pytest.fixture(scope="module")
def state():
    policy = LanguageModel(SHAPE, jax.random.key(0))
    critic = ScalarModel(LanguageModel(SHAPE, jax.random.key(1)), jax.random.key(2), init_std=0.0)
    context = {
        "beta": jnp.float32(BETA),
        "reference": LanguageModel(SHAPE, jax.random.key(3)),
    }
    return TrainState(jnp.int32(5), ActorCritic(policy, critic), None, context=context)


@pytest.fixture(scope="module")
def batch(state):
    said = []
    rows = experience(say=said.append).batch(5, lambda: state)
    assert not said
    return jax.device_get(rows)


def test_what_is_learnt_is_what_was_drawn_and_scored(state, batch):
    assert batch["weights_step"].tolist() == [5] * 4
    assert batch["tokens"][:, 0].tolist() == [20, 21, 22, 23]  # the prompts of step 5
    counted = batch["loss_mask"] > 0
    assert batch["scores"].tolist() == counted.sum(1).tolist()
    assert batch["metrics/rollout_reward"].tolist() == counted.sum(1).tolist()
    assert not batch["old_values"].any()  # a critic whose head is zero
    # Returns: the score at the end, less the divergence of what follows each token.
    apart = np.where(counted, batch["old_log_probs"] - batch["ref_log_probs"], 0.0)
    rewards = -BETA * apart
    for row, score in enumerate(batch["scores"]):
        rewards[row, np.flatnonzero(counted[row])[-1]] += score
    discounted = np.zeros(counted.shape)
    running = np.zeros(4)
    for t in reversed(range(counted.shape[1])):
        running = np.where(counted[:, t], rewards[:, t] + 0.95 * running, running)
        discounted[:, t] = np.where(counted[:, t], running, 0.0)
    np.testing.assert_allclose(batch["returns"], discounted, rtol=1e-4, atol=1e-5)
    assert batch["advantages"][counted].mean() == pytest.approx(0, abs=1e-5)
    assert batch["advantages"][counted].std(ddof=1) == pytest.approx(1, rel=1e-4)


def test_a_batch_is_a_function_of_state_seed_and_step(state, batch):
    again = jax.device_get(experience().batch(5, lambda: state))
    for name, x in batch.items():
        np.testing.assert_array_equal(x, again[name])


def test_groups_of_equal_scores_are_drawn_anew(state, tmp_path):
    """Of prompts by number only every third has answers of different worth."""

    def some(samples):
        return [i if x.task % 3 == 0 else 1.0 for i, x in enumerate(samples)]

    grouped = AdvantageConfig("group", group_size=2, drop_equal_scores=True, kl_in_reward=False)
    config = dataclasses.replace(ROLLOUTS, prompts=2, group=2, draws=3)
    timing = JsonLines(tmp_path / "timing.jsonl")
    made = experience(reward=some, advantages=grouped, config=config, timing=timing)
    rows = jax.device_get(made.batch(1, lambda: state))
    # Draws of the prompts 6 and 7, 8 and 9.
    assert rows["tokens"][:, 0].tolist() == [6, 6, 9, 9]
    assert rows["loss_mask"].any(1).all()
    (record,) = read_json_lines(timing.path)
    assert record["draws"] == 2
    again = jax.device_get(made.batch(1, lambda: state))
    for name, x in rows.items():
        np.testing.assert_array_equal(x, again[name])


def test_a_step_begins_with_who_wrote_its_rows_or_is_refused(state, batch):
    check = make_on_policy_check(1e-3)

    def metrics(temperature=0.7, step=5, model=state.model):
        objective = WithRowMetrics(
            make_policy_gradient(dataclasses.replace(PPO.loss, temperature=temperature))
        )
        rows = {n: jnp.asarray(x) for n, x in batch.items()} | {"step": jnp.full(4, step)}
        terms = jax.jit(objective)(model, rows, state.context)
        return {name: float(term.sum / term.weight) for name, term in terms.items()}

    found = metrics()
    check(found)
    assert found["rollout_reward"] == pytest.approx(batch["scores"].mean())
    assert found["rollout_ended"] == batch["metrics/rollout_ended"].mean()
    with pytest.raises(StepError, match=r"100.0% of them carry the number of another step"):
        check(metrics(step=6))
    with pytest.raises(StepError, match="the probabilities of who wrote its rows; they differ by"):
        check(metrics(temperature=1.0))
    other = ActorCritic(jax.tree.map(lambda x: x * 1.05, state.model.policy), state.model.critic)
    with pytest.raises(StepError, match=r"more than 0.001"):
        check(metrics(model=other))


def test_faults_are_told_once(state):
    said = []

    def picky(samples):
        raise KeyError("broken")

    made = experience(reward=picky, say=said.append)
    for _ in range(2):
        rows = made.batch(5, lambda: state)
        assert not rows["loss_mask"].any() and np.isfinite(rows["advantages"]).all()
    assert len(said) == 1 and "KeyError: 'broken'" in said[0]


def test_a_prompt_without_room_is_no_traceback(state):
    class Long:
        def take(self, first, count):
            return [Prompt(np.zeros(20, np.int32), "long")] * count

    with pytest.raises(
        BatchError, match=r"a row must hold a prompt and its answer.*got 20 and up to 6"
    ):
        experience(prompts=Long()).batch(5, lambda: state)


def test_a_policy_with_adapters_is_its_own_reference(state, batch):
    policy = add_lora(state.model.policy, LoraConfig(rank=2), jax.random.key(4))
    moved = map_named(lambda name, x: x + 0.1 if name.endswith("lora/b") else x, policy)
    adapted = TrainState(jnp.int32(5), moved, None, context={"beta": jnp.float32(0)})
    grouped = AdvantageConfig("group", baseline="none", kl_in_reward=False)
    rows = jax.device_get(experience(adapted=True, advantages=grouped).batch(5, lambda: adapted))
    mesh = make_mesh(devices=jax.devices()[:1])
    wanted = make_scorer(mesh, ROLLOUTS.temperature)(
        merge_lora(moved), state.model.policy, None, {n: rows[n] for n in ("tokens", "targets")}
    )
    for name in ("old_log_probs", "ref_log_probs"):
        np.testing.assert_allclose(rows[name], wanted[name], rtol=1e-4, atol=1e-4)
    counted = rows["loss_mask"] > 0
    assert np.abs((rows["old_log_probs"] - rows["ref_log_probs"])[counted]).max() > 0.01
