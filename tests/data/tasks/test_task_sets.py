"""Sets of tasks and of preferences: how many, which, and never on both sides."""

from collections import Counter

import pytest

from genai_jax.data.tasks.gold_sets import GoldConfig, gold_sides
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import FAMILIES
from genai_jax.data.tasks.task_sets import MixedTasks, TaskConfig, held_out_tasks, task_examples


def asked(example):
    return example.messages[0]["content"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 1 / 3, 0.5, 1.0])
def test_hard_tasks_are_spread_evenly_and_none_is_passed_over(share):
    mixed = MixedTasks(TaskConfig(hard_share=share), "train", seed=0)
    some = [mixed[i] for i in range(60)]
    hard = [task.difficulty == "hard" for task in some]
    for i in range(60):
        assert abs(sum(hard[:i]) - share * i) <= 1
    for kind in ("easy", "hard"):
        of_kind = [task for task in some if task.difficulty == kind]
        alone = MixedTasks(TaskConfig(hard_share=float(kind == "hard")), "train", seed=0)
        assert of_kind == [alone[i] for i in range(len(of_kind))]


def test_examples_are_as_many_as_were_asked_for_and_of_one_side():
    config = TaskConfig(examples=60, replies=10, held_out=5)
    train, held_out = task_examples(config, seed=0)
    assert (len(train), len(held_out)) == (70, 5 * len(FAMILIES))
    assert not {asked(x) for x in train} & {asked(x) for x in held_out}
    assert train != task_examples(config, seed=1)[0] and train == task_examples(config, seed=0)[0]
    mixed = MixedTasks(config, "train", 0)
    for i, example in enumerate(train[:60]):
        assert [m["content"] for m in example.messages] == [mixed[i].prompt, mixed[i].answer]


def test_families_can_be_chosen():
    config = TaskConfig(families=("lookup", "sorting"), held_out=4)
    measured = held_out_tasks(config)
    for some in measured.values():
        assert Counter(task.family for task in some) == {"lookup": 4, "sorting": 4}
    assert [family.name for family in config.chosen] == ["sorting", "lookup"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"families": ("chess",)}, "must be among arithmetic, .*; got 'chess'"),
        ({"hard_share": 1.5}, "must be from 0 to 1; got 1.5"),
        ({"examples": 0}, "`examples` must be at least 1"),
        ({"replies": -1}, "`replies` must be at least 0"),
        ({"held_out": 0}, "`held_out` must be at least 1"),
    ],
)
def test_what_there_is_not_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TaskConfig(**options)


def test_without_practice_families_come_equally_often():
    families = ("arithmetic", "sorting", "json")
    for practice, wanted in ((False, (30, 30, 30)), (True, (60, 20, 10))):
        config = TaskConfig(families=families, hard_share=0.0, practice=practice)
        mixed = MixedTasks(config, "train", 0)
        found = Counter(mixed[i].family for i in range(90))
        assert tuple(found[name] for name in families) == wanted


def test_preferences_are_as_many_as_were_asked_for_and_no_prompt_is_on_both_sides():
    config = GoldConfig(preferences=40, held_out=20, answers=3)
    learnt, held_out = gold_sides(config, 0)
    assert (len(learnt), len(held_out)) == (40, 20)
    sides = [{x.prompt[0]["content"] for x in side} for side in (learnt, held_out)]
    assert not sides[0] & sides[1]
    assert {len(x.answers) for x in learnt} == {3}
    assert learnt[7] == config.learnt_by(0)[7] and held_out[7] == config.held_out_by(0)[7]
    assert gold_sides(config, 1)[0] != learnt
    assert all(x.prompt[0]["content"] for x in learnt) and REPLIES.name == "replies"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preferences": 0}, "`preferences` must be at least 1"),
        ({"held_out": 0}, "`held_out` must be at least 1"),
        ({"answers": 1}, "`answers` must be from 2 to 8"),
        ({"sharpness": 0.0}, "`sharpness` must be above 0"),
    ],
)
def test_preferences_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GoldConfig(**options)
