"""Preferences of a known judge: orders have the chances they should, and ceilings are exact."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from genai_jax.data.tasks.gold_preferences import (
    SHARPNESS,
    GoldPreferences,
    Judgement,
    answer_baseline,
    ceiling,
    expected_accuracy,
    gold_preferences,
    length_baseline,
    plackett_luce_order,
    reply_examples,
)
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import side_of

COUNT = 300


@pytest.fixture(scope="module")
def train():
    return [gold_preferences(0, "train").judgement(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def held_out():
    return [gold_preferences(0, "held out").judgement(i) for i in range(COUNT)]


def chances(judgements):
    gaps = np.array([judgement.rewards for judgement in judgements])
    return 1 / (1 + np.exp(-SHARPNESS * (gaps[:, 0] - gaps[:, 1])))


def test_preferences_are_a_function_of_seed_side_and_number(train, held_out):
    again = gold_preferences(0, "train")
    assert [again[i] for i in (5, 0, 5)] == [train[i].preference for i in (5, 0, 5)]
    assert gold_preferences(1, "train")[5] != again[5]
    preference = again[0]
    assert [message["role"] for message in preference.prompt] == ["user"]
    assert preference.prompt[0]["content"] == train[0].task.prompt
    assert {side_of("replies", each.task.content) for each in train} == {"train"}
    assert {side_of("replies", each.task.content) for each in held_out} == {"held out"}


def test_answers_differ_and_carry_their_rewards(train):
    for each in train[:100]:
        assert len(set(each.answers)) == 2
        assert each.rewards == tuple(gold_reward(each.task, answer) for answer in each.answers)


def test_labels_have_the_frequencies_of_bradley_terry(train, held_out):
    """Chi-square of how often the higher reward wins, in ten bins of its chance."""
    p = chances(train + held_out)
    p = p[p != 0.5]
    chance, won = np.maximum(p, 1 - p), p > 0.5
    order = np.argsort(chance)
    statistic = 0.0
    for bin_ in np.array_split(order, 10):
        expected, variance = chance[bin_].sum(), (chance[bin_] * (1 - chance[bin_])).sum()
        statistic += (won[bin_].sum() - expected) ** 2 / variance
    assert statistic < 23.2  # 99 % of chi-square with 10 degrees of freedom


def test_orders_have_the_frequencies_of_plackett_luce():
    """Chi-square over all 24 orders of four."""
    utilities, count = np.array([1.0, 0.3, -0.2, -1.5]), 40_000
    uniform = np.random.default_rng(0).random((count, 4))
    orders = plackett_luce_order(np.broadcast_to(utilities, (count, 4)), uniform)
    seen = Counter(map(tuple, orders.tolist()))
    statistic = 0.0
    for order in itertools.permutations(range(4)):
        weights = np.exp(utilities[list(order)])
        expected = count * np.prod([weights[i] / weights[i:].sum() for i in range(4)])
        statistic += (seen[order] - expected) ** 2 / expected
    assert statistic < 41.6  # 99 % of chi-square with 23 degrees of freedom


def test_rankings_put_better_answers_first():
    rankings = [GoldPreferences(2, "train", answers=4).judgement(i) for i in range(40)]
    assert all(len(set(each.answers)) == 4 for each in rankings)
    rewards = np.array([each.rewards for each in rankings])
    assert np.all(np.diff(rewards.mean(0)) < 0)


def test_the_ceiling_is_what_the_gold_reward_achieves_on_labels(held_out):
    p = chances(held_out)
    most = np.maximum(p, 1 - p)
    assert 0.80 <= most.mean() <= 0.88
    found = ceiling(0, 60)
    assert found.mean == pytest.approx(most[:60].mean(), abs=1e-12)
    assert found.error == pytest.approx(most[:60].std(ddof=1) / math.sqrt(60), abs=1e-12)
    # Labels are drawn: the gold reward's own accuracy on them, a tie half right.
    gaps = np.array([each.rewards[0] - each.rewards[1] for each in held_out])
    accuracy = np.mean((1 + np.sign(gaps)) / 2)
    assert abs(accuracy - most.mean()) < 3 * math.sqrt((most * (1 - most)).sum()) / COUNT


def test_expected_accuracy_of_known_scores():
    task = REPLIES.make(0, 0, "easy")
    pair = Judgement(task, ("a", "b"), (1.0, 0.0))
    p = 1 / (1 + math.exp(-2))
    for scores, wanted in (((3.0, 1.0), p), ((0.0, 1.0), 1 - p), ((1.0, 1.0), 0.5)):
        assert expected_accuracy([pair], np.array([scores]), 2.0).mean == pytest.approx(wanted)
    two = expected_accuracy([pair, pair], np.array([[1.0, 0.0], [0.0, 1.0]]), 2.0)
    assert two == pytest.approx((0.5, p - 0.5))
    ranking = Judgement(task, ("a", "b", "c"), (1.0, 0.0, -1.0))
    q = 1 / (1 + math.exp(-4))
    wanted = (p + p + q) / 3
    assert expected_accuracy([ranking], np.array([[2.0, 1.0, 0.0]]), 2.0).mean == pytest.approx(
        wanted
    )


def test_baselines_stay_far_below_the_ceiling(train, held_out):
    """What does not read the prompt knows next to nothing."""
    for share in (length_baseline(train, held_out), answer_baseline(train, held_out)):
        assert 0.5 < share.mean < 0.6


def test_baselines_read_all_pairs_of_a_ranking():
    """Longer answers win but for the pair of the two best, and one word says it all."""
    task = REPLIES.make(0, 0, "easy")
    train = [Judgement(task, ("good bb", "good ccccc", "dd"), (2.0, 1.0, 0.0))]
    p, q = 1 / (1 + math.exp(-SHARPNESS)), 1 / (1 + math.exp(-2 * SHARPNESS))
    assert length_baseline(train, train).mean == pytest.approx((1 - p + q + p) / 3)
    turned = [Judgement(task, ("good", "x", "y"), (2.0, 1.0, 0.0))]
    assert answer_baseline(train * 4, turned).mean == pytest.approx((p + q + 0.5) / 3)


def test_length_baseline_takes_the_better_sign():
    task = REPLIES.make(0, 0, "easy")
    short = [Judgement(task, ("a", "bbb"), (1.0, 0.0)), Judgement(task, ("cc", "d"), (0.5, 0.0))]
    long = [Judgement(task, ("bbb", "a"), (1.0, 0.0))]
    p = 1 / (1 + math.exp(-SHARPNESS))
    assert length_baseline(short, short[:1]).mean == pytest.approx(p)
    assert length_baseline(long, short[:1]).mean == pytest.approx(1 - p)


def test_demonstrations_are_of_their_side():
    examples = {side: reply_examples(0, side, 100) for side in ("train", "held out")}
    asked = {side: {x.messages[0]["content"] for x in some} for side, some in examples.items()}
    assert not asked["train"] & asked["held out"]
    assert len(set(itertools.chain(*asked.values()))) > 195


@pytest.mark.parametrize(
    ("fields", "rule"),
    [({"answers": 1}, "answers"), ({"answers": 9}, "answers"), ({"sharpness": 0.0}, "sharpness")],
)
def test_what_has_no_meaning_is_refused(fields, rule):
    with pytest.raises(ValueError, match=rule):
        GoldPreferences(0, "train", **fields)
