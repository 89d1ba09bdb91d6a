"""What a template makes of conversations is kept, and told apart by all that it depends on."""

import dataclasses

import pytest

from genai_jax.data.chat_cache import CachedChat, make_chat_renderer
from genai_jax.data.chat_templates import ChatTemplate, ChatTemplateError
from genai_jax.data.chat_turns import ChatRenderer, TemplateChat
from genai_jax.data.conversations import said
from genai_jax.data.plain_chat import CHAT_SPECIALS, PlainChat
from genai_jax.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer(specials=CHAT_SPECIALS)
PLAIN = PlainChat(TOKENIZER)
TALKS = [
    (said("user", "a"), said("assistant", "b"), said("user", "é"), said("assistant", "")),
    (said("system", "c"),),
    (said("user", ""), said("assistant", "d" * 9)),
]


class Counting(PlainChat):
    """Counts what it is asked for."""

    calls = 0

    def render(self, conversations, *, last_only=False):
        type(self).calls += 1
        return super().render(conversations, last_only=last_only)


def same(one, other):
    assert [(x.ids.tolist(), x.turns) for x in one] == [(x.ids.tolist(), x.turns) for x in other]
    assert {x.ids.dtype.name for x in one} <= {"int32"}
    return True


def test_what_was_rendered_is_found_again(tmp_path):
    inner = Counting(TOKENIZER)
    chat = CachedChat(inner, str(tmp_path))
    assert isinstance(chat, ChatRenderer)
    assert same(chat.render(TALKS), PLAIN.render(TALKS)) and inner.calls == 1
    assert same(CachedChat(inner, str(tmp_path)).render(TALKS), PLAIN.render(TALKS))
    assert inner.calls == 1
    # Anything else is another rendering.
    assert same(chat.render(TALKS, last_only=True), PLAIN.render(TALKS, last_only=True))
    assert same(chat.render(TALKS[::-1]), PLAIN.render(TALKS[::-1]))
    assert same(chat.render([]), []) and inner.calls == 4
    inner.digest = "another template"
    CachedChat(inner, str(tmp_path)).render(TALKS)
    assert inner.calls == 5
    other = Counting(ByteTokenizer(specials=(*CHAT_SPECIALS, "more")))
    CachedChat(other, str(tmp_path)).render(TALKS)
    assert inner.calls == 6
    assert (chat.end_ids, chat.template) == (inner.end_ids, inner.template)
    assert chat.prompts(TALKS[1:2])[0].tolist() == PLAIN.prompts(TALKS[1:2])[0].tolist()


def test_a_renderer_suits_its_model(tmp_path):
    assert isinstance(make_chat_renderer(TOKENIZER, None), PlainChat)
    kept = dataclasses.replace(PLAIN.template, name="of a run")
    assert isinstance(make_chat_renderer(TOKENIZER, kept), PlainChat)
    template = ChatTemplate(PLAIN.template.source + "{# theirs #}", PLAIN.template.tokens)
    theirs = make_chat_renderer(TOKENIZER, template, cache_dir=str(tmp_path))
    assert isinstance(theirs, CachedChat) and theirs.template == template
    assert same(theirs.render(TALKS), PLAIN.render(TALKS))
    no_end = ByteTokenizer(end_of_text=False)
    assert isinstance(make_chat_renderer(no_end, template), CachedChat)
    with pytest.raises(ValueError, match="specials=CHAT_SPECIALS"):
        make_chat_renderer(no_end, None)


def test_rows_do_not_depend_on_the_clock():
    dated = "{{ strftime_now('%d %b %Y') }}" + PLAIN.template.source
    template = ChatTemplate(dated, PLAIN.template.tokens)
    chat = TemplateChat(TOKENIZER, template)
    assert TOKENIZER.decode(chat.render(TALKS[2:])[0].ids).startswith("26 Jul 2024")
    later = TemplateChat(TOKENIZER, template, today="2031-01-02")
    assert TOKENIZER.decode(later.prompts(TALKS[:1])[0]).startswith("02 Jan 2031")
    assert later.digest != chat.digest and chat.template is template
    with pytest.raises(ChatTemplateError, match="`today` must be a date as 2026-01-31; got 'now'"):
        TemplateChat(TOKENIZER, template, today="now")
