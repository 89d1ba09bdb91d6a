import jax
import numpy as np
import pytest

from genai_jax.data.chat_templates import ChatTemplate, ChatTemplateError
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.conversation import Conversation
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.requests import ContextError, Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

TOKENIZER = ByteTokenizer()
TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:")
CONFIG = TransformerConfig(
    vocab_size=257, num_layers=1, embed_dim=8, num_heads=1, max_length=64, init_std=0.3
)
REQUEST = Request((), SamplingConfig(0.9), max_tokens=6, seed=5)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, jax.random.key(0))


@pytest.fixture
def engine(model):
    return Engine(model, vocab_size=257, prefixes=1)


def test_every_answer_follows_all_that_was_said(engine, model):
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, REQUEST, system="Be")
    first = "".join(conversation.answer("hi"))
    second = "".join(conversation.answer("so"))
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [m["role"] for m in conversation.messages] == roles
    assert [m["content"] for m in conversation.messages] == ["Be", "hi", first, "so", second]
    asked = TEMPLATE.encode(TOKENIZER, conversation.messages[:4])
    request = Request(asked, SamplingConfig(0.9), 6, seed=6, stop_ids=TOKENIZER.end_ids)
    (alone,) = Engine(model, vocab_size=257).run([request])
    assert TOKENIZER.decode(alone.tokens) == second


def test_an_answer_that_is_broken_off_counts_as_said(engine):
    request = Request((), SamplingConfig(0.0), max_tokens=30)
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, request)
    parts = conversation.answer("hi")
    heard = next(parts)
    parts.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": heard}
    assert not engine.busy
    assert "".join(conversation.answer("on")) and not engine.busy


def test_the_oldest_messages_are_left_out_and_the_system_is_not(engine):
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, REQUEST, system="S" * 10)
    forgotten = []
    for number in range(6):
        list(conversation.answer(f"question {number}"))
        forgotten.append(conversation.forgotten)
    assert forgotten[0] == 0 and forgotten == sorted(forgotten) and forgotten[-1] > 2
    assert all(n % 2 == 0 for n in forgotten) and len(conversation.messages) == 13


def test_what_cannot_be_said_counts_as_not_said(engine):
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, REQUEST)
    with pytest.raises(ValueError, match="fit into a context of 64 tokens; it takes 105"):
        list(conversation.answer("x" * 100))
    assert conversation.messages == [] and not engine.busy
    strict = ChatTemplate("{{ raise_exception('no') }}")
    with pytest.raises(ChatTemplateError, match="no"):
        list(Conversation(engine, TOKENIZER, strict, REQUEST).answer("hi"))


def test_what_the_engine_refuses_counts_as_not_said(engine):
    strict = Request((), SamplingConfig(), max_tokens=60, overflow="error")
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, strict)
    with pytest.raises(ContextError, match="fit into the context"):
        list(conversation.answer("hello"))
    assert conversation.messages == []


def test_one_answer_at_a_time(engine):
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, REQUEST)
    first = conversation.answer("hi")
    next(first)
    with pytest.raises(RuntimeError, match="one answer must end"):
        next(conversation.answer("so"))
    first.close()
    assert "".join(conversation.answer("so"))


def test_a_stop_text_ends_an_answer(engine):
    whole = "".join(Conversation(engine, TOKENIZER, TEMPLATE, REQUEST).answer("hi"))
    stop = whole[2:4]
    conversation = Conversation(engine, TOKENIZER, TEMPLATE, REQUEST, stop=[stop])
    assert "".join(conversation.answer("hi")) == whole[: whole.index(stop)]
    np.testing.assert_equal(conversation.messages[-1]["content"], whole[: whole.index(stop)])
