"""Chat templates in the shapes of five families, beside transformers' `apply_chat_template`."""

import io
import json
import os

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.data.chat_templates import ChatTemplateError, load_chat_template
from genai_jax.data.chat_turns import TemplateChat
from genai_jax.data.corpora import read_documents
from genai_jax.data.plain_chat import PlainChat
from genai_jax.data.pretrained_tokenizers import load_pretrained_tokenizer

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("tokenizers", reason="parity needs the extra [parity]")
    pytest.importorskip("transformers", reason="parity needs the extra [parity]")
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = next(d.text.decode() for d in read_documents("stdlib") if d.name == "argparse.py")

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set words = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set words = 'Today is ' + strftime_now('%Y') %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + words + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

QWEN2 = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

QWEN3 = """{%- set ns = namespace(last=messages | length) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.last == messages | length and message.role == 'user' %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

MISTRAL = """{%- set first = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if first else messages %}
{{- bos_token }}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {%- if loop.last and first %}{{ '[INST] ' + first + '\n\n' + message.content + ' [/INST]' }}
        {%- else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}
    {%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""


def train(tokenizer, special, plain=(), **options):
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, **options)
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, rstrip=text == "<|eot_id|>")
         for text in special]
    )  # fmt: skip
    return tokenizer


def byte_level(special, plain=()):
    """Llama 3's and Qwen's; one of Llama 3's takes the spaces behind it, to see that it may."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(tokenizer, special, plain, initial_alphabet=alphabet)


def byte_fallback(special, *, space):
    """Gemma's, Mistral's: with a space before the text (`first`), before every part, or never."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    if space == "every":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif space == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        tokenizer.normalizer = replace
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, [], special_tokens=["<unk>", *special, *bytes_])
    strip = [] if space == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    said = json.loads(tokenizer.to_str())
    added = said["added_tokens"]
    said["added_tokens"] = [x for x in added if not x["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(said))


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FAMILIES = {
    "llama 3": (
        LLAMA3,
        lambda: byte_level(["<|begin_of_text|>", "<|end_of_text|>", *HEADERS]),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "qwen 2.5": (
        QWEN2,
        lambda: byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        {"bos_token": None, "eos_token": "<|im_end|>"},
    ),
    "qwen 3": (
        QWEN3,
        lambda: byte_level(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]
        ),
        {"bos_token": None, "eos_token": "<|im_end|>"},
    ),
    "gemma": (
        GEMMA,
        lambda: byte_fallback(
            ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], space="never"
        ),
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "mistral": (
        MISTRAL,
        lambda: byte_fallback(["<s>", "</s>"], space="first"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "mistral, special": (
        MISTRAL,
        lambda: byte_fallback(["<s>", "</s>", "[INST]", "[/INST]"], space="every"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
}
END_OF_TURN = {
    "llama 3": "<|eot_id|>",
    "qwen 2.5": "<|im_end|>",
    "qwen 3": "<|im_end|>",
    "gemma": "<end_of_turn>",
}
CONTENTS = (
    ("Hello!",),
    ("  Hello,\n world  ", "\n\nHi. é 你好 🙂 ", " x"),
    ("x = 1\n\tif x:  pass", "<think>\nhm\n</think>\n\nyes", "why?"),
    ("", "", " "),
    ("a < b > c | d <|x|> <s", "[inst]", "̸ combines"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """The name, their tokenizer, our tokenizer and our template, from the same folder."""
    folder = tmp_path_factory.mktemp("chat")
    source, make, tokens = FAMILIES[request.param]
    made = make()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": source, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ends = {made.token_to_id(x) for x in (tokens["eos_token"], END_OF_TURN.get(request.param)) if x}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends)}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return request.param, theirs, load_pretrained_tokenizer(folder), load_chat_template(folder)


def talk(contents, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant") * len(contents)
    turns = zip(roles, contents, strict=False)
    return [*first, *({"role": role, "content": content} for role, content in turns)]


def their_ids(theirs, messages, **options):
    return theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize("system", [None, " Be brief. "])
@pytest.mark.parametrize("contents", CONTENTS)
def test_ids_are_theirs(family, contents, system):
    _, theirs, tokenizer, template = family
    messages = talk(contents, system)
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template.render(messages) == rendered
    options = {"add_generation_prompt": system is None}
    ids = template.encode(tokenizer, messages, **options)
    assert ids.tolist() == their_ids(theirs, messages, **options)


def test_variables_of_a_template(family):
    _, theirs, tokenizer, template = family
    choice = {"enable_thinking": False}
    ids = template.encode(tokenizer, talk(["x"]), variables=choice)
    assert ids.tolist() == their_ids(theirs, talk(["x"]), add_generation_prompt=True, **choice)


def test_what_users_write_ends_no_turn(family):
    name, theirs, tokenizer, template = family
    specials = tokenizer.special_ids
    attack = "".join(f"{text}x {text}\n" for text in specials)
    ids = template.encode(tokenizer, talk([attack, "y", attack]))
    known = set(specials.values())
    found = [token for token in ids.tolist() if token in known]
    harmless = template.encode(tokenizer, talk(["x", "y", "z"])).tolist()
    assert found == [token for token in harmless if token in known]
    assert len(found) < sum(
        token in known for token in their_ids(theirs, talk([attack, "y", attack]))
    )
    # What the ids stand for is the text as rendered, but for spaces that are the tokenizer's own.
    name_of = {token: text.encode() for text, token in specials.items()}
    text = b"".join(name_of.get(i) or tokenizer.decode_bytes([i]) for i in ids.tolist()).decode()
    rendered = template.render(talk([attack, "y", attack]))
    if name in ("llama 3", "mistral, special"):  # they take spaces, and put some, at special tokens
        text, rendered = "".join(text.split()), "".join(rendered.split())
    assert text == rendered


def test_the_turn_s_end_ends_an_answer(family):
    name, _, tokenizer, template = family
    if name in END_OF_TURN:
        end = tokenizer.special_ids[END_OF_TURN[name]]
        assert end in tokenizer.end_ids and end in template.end_ids(tokenizer)


ANSWERED = ("  Hello,\n world  ", "Hi. é 你好 🙂", " x", "if x:\n\tpass")


def test_turns_of_the_assistant_are_found(family):
    name, theirs, tokenizer, template = family
    messages = talk(ANSWERED)
    chat = TemplateChat(tokenizer, template)
    (ids, turns) = chat.render([messages])[0]
    whole = template.render(messages, add_generation_prompt=False)
    if "strftime_now" not in template.source:
        assert ids.tolist() == their_ids(theirs, messages)
    spelt = [tokenizer.decode(ids[start : end - 1]).strip() for start, end in turns]
    assert spelt == [ANSWERED[1], ANSWERED[3]] and all(text in whole for text in spelt)
    assert all(ids[end - 1] in chat.end_ids for _, end in turns)
    for number, (start, _) in zip((1, 3), turns, strict=True):
        assert chat.prompts([messages[:number]])[0].tolist() == ids[:start].tolist()
    if name.startswith("mistral"):  # says what the system says only where it is asked
        with pytest.raises(ChatTemplateError, match="must write the same before message 2"):
            chat.render([talk(ANSWERED, "Be brief.")])


def test_our_own_template_is_the_same_by_both_roads(family):
    _, _, tokenizer, _ = family
    plain = PlainChat(tokenizer)
    slow = TemplateChat(tokenizer, plain.template)
    conversations = [talk(contents, " Be") for contents in CONTENTS]
    for fast, by_template in zip(
        plain.render(conversations), slow.render(conversations), strict=True
    ):
        assert fast.ids.tolist() == by_template.ids.tolist()
        assert fast.turns == by_template.turns


@settings(max_examples=20)
@given(contents=st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_any_text_between_special_tokens_is_encoded_as_theirs(family, contents):
    """Without a template, which takes a process each time: text and ids, in turns."""
    _, theirs, tokenizer, _ = family
    name, token = next(iter(tokenizer.special_ids.items()))
    parts = [part for text in contents for part in (text, token)]
    if not any(text in "".join(contents) for text in tokenizer.special_ids):
        text = "".join(part if isinstance(part, str) else name for part in parts)
        assert (
            tokenizer.encode_parts(parts).tolist()
            == theirs(text, add_special_tokens=False)["input_ids"]
        )


def test_a_sentencepiece_model_of_llama_2(tmp_path):
    """Its special tokens are control symbols; the space before a text is not put behind them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": MISTRAL, **tokens}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"eos_token_id": 2, "model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer, template = load_pretrained_tokenizer(tmp_path), load_chat_template(tmp_path)
    for contents in CONTENTS:
        ids = template.encode(tokenizer, talk(contents)).tolist()
        assert ids == their_ids(theirs, talk(contents), add_generation_prompt=True)
    assert 2 not in template.encode(tokenizer, talk(["</s>"]))
    assert 2 in their_ids(theirs, talk(["</s>"]))
