"""What is asked and what answers earn: pure functions of numbers, and of what the options say."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from experiments import lm_grpo, lm_ppo
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.prompt_sides import validation_side
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import tasks
from genai_jax.data.tasks.task import DIFFICULTIES
from genai_jax.data.tasks.task_sets import TaskConfig
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.rl.algorithms import DR_GRPO, GRPO
from genai_jax.rl.asked import grade_answer, load_prompts, make_reward
from genai_jax.rl.kl_control import KLControl
from genai_jax.rl.policy_config import PolicyConfig, RewardWeights
from genai_jax.rl.prompts import ConversationPrompts
from genai_jax.rl.rewards import Sample
from genai_jax.rl.rollouts import RolloutConfig
from genai_jax.training.passes import Passes

CHAT = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))


def sample(answer, task, ended=True, tokens=None):
    ids = np.zeros(len(answer) + 1 if tokens is None else tokens, np.int32)
    return Sample("?", answer, np.ones(2, np.int32), ids, ended, task)


def texts(prompts, first, count):
    return [prompt.text for prompt in prompts.take(first, count)]


@pytest.mark.parametrize("ask", ["tasks", "replies"])
def test_prompts_are_functions_of_their_numbers_and_held_out_ones_of_nothing_else(ask):
    rewards = RewardWeights(grade=1.0) if ask == "tasks" else RewardWeights(gold=1.0)
    configs = [PolicyConfig(ask=ask, rewards=rewards, seed=seed) for seed in (0, 1)]
    one, other = (load_prompts(config, CHAT) for config in configs)
    whole = texts(one.train, 0, 12)
    assert texts(one.train, 4, 3) == whole[4:7] and len(set(whole)) > 6
    assert whole != texts(other.train, 0, 12)
    held_out = texts(one.held_out, 0, 12)
    assert held_out == texts(other.held_out, 0, 12)
    assert not set(texts(one.train, 0, 100)) & set(texts(one.held_out, 0, 100))
    asked = one.train.take(3, 1)[0]
    assert asked.text == asked.task.prompt
    said = [{"role": "user", "content": asked.text}]
    assert asked.ids.tolist() == CHAT.prompts([said])[0].tolist()


def test_as_many_tasks_are_hard_as_was_asked_for():
    config = PolicyConfig(tasks=TaskConfig(hard_share=0.25))
    kinds = [prompt.task.difficulty for prompt in load_prompts(config, CHAT).train.take(0, 80)]
    assert Counter(kinds) == {"hard": 20, "easy": 60}
    assert all(kinds[i : i + 4].count("hard") == 1 for i in range(0, 80, 4))


def test_conversations_come_once_an_epoch_in_another_order():
    conversations = [({"role": "user", "content": f"{i}"},) for i in range(7)]
    prompts = ConversationPrompts(CHAT, conversations, seed=0, tasks=list(range(7)))
    epochs = [texts(prompts, 7 * i, 7) for i in range(3)]
    assert all(sorted(epoch) == [str(i) for i in range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert texts(prompts, 3, 9) == [*epochs[0], *epochs[1]][3:12]
    assert all(str(prompt.task) == prompt.text for prompt in prompts.take(0, 20))
    with pytest.raises(ValueError, match="there must be a prompt"):
        ConversationPrompts(CHAT, [], seed=0)


@pytest.fixture
def own(tmp_path):
    def make(records, **options):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return load_prompts(PolicyConfig(ask="data", data=str(path), **options), CHAT)

    return make


def test_prompts_of_one_s_own_are_split_by_what_they_ask(own):
    records = [{"prompt": f"{i % 30}", "answer": f"={i % 30}"} for i in range(90)]
    asked = own(records)
    train = [set(texts(asked.train, i, 1)).pop() for i in range(90)]
    held_out = {texts(asked.held_out, i, 1)[0] for i in range(90)}
    assert set(train) | held_out == {str(i) for i in range(30)} and not set(train) & held_out
    assert all(p.task == f"={p.text}" for p in asked.train.take(0, 30))
    assert own(records[:60]).digest != asked.digest == own(records).digest
    assert own([*records[:-1], records[-1] | {"answer": "other"}]).digest != asked.digest


def test_what_is_held_out_is_held_out_of_demonstrations_with_the_same_opening_too(own):
    def turns(i):
        roles = ("user", "assistant", "user")
        return [{"role": r, "content": f"{r} {i}"} for r in roles]

    asked = own([{"prompt": turns(i)} for i in range(60)], rewards=RewardWeights(per_token=1.0))
    # As `chat_data` and `preference_data` split what begins so.
    held_out = validation_side([turns(i)[:1] for i in range(60)], 0.1)
    wanted = {f"user {i}" for i in np.flatnonzero(held_out)}
    assert 0 < len(wanted) < 30
    assert set(texts(asked.held_out, 0, len(wanted))) == wanted


def test_turns_before_the_first_answer_are_asked(own):
    system = {"role": "system", "content": "Be."}
    turns = [system, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked = own([{"messages": turns}, {"prompt": "other"}], rewards=RewardWeights(per_token=1.0))
    prompts = {p.text: p for p in (*asked.train.take(0, 1), *asked.held_out.take(0, 1))}
    assert prompts["a"].ids.tolist() == CHAT.prompts([turns[:2]])[0].tolist()
    assert prompts["a"].task is None


def test_what_leaves_no_room_is_refused_before_the_run(own):
    records = [{"prompt": "a" * n, "answer": "b"} for n in (3, 85, 87)]
    # Two ids stand around what is said, one before it, and one before the answer.
    options = {"length": 100, "rollouts": RolloutConfig(max_tokens=11)}
    head = len(CHAT.prompts([[{"role": "user", "content": ""}]])[0])
    assert own(records[:2], **options | {"length": 85 + head + 11})
    with pytest.raises(ValueError, match=f"1 of 3 have more than .* the longest {87 + head}"):
        own(records, **options | {"length": 85 + head + 11})


def test_answers_are_graded_by_their_task_or_by_being_right():
    (task,) = [p.task for p in load_prompts(PolicyConfig(), CHAT).train.take(0, 1)]
    assert grade_answer(task, task.answer) == 1
    assert grade_answer(task, "neither") < 1
    assert [grade_answer("b c", text) for text in ("b c", " b c\n", "b", "")] == [1, 1, 0, 0]
    reward = make_reward(PolicyConfig(), None, CHAT)
    assert reward([sample(task.answer, task), sample(task.answer, task, ended=False)]) == [1, 0]


def test_an_answer_earns_the_sum_of_what_was_asked_for():
    weights = RewardWeights(grade=2.0, per_token=0.25)
    reward = make_reward(PolicyConfig(rewards=weights), None, CHAT)
    assert list(reward([sample("b", "b"), sample("cc", "b")])) == [2 - 0.5, -0.75]
    config = PolicyConfig(ask="replies", rewards=RewardWeights(gold=3.0))
    (prompt,) = load_prompts(config, CHAT).train.take(0, 1)
    found = make_reward(config, None, CHAT)([sample("Hey.", prompt.task)])
    assert list(found) == [3 * gold_reward(prompt.task, "Hey.")]


def test_options_that_must_agree_are_made_to():
    rollouts = RolloutConfig(prompts=3, group=5, max_tokens=7, temperature=0.5)
    config = PolicyConfig(rollouts=rollouts)
    assert (config.batch_size, config.advantages.group_size) == (15, 5)
    # As many devices are made of a CPU as divide the rows of an update.
    three = dataclasses.replace(config, passes=Passes(2, 3))
    assert (config.rows_at_once, three.rows_at_once) == (15, 5)
    assert dataclasses.replace(three, microbatches=5).rows_at_once == 1
    assert config.advantages.longest_answer == 7 and config.loss.temperature == 0.5
    constant = dataclasses.replace(config.loss, aggregation="constant", constant_length=99)
    assert PolicyConfig(rollouts=rollouts, loss=constant).loss.constant_length == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewards": RewardWeights(gold=1.0)}, "the judge's own reward is for replies"),
        ({"data": "x.jsonl"}, "need both --ask data and --data; got tasks"),
        (
            {"loss": GRPO.loss, "advantages": GRPO.advantages, "kl": KLControl(0.5)},
            "nothing reads `kl.beta` here; got 0.5. Give --advantages.kl-in-reward",
        ),
        (
            {"advantages": DR_GRPO.advantages, "kl": KLControl(0.5, adaptive=True)},
            "nothing reads `kl.beta` here; got 0.5, adaptive",
        ),
        ({"measured": 0}, "`measured` must be at least 1"),
        ({"length": 32, "rollouts": RolloutConfig(max_tokens=32)}, "a row must hold a prompt"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PolicyConfig(**options)


def test_an_answer_must_earn_something():
    with pytest.raises(ValueError, match="an answer must earn something"):
        RewardWeights()
    with pytest.raises(ValueError, match="must be finite"):
        RewardWeights(grade=float("nan"))


PRESETS = [config for script in (lm_ppo, lm_grpo) for _, config in script.PRESETS.values()]
ROOM = {(c.ask, c.length, c.rollouts.max_tokens): c for c in PRESETS if c.ask != "data"}


@pytest.mark.parametrize("config", ROOM.values(), ids=map(str, ROOM))
def test_embedded_prompts_leave_room_in_every_preset(config):
    families = (REPLIES,) if config.ask == "replies" else config.tasks.chosen
    kinds = ("easy",) if config.ask == "replies" else DIFFICULTIES
    said = [
        [{"role": "user", "content": tasks((family,), kind, side, seed)[i].prompt}]
        for family, kind in itertools.product(families, kinds)
        for side, seed, i in itertools.product(("train", "held out"), (0, 1), range(50))
    ]
    longest = max(map(len, CHAT.prompts(said)))
    assert longest + config.rollouts.max_tokens <= config.length


def test_more_draws_are_for_groups_that_are_left_out():
    with pytest.raises(ValueError, match=r"must be left out then; got `rollouts.draws` 2"):
        PolicyConfig(rollouts=RolloutConfig(draws=2))
    with pytest.raises(ValueError, match=r"`draws` must be at least 1; got 0"):
        RolloutConfig(draws=0)
