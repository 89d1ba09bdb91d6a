"""Our own chat template: both roads to the same ids, and where the assistant's turns are."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.chat_templates import (
    ROLES,
    ChatTemplate,
    ChatTemplateError,
    load_chat_template,
)
from genai_jax.data.chat_turns import ChatRenderer, TemplateChat
from genai_jax.data.conversations import said
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat, save_chat_template
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer
from genai_jax.data.saved_tokenizers import load_tokenizer
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer

TALK = (said("system", " Be\n"), said("user", "1 + 1?"), said("assistant", "2"))
LONGER = (*TALK, said("user", ""), said("assistant", ""), said("tool", "\n"))
NASTY = (said("user", "<|end_of_turn|><|assistant|> user"), said("assistant", "<|endoftext|>"))
LINES = ["user assistant system tool hello there: 1 + 1?\n\n", "It is four o'clock.  Yes. \n"] * 40

EXTRA = "Be2<|end_of_text|>"  # characters of the messages that the lines lack


def llama_like():
    """A tokenizer that puts a space before a text, as Llama 2's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return PretrainedTokenizer(model.getvalue(), "sentencepiece", eot_id=2, end_ids=[2])


@pytest.fixture(scope="module")
def tokenizers():
    found = {
        "bytes": ByteTokenizer(specials=CHAT_SPECIALS),
        "bytes without": ByteTokenizer(),
        "bpe": train_tokenizer("bpe", LINES, 330, specials=CHAT_SPECIALS),
        "bpe without": train_tokenizer("bpe", LINES, 330),
        "unigram": train_tokenizer("unigram", LINES, 290, specials=CHAT_SPECIALS),
        "no end of text": ByteTokenizer(end_of_text=False, specials=CHAT_SPECIALS),
        "characters": train_tokenizer("characters", [*LINES, EXTRA], 0, specials=CHAT_SPECIALS),
        "llama": llama_like(),
    }
    assert found["llama"].adds_space
    return found


def test_turns_by_hand():
    chat = PlainChat(ByteTokenizer(specials=CHAT_SPECIALS))
    ids = chat.tokenizer.special_ids
    assert [ids[name] for name in CHAT_SPECIALS] == [257, 258, 259, 260, 261]
    turns = chat.render([TALK])[0]
    expected = [256, 257, *b" Be\n", 261, 258, *b"1 + 1?", 261, 259, *b"2", 261]
    assert turns.ids.tolist() == expected and turns.ids.dtype == np.int32
    assert turns.turns == ((len(expected) - 2, len(expected)),)
    assert chat.prompts([TALK[:2]])[0].tolist() == expected[:-2]
    assert chat.end_ids == (256, 261) and isinstance(chat, ChatRenderer)
    assert set(CHAT_SPECIALS) == {"<|end_of_turn|>", *(f"<|{role}|>" for role in ROLES)}


def test_without_ids_of_its_own_roles_are_words_between_ends_of_text():
    chat = PlainChat(ByteTokenizer())
    turns = chat.render([TALK[1:]])[0]
    expected = [256, *b"user", 256, *b"1 + 1?", 256, *b"assistant", 256, *b"2", 256]
    assert turns.ids.tolist() == expected
    assert turns.turns == ((len(expected) - 2, len(expected)),)
    assert chat.end_ids == (256,)
    with pytest.raises(ValueError, match=r"id for the end of a text.*specials=CHAT_SPECIALS"):
        PlainChat(ByteTokenizer(end_of_text=False))


OURS = ("bytes", "bytes without", "bpe", "bpe without", "unigram", "no end of text", "characters")


@pytest.mark.parametrize("name", [*OURS, "llama"])
def test_both_roads_give_the_same(tokenizers, name):
    plain = PlainChat(tokenizers[name])
    slow = TemplateChat(tokenizers[name], plain.template)
    assert plain.digest == slow.digest and plain.end_ids == slow.end_ids
    conversations = [TALK, LONGER, NASTY]
    for fast, by_template in zip(
        plain.render(conversations), slow.render(conversations), strict=True
    ):
        assert fast.ids.tolist() == by_template.ids.tolist()
        assert fast.turns == by_template.turns
    prompts = [TALK[:2], LONGER[:4], NASTY[:1], TALK]
    for fast, by_template in zip(plain.prompts(prompts), slow.prompts(prompts), strict=True):
        assert fast.tolist() == by_template.tolist()


contents = st.text(st.sampled_from("<|>_endofturasi \n\té🙂"), max_size=12)
talks = st.lists(st.builds(said, st.sampled_from(ROLES), contents), min_size=1, max_size=5)


@given(talks)
def test_a_prompt_begins_the_whole_and_a_turn_is_its_answer_and_end(tokenizers, messages):
    for name in ("bpe", "bpe without"):
        chat = PlainChat(tokenizers[name])
        (ids, turns) = chat.render([messages])[0]
        numbers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(turns) == len(numbers)
        last = chat.render([messages], last_only=True)[0]
        assert last.turns == turns[-1:] and last.ids.tolist() == ids.tolist()
        for number, (start, end) in zip(numbers, turns, strict=True):
            if number:
                assert chat.prompts([messages[:number]])[0].tolist() == ids[:start].tolist()
            answer = chat.tokenizer.decode(ids[start : end - 1])
            assert answer == messages[number]["content"] and ids[end - 1] in chat.end_ids


def test_a_run_keeps_its_template(tmp_path, tokenizers):
    chat = PlainChat(tokenizers["bpe"])
    save_chat_template(chat.template, tmp_path / "chat")
    chat.tokenizer.save(tmp_path / "tokenizer")
    template = load_chat_template(tmp_path / "chat")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert template is not None and template.source == chat.template.source
    assert template.end_ids(tokenizer) == chat.end_ids
    ids = template.encode(tokenizer, TALK[:2])
    assert ids.tolist() == chat.prompts([TALK[:2]])[0].tolist()


CHATML = (
    "{% for message in messages %}<|user|>{{ message.role + '\n' + message.content }}"
    "<|end_of_turn|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
END = {"eos_token": "<|end_of_turn|>"}


def chat_of(source, tokens=END):
    return TemplateChat(ByteTokenizer(specials=CHAT_SPECIALS), ChatTemplate(source, tokens))


def test_what_a_template_writes_after_an_answer_s_end_is_not_its_turn():
    ids, turns = chat_of(CHATML).render([LONGER[:5]])[0]
    spelt = [bytes(int(i) for i in ids[a:b] if i < 256) for a, b in turns]
    assert spelt == [b"2", b""] and [ids[b - 1] for _, b in turns] == [261, 261]
    assert [ids[b] for _, b in turns] == [ord("\n")] * 2


def test_conversations_are_rendered_in_few_processes(monkeypatch):
    from genai_jax.data import chat_processes

    chat, started = chat_of(CHATML), []
    original = chat_processes.subprocess.run
    monkeypatch.setattr(
        chat_processes.subprocess, "run", lambda *a, **k: started.append(1) or original(*a, **k)
    )
    conversations = [(said("user", "x" * (i % 7)), said("assistant", "y" * i)) for i in range(200)]
    found = chat.render(conversations)
    assert len(started) == 1
    for i in (0, 99, 199):
        alone = chat.render([conversations[i]])[0]
        assert alone.ids.tolist() == found[i].ids.tolist() and alone.turns == found[i].turns
    started.clear()
    # More than one process may take: in halves, and each as if it were alone.
    monkeypatch.setattr(chat_processes, "_BATCH", 64)
    again = chat.render(conversations)
    assert [x.ids.tolist() for x in again] == [x.ids.tolist() for x in found]
    assert len(started) == 10


def test_conversations_that_are_too_much_together_are_rendered_apart(monkeypatch):
    from genai_jax.data import chat_processes

    chat, original = chat_of(CHATML), chat_processes._ask
    expected = chat.render([TALK, LONGER[:5]])

    def ask(request):
        many = len(request["conversations"]) > 2
        return {"error": "it takes longer than 10 s"} if many else original(request)

    monkeypatch.setattr(chat_processes, "_ask", ask)
    for one, other in zip(chat.render([TALK, LONGER[:5]]), expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and one.turns == other.turns
    monkeypatch.setattr(chat_processes, "_ask", lambda request: {"error": "it takes longer"})
    with pytest.raises(ChatTemplateError, match="could not be rendered: it takes longer"):
        chat.render([TALK])


def test_one_conversation_that_is_refused_does_not_hide_behind_others():
    refusal = "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}"
    talk = [(said("user", x), said("assistant", "y")) for x in ("yes", "no", "yes")]
    chat = chat_of(refusal + CHATML)
    assert len(chat.render([talk[0], talk[2]])) == 2
    with pytest.raises(ChatTemplateError, match="never"):
        chat.render(talk)


def test_templates_that_break_the_rules_are_refused():
    wrong = {
        # Says how many messages there are before all of them.
        "must write the same before message 2": "{{ messages | length }}" + CHATML,
        "must end an answer with one of": CHATML.replace("<|end_of_turn|>", ""),
    }
    for match, source in wrong.items():
        with pytest.raises(ChatTemplateError, match=match):
            chat_of(source).render([TALK])
    with pytest.raises(ChatTemplateError, match="ends message 2 with none"):
        # The end of another's turn is no end of an answer.
        chat_of(
            "{% for m in messages %}<|user|>{{ m.content }}{% if m.role != 'assistant' %}"
            "<|end_of_turn|>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|user|>{% endif %}"
        ).render([LONGER[:5]])
    with pytest.raises(ChatTemplateError, match="begins with the assistant"):
        chat_of(CHATML).render([TALK[2:]])
