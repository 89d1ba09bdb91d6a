"""What is measured of a policy is what a direct computation gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.task_sets import TaskConfig
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import replicated
from genai_jax.rl import measured as module
from genai_jax.rl.asked import load_prompts
from genai_jax.rl.experience import Experience
from genai_jax.rl.measured import Measured
from genai_jax.rl.policy_config import PolicyConfig, RewardWeights
from genai_jax.rl.rollouts import RolloutConfig
from genai_jax.training.state import TrainState

CHAT = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))
LENGTH, ASKED = 64, 5  # which the two devices do not divide
SHAPE = TransformerConfig(
    vocab_size=CHAT.tokenizer.vocab_size,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    max_length=LENGTH,
    init_std=0.4,
)
MESH = make_mesh(devices=jax.devices()[:2])


def numbers(samples):
    """Of the first answer, none; of others, how many ids differ."""
    found = [float(len(set(sample.answer_ids.tolist()))) for sample in samples]
    return [np.nan, *found[1:]]


@pytest.fixture(scope="module")
def replies():
    config = PolicyConfig(
        ask="replies",
        rewards=RewardWeights(gold=1.0),
        length=LENGTH,
        measured=ASKED,
        rollouts=RolloutConfig(prompts=2, group=1, max_tokens=8, temperature=0.7),
    )
    experience = Experience(
        prompts=load_prompts(config, CHAT).train,
        config=config.rollouts,
        length=LENGTH,
        seed=0,
        tokenizer=CHAT.tokenizer,
        stop_ids=(*CHAT.end_ids, *range(0, 256, 7)),
        reward=numbers,
        rewarding=config.rewarding,
        advantages=config.advantages,
        mesh=MESH,
    )
    held_out = load_prompts(config, CHAT).held_out
    return Measured(config, CHAT, held_out, experience, lambda: None)


@pytest.fixture(scope="module")
def state():
    models = [LanguageModel(SHAPE, jax.random.key(i)) for i in (0, 1)]
    policy, reference = jax.device_put(models, replicated(MESH))
    context = {"beta": jnp.float32(0.1), "reference": reference}
    return TrainState(jnp.int32(3), policy, None, context=context)


def test_measures_are_those_of_the_answers(replies, state):
    found = replies.evaluate(state)
    asked = replies.prompts.take(0, ASKED)
    samples = replies.experience.draw(state, asked, 0, 1, purpose="evaluation").samples(
        CHAT.tokenizer
    )
    assert [s.task for s in samples] == [p.task for p in asked]
    assert found["reward"] == np.mean(numbers(samples)[1:])
    assert found["tokens"] == np.mean([len(s.answer_ids) for s in samples])
    assert found["ended"] == np.mean([s.ended for s in samples])
    assert found["gold"] == np.mean([gold_reward(s.task, s.answer) for s in samples])

    apart = []
    for sample in samples:
        ids = np.concatenate([sample.prompt_ids, sample.answer_ids])
        total = 0.0
        for sign, model in ((1, state.model), (-1, state.context["reference"])):
            logits = np.asarray(model(jnp.asarray(ids[None]))[0], np.float64) / 0.7
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            places = np.arange(len(sample.prompt_ids) - 1, len(ids) - 1)
            total += sign * logits[places, ids[places + 1]].sum()
        apart.append(total)
    assert found["kl"] == pytest.approx(np.mean(apart), rel=1e-4)
    assert found.keys() == {"reward", "tokens", "ended", "gold", "kl"}

    said = []
    shown = replies.sample(state, said.append)[".txt"]
    assert shown == "".join(f"{s.prompt}\n  {s.answer!r}\n" for s in samples)
    assert len(said) == 4 and said[0].startswith(f"  | {samples[0].prompt}")


def test_the_same_answers_are_drawn_at_every_evaluation_of_a_step(replies, state):
    assert replies.evaluate(state) == replies.evaluate(state)


def test_of_tasks_the_likeliest_answers_are_counted_too(replies, state, monkeypatch):
    tasks = TaskConfig(families=("sorting", "lookup"), held_out=3)
    asked = {}

    def measure(model, renderer, some, *, max_tokens, check):
        assert max_tokens == 8
        asked[some[0].difficulty] = some
        return {"all": len(asked) / 4}

    monkeypatch.setattr(module, "measure_tasks", measure)
    config = dataclasses.replace(
        replies.config, ask="tasks", tasks=tasks, rewards=RewardWeights(grade=1.0)
    )
    found = Measured(config, CHAT, replies.prompts, replies.experience, lambda: None)._accuracies(
        state
    )
    assert found == {"easy/all": 0.25, "hard/all": 0.5}
    assert all(len(some) == 6 for some in asked.values())
