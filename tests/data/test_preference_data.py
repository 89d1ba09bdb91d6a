"""Preferences from end to end: a file's name in, rows out; sides, policies, and what is lost."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from genai_jax.data.chat_data import ChatDataConfig, load_examples
from genai_jax.data.chat_templates import ChatTemplate
from genai_jax.data.chat_turns import TemplateChat
from genai_jax.data.conversations import Example, Judged, Preference, said
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.preference_data import (
    PreferenceDataConfig,
    load_judged,
    load_preferences,
)
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer
from genai_jax.data.tokenizers import ByteTokenizer

CHAT = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))
END = 261
LENGTH = 24


def ask(text):
    return (said("user", text),)


def prefer(prompt, *answers, **more):
    return Preference(ask(prompt), answers, **more)


def load(train, validation=(), length=LENGTH, renderer=CHAT, **options):
    config = PreferenceDataConfig(**options)
    sides = list(train), list(validation)
    return load_preferences(config, renderer, length=length, seed=0, preferences=sides)


def judge(train, validation=(), length=LENGTH, seed=0, **options):
    config, sides = PreferenceDataConfig(**options), (list(train), list(validation))
    return load_judged(config, CHAT, length=length, seed=seed, judged=sides)


def read(row, tokenizer=CHAT.tokenizer, end=END):
    """Prompt and answers of a row, as texts; each answer ends with its end."""
    found = []
    for k in np.flatnonzero(row["answer_mask"]).tolist():
        counted = row["loss_mask"][k] == 1
        answer = row["targets"][k][counted]
        size = row["lengths"][k]
        prompt = row["tokens"][k][: size - len(answer)]
        found.append((tokenizer.decode(prompt), tokenizer.decode(answer), answer[-1] == end))
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    with path.open("w") as file:
        for i in range(120):
            record = {
                "prompt": f"{i % 60} + 1",
                "chosen": f"{i % 60 + 1}",
                "rejected": "0" * (i % 3),
            }
            record |= {"margin": i / 8} if i % 2 else {}
            file.write(json.dumps(record) + "\n")
    return path


def test_a_file_is_split_by_its_prompts_as_demonstrations_are(path, tmp_path):
    config = PreferenceDataConfig(path=str(path))
    data = load_preferences(config, CHAT, length=LENGTH, seed=3)
    sides = data.train_examples, data.validation_examples
    for rows, side in zip((data.train.in_order(), data.validation), sides, strict=True):
        assert len(rows) == len(side)
        for row, one in zip(rows, side, strict=True):
            prompt = one.prompt[0]["content"]
            assert read(row) == [(prompt, answer, True) for answer in one.answers]
            assert row["margin"] == (one.margin or 0)
    prompts = [{one.prompt for one in map(freeze, side)} for side in sides]
    assert not prompts[0] & prompts[1] and prompts[1]
    assert "120" not in data.summary and "sums.jsonl" in data.summary
    assert f"train: {len(sides[0])} preferences" in data.summary and "empty answers" in data.summary
    again = load_preferences(config, CHAT, length=LENGTH, seed=4)
    assert again.content_digest == data.content_digest
    # The same prompts are for validation wherever they come from.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    other = tmp_path / "sums.jsonl"
    texts = [json.dumps({"prompt": x["prompt"], "completion": x["chosen"]}) for x in lines]
    other.write_text("\n".join(texts))
    shown = load_examples(ChatDataConfig(path=str(other)), CHAT, length=LENGTH, seed=0)
    assert {x.messages[0]["content"] for x in shown.validation_examples} == prompts[1]


def freeze(preference):
    """With a prompt that can be put in a set."""
    return type("Frozen", (), {"prompt": preference.prompt[0]["content"]})


def test_rankings_of_several_lengths_share_rows():
    ranking = prefer("a", "1", "2", "3", "4", "5")
    data = load([ranking, prefer("b", "x", "y")], [prefer("c", "x", "y", "z")])
    assert data.num_answers == 5
    rows = data.train.in_order()
    assert [answer for _, answer, _ in read(rows[0])] == ["1", "2", "3", "4", "5"]
    assert read(rows[1]) == [("b", "x", True), ("b", "y", True)]
    assert rows[1]["answer_mask"].tolist() == [1, 1, 0, 0, 0]
    assert data.validation[0]["tokens"].shape == (5, LENGTH)
    for most, expected in {2: ["1", "5"], 3: ["1", "3", "5"], 9: ["1", "2", "3", "4", "5"]}.items():
        fewer = load([ranking], answers=most)
        assert [answer for _, answer, _ in read(fewer.train[0])] == expected
        assert fewer.num_answers == most


def test_what_is_lost_is_counted():
    train = [
        prefer("a", "b", "c", margin=1.0),
        prefer("same", "b", "b"),
        prefer("long " * 6, "b", ""),
        prefer("b", "x" * 30, "y"),
    ]
    summary = load(train).summary
    assert "train: 4 preferences, 1 with a margin, 1 rows" in summary
    assert "dropped since two answers are the same: 1" in summary
    assert "longer than 24 tokens: dropped: 2" in summary
    cut = load(train, too_long="truncate")
    assert "beginning of the prompt cut off: 1" in cut.summary
    assert "without a prompt: dropped: 1" in cut.summary and "empty answers: 1" in cut.summary
    shortened = read(cut.train.in_order()[1])
    assert shortened == [("long long long long ", "b", True), ("long long long long ", "", True)]
    with pytest.raises(ValueError, match="chat:7: the answers to a prompt must differ"):
        load([prefer("same", "b", "b", where="chat:7")], identical="error")


def test_nothing_left_is_an_error():
    same = [prefer("same", "b", "b")]
    with pytest.raises(ValueError, match=r"preferences .* for train; of 1 none .*the same: 1"):
        load(same)
    with pytest.raises(ValueError, match="for validation; of 1 none is left"):
        load([prefer("a", "b", "c")], same)
    with pytest.raises(ValueError, match=r"judged answers .* for train; of 1 none is left"):
        judge(same)
    for answers in (1, -1):
        with pytest.raises(ValueError, match=f"at least 2, or 0 for all; got {answers}"):
            PreferenceDataConfig(answers=answers)
    assert len(load([prefer("a", "b", "c")]).validation) == 0


def test_answers_that_a_template_makes_the_same_are_the_same():
    trimming = CHAT.template.source.replace("message.content", "message.content | trim")
    chat = TemplateChat(CHAT.tokenizer, ChatTemplate(trimming, CHAT.template.tokens))
    data = load([prefer("a", "b", "c"), prefer("a", "b", " b ")], renderer=chat)
    assert "the same: 1" in data.summary
    telling = "{{ messages[-1].content | length }}" + CHAT.template.source
    chat = TemplateChat(CHAT.tokenizer, ChatTemplate(telling, CHAT.template.tokens))
    with pytest.raises(ValueError, match="must write the same"):
        load([prefer("a", "b", "ccc")], renderer=chat)


def test_both_roads_give_the_same_rows():
    train = [prefer(f"{i}", "x" * i, "y", margin=0.5) for i in range(5)]
    one = load(train)
    other = load(train, renderer=TemplateChat(CHAT.tokenizer, CHAT.template))
    for i in range(10):
        for name, value in one.train[i].items():
            assert value.tolist() == other.train[i][name].tolist()


def test_a_judged_answer_stands_beside_another_prompts():
    answers = [Judged(ask(f"{i % 3}"), f"{i % 3} {i}", i % 2 == 0) for i in range(6)]
    ranking = prefer("3", "3 best", "between", "3 worst")
    data = judge([*answers, ranking], [Judged(ask("4"), "", True), Judged(ask("5"), "x", False)])
    assert data.num_answers == 2 and len(data.train) == 8
    assert "train: 4 desirable answers and 4 undesirable" in data.summary
    wanted = {f"{i % 3} {i}": i % 2 == 0 for i in range(6)} | {"3 best": True, "3 worst": False}
    found = {}
    for row in data.train.in_order():
        (prompt, own, ended), (same, other, also_ended) = read(row)
        assert prompt == same == own[0] != other[0] and ended and also_ended
        found[own] = bool(row["desirable"])
        assert other in wanted
    assert found == wanted
    # Partners are those of the seed, in every epoch and whatever was read before.
    again = judge([*answers, ranking], seed=1)
    pairs = [[read(row)[1][1] for row in x.train.in_order()] for x in (data, again)]
    assert pairs[0] != pairs[1]
    assert data.validation[2]["weight"] == data.validation[2]["desirable"] == 0
    with pytest.raises(ValueError, match=r"validation: answers must be to at least two different"):
        judge(answers, answers[:1])


def test_judged_answers_are_read_from_files(tmp_path, path):
    lines = [{"prompt": f"{i}", "completion": "!", "label": i % 3 == 0} for i in range(40)]
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sources = (f"files:{tmp_path / 'judged.jsonl'}", f"files:{path}")
    data = load_judged(PreferenceDataConfig(sources=sources), CHAT, length=LENGTH, seed=0)
    total = len(data.train) + len(data.validation)
    assert total == 40 + 2 * 120
    sums = [row["desirable"].sum() for rows in (data.train, data.validation) for row in rows]
    assert sum(sums) == 14 + 120


def test_an_end_with_the_id_of_padding_counts():
    """A pretrained tokenizer whose end is 0, which is what padding is too."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c user assistant system tool yes no\n"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        eos_id=0,
        unk_id=1,
        bos_id=-1,
        minloglevel=2,
    )
    tokenizer = PretrainedTokenizer(model.getvalue(), "sentencepiece", eot_id=0, end_ids=[0])
    chat = PlainChat(tokenizer)
    assert chat.end_ids == (0,)
    data = load([prefer("a b", "yes", "")], renderer=chat)
    row = data.train[0]
    assert [(answer, ended) for _, answer, ended in read(row, tokenizer, 0)] == [
        ("yes", True),
        ("", True),
    ]
    assert row["lengths"][1] == row["tokens"][1].nonzero()[0][-1] + 3  # of the head, and its own
    assert row["loss_mask"][1].sum() == 1
    shown = load_examples(
        ChatDataConfig(), chat, length=LENGTH, seed=0, examples=([Example.of("a b", "yes")], [])
    )
    learnt = shown.train[0]["targets"][shown.train[0]["loss_mask"] == 1]
    assert learnt[-1] == 0 and tokenizer.decode(learnt) == "yes"
