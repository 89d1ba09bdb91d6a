"""Short replies: prompts of both sides, a writer who varies, and a gold reward known exactly."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.tasks.gold_reward import (
    HIGHEST,
    LOWEST,
    gold_reward,
    reward_request,
    take_apart,
)
from genai_jax.data.tasks.replies import REPLIES, draw_answer
from genai_jax.data.tasks.reply_words import (
    BODIES,
    CLOSINGS,
    DEEDS,
    KIND_WORDS,
    OPENINGS,
    RAMBLES,
    TONES,
    Request,
    Slots,
    right_slots,
)
from genai_jax.data.tasks.split import Tasks, side_of, tasks
from genai_jax.data.tasks.task import DIFFICULTIES

FORMAL = Request("thank", "Mira", "tea", "formal")
WARM = FORMAL._replace(tone="warm")
BRIEF = FORMAL._replace(tone="brief")
LONGEST = "Good day Mira, I am grateful for the tea. With respect."


@pytest.mark.parametrize(
    ("request_", "text", "worth"),
    [
        (FORMAL, LONGEST, 2.75),
        (FORMAL, f"  {LONGEST}\n", 2.75),
        (FORMAL, "Dear Mira, I am grateful for the tea. Yours truly.", 2.75),
        # One slot is changed at a time.
        (FORMAL, "Hey Mira, I am grateful for the tea. Yours truly.", 2.75 - 1),
        (FORMAL, "I am grateful for the tea. Yours truly.", 2.75 - 1 - 0.75),
        (FORMAL, "Dear friend, I am grateful for the tea. Yours truly.", 2.75 - 0.75),
        (FORMAL, "Dear Boka, I am grateful for the tea. Yours truly.", 2.75 - 1.5),
        (FORMAL, "Dear Mira, thanks for the tea. Yours truly.", 2.75 - 1.25),
        (FORMAL, "Dear Mira, may I offer you tea? Yours truly.", 2.75 - 1.75),
        (FORMAL, "Dear Mira, I am grateful for the jam. Yours truly.", 2.75 - 1.25),
        (FORMAL, "Dear Mira, I am grateful for the tea.", 2.75 - 0.5),
        (FORMAL, "Dear Mira, I am grateful for the tea. Later.", 2.75 - 1),
        (
            FORMAL,
            "Dear Mira, I am grateful for the tea. It rained. Yours truly.",
            2.75 - 0.4 - 0.06,
        ),
        (FORMAL, LONGEST.replace(" With", "  With"), 2.75 - 0.5 - 0.05 - 0.01),
        # The same text is worth something else to others.
        (WARM, LONGEST, 2.75 - 1 - 1.25 - 1),
        (WARM, "Darling Mira, I just love the tea! You are kind. Much love!", 3.0),
        (WARM, "Sweet Mira, I just love the tea! Hugs!", 2.75),
        (WARM, "Sweet Mira, I just love the tea! I miss you. I miss you. Hugs!", 3 - 0.4 - 0.03),
        (BRIEF, "Mira, thanks for the tea.", 2.75),
        (BRIEF, "thanks for the tea.", 2.75 - 0.75),
        (BRIEF, "Mira, thanks for the tea. Hugs!", 2.75 - 1 - 0.06),
        (FORMAL, "", LOWEST),
        (BRIEF, "", 0.5 - 0.25 - 3.5 + 0.5),
        (FORMAL, "tea " * 100, LOWEST),
        (FORMAL, LONGEST + " x" * 100, LOWEST),
    ],
)
def test_known_rewards(request_, text, worth):
    assert reward_request(request_, text) == pytest.approx(worth, abs=1e-9)


def all_slots(request):
    """Every reply of the grammar with at most two extras, to or about two people and things."""
    openings = [(tone, word) for tone, words in OPENINGS.items() for word in words]
    bodies = [
        BODIES[deed][tone].format(thing=thing)
        for deed, tone, thing in itertools.product(DEEDS, TONES, (request.thing, "lamp"))
    ]
    extras = [(), *((x,) for x in KIND_WORDS + RAMBLES), KIND_WORDS, RAMBLES[:1] + KIND_WORDS[:1]]
    closings = [text for texts in CLOSINGS.values() for text in texts]
    for (tone, word), name, body, extra, closing in itertools.product(
        openings, (request.name, "", "Boka"), bodies, extras, closings
    ):
        yield Slots(tone, word, name, body, extra, closing)


@pytest.mark.parametrize("tone", TONES)
def test_a_reply_is_taken_apart_into_what_it_was_made_of(tone):
    """And no other is worth more than the right one."""
    request = FORMAL._replace(tone=tone)
    best = reward_request(request, right_slots(request).text)
    assert best == (3.0 if tone == "warm" else 2.75)
    closing_tone = {text: t for t, texts in CLOSINGS.items() for text in texts}
    for slots in itertools.islice(all_slots(request), 0, None, 13):
        taken = take_apart(slots.text)
        deed, body_tone, thing = taken.body
        assert BODIES[deed][body_tone].format(thing=thing) == slots.body
        assert (taken.opening, taken.name) == (slots.tone, slots.name)
        assert taken.kind == sum(x in KIND_WORDS for x in slots.extras)
        assert taken.rambles == len(slots.extras) - taken.kind
        assert (taken.closing, taken.nonsense) == (closing_tone[slots.closing], 0)
        assert reward_request(request, slots.text) <= best


@settings(max_examples=40)
@given(st.text())
def test_any_text_has_a_bounded_reward(text):
    task = REPLIES.make(0, 0, "easy")
    for some in (text, task.answer + text, text + task.answer):
        reward = gold_reward(task, some)
        assert LOWEST <= reward <= HIGHEST
        assert 0 <= REPLIES.grade(task, some) <= 1
    if take_apart(text).body is None:
        assert gold_reward(task, text) <= -2.75


def test_prompts_are_many_and_short_and_on_one_side():
    for difficulty in DIFFICULTIES:
        some = [REPLIES.make(3, i, difficulty) for i in range(500)]
        assert len({task.prompt for task in some}) > 495
        assert all(task.prompt.isascii() and len(task.prompt) <= 48 for task in some)
        assert all(REPLIES.grade(task, task.answer) == 1 for task in some[:100])
        contents = {}
        for task in some:
            assert contents.setdefault(task.prompt, task.content) == task.content
            assert task.checks[1] in task.prompt and task.checks[2] in task.prompt
    sides = {side: Tasks((REPLIES,), "easy", side, 5) for side in ("train", "held out")}
    found = {side: [made[i] for i in range(150)] for side, made in sides.items()}
    for side, some in found.items():
        assert {side_of("replies", task.content) for task in some} == {side}
    prompts, held_out = ({task.prompt for task in found[side]} for side in found)
    assert not prompts & held_out


def test_prompts_and_answers_are_the_same_for_ever():
    task = REPLIES.make(7, 1000, "easy")
    assert (task.prompt, draw_answer(task, 7, 3)) == PINNED["easy"]
    task = REPLIES.make(7, 1000, "hard")
    assert (task.prompt, draw_answer(task, 7, 3)) == PINNED["hard"]


PINNED = {
    "easy": ("Be formal: say sorry to Do for the honey.", "Good day Do, sorry for the cake."),
    "hard": ("Casually, invite Vogul for rice.", "Good day Vogul, wanna grab plums?"),
}


def test_the_writer_varies_in_every_slot():
    """All tones come for each tone asked for, and the asked one the oftenest."""
    count = 600
    asked = tasks((REPLIES,), "easy", "train", 0)
    opened, bodies, names, kinds = Counter(), Counter(), Counter(), Counter()
    longest = 0
    for i in range(count):
        task = asked[i]
        answer = draw_answer(task, 0, i)
        taken = take_apart(answer)
        assert taken.nonsense == 0 and answer.isascii()
        longest = max(longest, len(answer))
        _, name, _, tone = task.checks
        opened[tone, taken.opening] += 1
        bodies[tone, taken.body[1]] += 1
        names["right" if taken.name == name else "wrong" if taken.name else "absent"] += 1
        kinds[taken.kind + taken.rambles] += 1
    assert longest <= 92
    for counts in (opened, bodies):
        for tone in TONES:
            row = {other: counts[tone, other] for other in TONES}
            total = sum(row.values())
            # Half the tones are as asked, the rest is any; three quarters of the slots follow.
            assert row[tone] / total == pytest.approx(0.25 + 0.75 * 3 / 8, abs=0.1)
            assert min(row.values()) / total > 0.07
    for what, sixteenths in (("right", 12), ("absent", 2), ("wrong", 2)):
        assert names[what] / count == pytest.approx(sixteenths / 16, abs=0.04)
    for extras, sixteenths in ((0, 10), (1, 4), (2, 2)):
        assert kinds[extras] / count == pytest.approx(sixteenths / 16, abs=0.04)


def test_sentences_for_pre_training_hold_a_request_and_a_reply():
    for i in range(20):
        task, told = REPLIES.make(0, i, "easy"), REPLIES.tell(0, i, "easy")
        asked, reply = told.split(": ", 1)
        assert task.checks[1] in asked and task.checks[3][:4] in asked
        assert take_apart(reply).nonsense == 0 and take_apart(reply).body is not None
