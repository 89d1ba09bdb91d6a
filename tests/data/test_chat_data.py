"""Demonstrations from end to end: a file's name in, rows out; sides, policies, and what is lost."""

import dataclasses
import json

import pytest

from genai_jax.data.chat_data import ChatDataConfig, load_examples
from genai_jax.data.chat_templates import ChatTemplate
from genai_jax.data.chat_turns import TemplateChat
from genai_jax.data.conversations import Example, said
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.prompt_sides import validation_side
from genai_jax.data.tokenizers import ByteTokenizer

CHAT = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))
LENGTH = 32


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Eighty sums, and eighty others of the same prompts with other answers."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    with path.open("w") as file:
        for i in range(160):
            prompt = {"prompt": f"{i % 80} + 1", "completion": f"{i % 80 + 1}" + "!" * (i // 80)}
            file.write(json.dumps(prompt) + "\n")
    return path


def load(config, length=LENGTH, seed=0, renderer=CHAT, examples=None):
    return load_examples(config, renderer, length=length, seed=seed, examples=examples)


def answers(rows, numbers=None):
    """What is learnt of rows, as texts."""
    found = []
    for i in range(len(rows)) if numbers is None else numbers:
        row = rows[i]
        for segment in range(1, row["segment_ids"].max() + 1):
            counted = (row["segment_ids"] == segment) & (row["loss_mask"] == 1)
            ids = row["targets"][counted]
            assert ids[-1] == 261
            found.append(CHAT.tokenizer.decode(ids[:-1]))
    return sorted(found)


def test_a_file_is_split_by_its_prompts(path):
    data = load(ChatDataConfig(path=str(path)))
    sides = data.train_examples, data.validation_examples
    prompts = [{example.messages[0]["content"] for example in side} for side in sides]
    assert not prompts[0] & prompts[1] and sum(map(len, sides)) == 160
    assert 3 <= len(prompts[1]) <= 16
    for rows, side in zip((data.train, data.validation), sides, strict=True):
        assert answers(rows) == sorted(x.messages[1]["content"] for x in side)
    assert answers(data.train, range(len(data.train), 2 * len(data.train))) == answers(data.train)
    assert f"train: {len(sides[0])} examples" in data.summary and "sums.jsonl" in data.summary
    again = load(ChatDataConfig(path=str(path)), seed=1)
    assert again.content_digest == data.content_digest and len(again.content_digest) == 64
    assert again.validation_examples == data.validation_examples


def test_a_side_depends_on_the_prompt_alone():
    prompts = [(said("user", f"{i}"),) for i in range(400)]
    sides = validation_side(prompts, 0.25)
    assert 60 < sides.sum() < 140
    assert validation_side(prompts[::-3], 0.25).tolist() == sides[::-3].tolist()
    # However small a share, each side has something; and never a prompt of the other.
    assert validation_side(prompts[:9] * 2, 1e-9).sum() == 2
    assert validation_side(prompts[:9] * 2, 1 - 1e-9).sum() == 16
    with pytest.raises(ValueError, match=r"at least two different prompts.*got 1"):
        validation_side(prompts[:1] * 5, 0.5)


def test_the_digest_is_of_the_content(path, tmp_path):
    config = ChatDataConfig(path=str(path))
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "moved.jsonl").write_text("\n" + "".join(lines))
    moved = dataclasses.replace(config, path=str(tmp_path / "moved.jsonl"))
    digest = load(config).content_digest
    assert load(moved).content_digest == digest
    (tmp_path / "moved.jsonl").write_text("".join([*lines[:-1], lines[-1].replace("!", "?")]))
    assert load(moved).content_digest != digest
    assert load(dataclasses.replace(config, validation_fraction=0.4)).content_digest != digest
    side = [Example.of("a", "b")]
    silent = [dataclasses.replace(side[0], silent=(1,)), Example.of("c", "d")]
    digests = {
        load(config, examples=sides).content_digest
        for sides in ((side, []), (side, side), (silent, []), (silent[1:], []))
    }
    assert len(digests) == 4


def test_both_roads_give_the_same_rows():
    examples = ([Example.of(f"{i}", "x" * i) for i in range(6)], [Example.of("y", "z")])
    by_template = TemplateChat(CHAT.tokenizer, CHAT.template)
    one, other = (
        load(ChatDataConfig(), renderer=x, examples=examples) for x in (CHAT, by_template)
    )
    for i in range(2 * len(one.train)):
        for name, value in one.train[i].items():
            assert value.tolist() == other.train[i][name].tolist()
    assert one.content_digest == other.content_digest


TALK = Example(
    (said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", ""))
)


def test_which_answers_are_learnt():
    def learnt(example, **options):
        return answers(load(ChatDataConfig(**options), examples=([example], [])).train)

    def text_of(example, **options):
        row = load(ChatDataConfig(**options), examples=([example], [])).train[0]
        return [int(x) for x in row["targets"][row["loss_mask"] == 1]]

    assert text_of(TALK) == [ord("b"), 261, 261]
    assert text_of(TALK, answers="last") == [261]
    assert text_of(dataclasses.replace(TALK, silent=(1,))) == [261]
    assert text_of(dataclasses.replace(TALK, silent=(3,))) == [ord("b"), 261]
    assert learnt(Example.of("a", "b")) == ["b"]


def test_what_is_lost_is_counted():
    question = Example((said("user", "?"),))
    silent = Example((said("user", "a"), said("assistant", "b")), (1,))
    long = Example.of("q" * 10, "x" * 40)
    train = [TALK, question, question, silent, long]

    def summary(**options):
        lines = load(ChatDataConfig(**options), examples=(train, [TALK])).summary.splitlines()
        assert lines[0] == "examples: made in this process"
        return lines[1]

    said_of = summary()
    assert "train: 5 examples" in said_of
    assert "dropped without a turn of the assistant: 2" in said_of
    assert "dropped since no token of it counts: 1" in said_of
    assert "longer than 32 tokens: dropped: 1" in said_of and "empty answers: 1" in said_of
    assert "longer than 32 tokens: end cut off: 1" in summary(too_long="truncate")
    assert "longer than 32 tokens: split: 1" in summary(too_long="split")
    whole = load(ChatDataConfig(too_long="split", packing=False), examples=(train, []))
    assert sum(row["loss_mask"].sum() for row in whole.train) == 3 + 41
    assert len(whole.validation) == 0


def test_nothing_left_is_an_error():
    long = [Example.of("", "x" * 40)]
    with pytest.raises(ValueError, match=r"for train; of 1 none is left; longer.*dropped: 1"):
        load(ChatDataConfig(), examples=(long, []))
    with pytest.raises(ValueError, match=r"for validation; of 1 none is left"):
        load(ChatDataConfig(), examples=([TALK], long))
    with pytest.raises(ValueError, match="for train; of 0 none is left"):
        load(ChatDataConfig(), examples=([], []))
    with pytest.raises(ValueError, match=r"a source of conversations; got none. Give --data.path"):
        load(ChatDataConfig())
    with pytest.raises(ValueError, match="between 0 and 1; got 0"):
        ChatDataConfig(validation_fraction=0.0)
    with pytest.raises(ValueError, match="`length` must be at least 2"):
        load(ChatDataConfig(), length=1, examples=([TALK], []))


def test_a_conversation_that_a_template_refuses_is_named(tmp_path):
    refusal = "{% if messages[0].content == '7' %}{{ raise_exception('no sevens') }}{% endif %}"
    template = ChatTemplate(refusal + CHAT.template.source, CHAT.template.tokens)
    chat = TemplateChat(CHAT.tokenizer, template)
    path = tmp_path / "chat.jsonl"
    lines = [json.dumps({"prompt": f"{i}", "completion": "x"}) for i in range(10)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"chat.jsonl:8: .*no sevens"):
        load(ChatDataConfig(path=str(path)), renderer=chat)
