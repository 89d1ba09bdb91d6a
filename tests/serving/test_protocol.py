"""What clients may ask for, and exactly what they are told where they may not."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.serving.asked import Asked, Limits
from genai_jax.serving.errors import ApiError
from genai_jax.serving.fields import parse_json
from genai_jax.serving.protocol import read_request
from tests.serving.tiny_service import CONTEXT, TOKENIZER, make_served

SERVED = make_served()
LIMITS = Limits(choices=4, messages=3)
USER = {"role": "user", "content": "Hi"}


def read(kind="completion", served=SERVED, **fields):
    body = {"model": "tiny"} | ({"prompt": "Hi"} if kind == "completion" else {"messages": [USER]})
    return read_request(kind, body | fields, served, LIMITS)


def refused(kind="completion", served=SERVED, **fields):
    with pytest.raises(ApiError) as caught:
        read(kind, served, **fields)
    return caught.value


def prompts(asked):
    return [np.asarray(request.prompt).tolist() for request in asked.requests]


def test_what_is_not_said_is_as_openai_has_it():
    asked = read()
    (request,) = asked.requests
    assert prompts(asked) == [[256, *b"Hi"]]  # as documents begin
    assert request.sampling == SamplingConfig()
    assert (request.max_tokens, request.overflow, request.stop_ids) == (16, "error", (256,))
    assert (asked.stop, asked.logprobs, asked.stream, asked.include_usage) == (
        (),
        None,
        False,
        False,
    )
    (request,) = read("chat").requests
    assert request.max_tokens == CONTEXT - len(request.prompt)  # all the room there is
    assert request.stop_ids == (256, 0)  # the template's too


def test_null_is_as_if_it_were_not_given():
    names = ["max_tokens", "temperature", "n", "stop", "seed", "best_of", "suffix", "logit_bias"]
    asked = read(**dict.fromkeys([*names, "user", "stream_options", "response_format"]))
    assert asked.requests[0].sampling == SamplingConfig()


def test_every_setting_arrives():
    asked = read(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        typical_p=0.8,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=1.5,
        logit_bias={"65": -100, "66": 100, "0": -99.5},
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[10, 256],
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=3,
        overflow="roll",
        user="me",
    )
    (request,) = asked.requests
    assert request.sampling == SamplingConfig(
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=1.5,
        logit_bias={65: -math.inf, 66: 100.0, 0: -99.5},
        min_tokens=2,
    )
    assert (request.max_tokens, request.seed, request.overflow) == (9, 5, "roll")
    assert (request.stop_ids, request.alternatives) == ((256, 10), 3)
    assert (asked.stop, asked.logprobs) == (("a", "b"), 3)
    assert asked.stream and asked.include_usage


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [[256]]),
        ("é", [[256, 0xC3, 0xA9]]),
        (["a", ""], [[256, 97], [256]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        (["a", [98]], [[256, 97], [98]]),
    ],
)
def test_prompts_are_texts_or_ids(prompt, expected):
    asked = read(prompt=prompt)
    assert prompts(asked) == expected
    assert asked.prompt_tokens == sum(map(len, expected))


def test_texts_of_a_prompt_have_seeds_in_a_row_whatever_other_prompts_there_are():
    asked = read(prompt=["a", "b"], n=2, seed=2**63 - 1)
    assert prompts(asked) == [[256, 97]] * 2 + [[256, 98]] * 2
    seeds = [request.seed for request in asked.requests]
    assert seeds == [2**63 - 1, 2**63] * 2
    assert asked.prompt_tokens == 4  # each prompt once


def test_a_least_length_raises_the_default_of_the_most():
    assert read(min_tokens=17).requests[0].max_tokens == 17


def test_without_a_seed_no_two_requests_are_alike():
    assert len({read().requests[0].seed for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0, 0.0), (1e-39, 0.0), (1e-5, 0.0), (1e-4, 1e-4), (2, 2.0)]
)
def test_a_temperature_that_would_overflow_logits_is_none(temperature, expected):
    assert read(temperature=temperature).requests[0].sampling.temperature == expected


def test_logprobs_of_a_conversation_are_asked_for_in_two_fields():
    for fields, expected in [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ]:
        assert read("chat", **fields).logprobs == expected


def test_messages_are_what_the_template_reads():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    echo = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}
    asked = read("chat", messages=[{"role": "developer", "content": parts}, echo, USER])
    text = "system: a\nb\nassistant: x\nuser: Hi\nassistant:"
    assert prompts(asked) == [list(text.encode())]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_conversation_may_bound_its_answer_by_either_name(name):
    assert read("chat", **{name: 7}).requests[0].max_tokens == 7
    assert read("chat", max_tokens=7, max_completion_tokens=7).requests[0].max_tokens == 7


@pytest.mark.parametrize("overflow", ["truncate", "roll"])
def test_a_conversation_that_overflows_and_may_has_room_for_an_answer(overflow):
    long = [{"role": "user", "content": "x" * 500}]
    assert read("chat", messages=long, overflow=overflow).requests[0].max_tokens == CONTEXT // 2


def test_formats_are_constraints():
    name = {"name": "x", "schema": {"enum": ["a"]}, "strict": True}
    formats = [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": name}},
        {"guided_regex": "ab?"},
    ]
    for kind in ("chat", "completion"):
        assert read(kind, response_format={"type": "text"}).requests[0].automaton is None
        for fields in formats:
            assert read(kind, max_tokens=90, **fields).requests[0].automaton is not None


STOP = "`stop` must be a text of 1 to 256 characters, or a list of at most 4 of them"
PROMPT = "`prompt` must be a text, a list of texts, a list of ids, or a list of lists of ids;"
NOTHING_LEFT = "`logit_bias` and `min_tokens` must leave something to draw;"
# Field by field: what was sent, and what exactly is said.
BAD = [
    ({"max_tokens": 0}, "`max_tokens` must be a whole number from 1 to 65536; got 0."),
    ({"max_tokens": True}, "`max_tokens` must be a whole number from 1 to 65536; got true."),
    ({"max_tokens": 1.5}, "`max_tokens` must be a whole number from 1 to 65536; got 1.5."),
    (
        {"max_tokens": 10**400},
        f"`max_tokens` must be a whole number from 1 to 65536; got 1{'0' * 59}...",
    ),
    ({"temperature": -1}, "`temperature` must be a number from 0 to 2; got -1."),
    ({"temperature": "hot"}, "`temperature` must be a number from 0 to 2; got 'hot'."),
    ({"temperature": math.inf}, "`temperature` must be a number from 0 to 2; got inf."),
    ({"temperature": [1]}, "`temperature` must be a number from 0 to 2; got a list of 1."),
    ({"top_p": 0}, "`top_p` must be above 0, and at most 1; got 0. 1 keeps all tokens."),
    ({"top_k": -2}, "`top_k` must be a whole number from -1 to 2147483647; got -2."),
    ({"min_p": 2}, "`min_p` must be a number from 0 to 1; got 2."),
    (
        {"typical_p": 0.0},
        "`typical_p` must be above 0, and at most 1; got 0.0. 1 keeps all tokens.",
    ),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be a number from 0.01 to 100; got 0."),
    ({"presence_penalty": 3}, "`presence_penalty` must be a number from -2 to 2; got 3."),
    ({"frequency_penalty": -3}, "`frequency_penalty` must be a number from -2 to 2; got -3."),
    ({"n": 5}, "`n` must be a whole number from 1 to 4; got 5."),
    (
        {"seed": 2**63},
        "`seed` must be a whole number from -9223372036854775808 to 9223372036854775807;",
    ),
    ({"stream": 1}, "`stream` must be true or false; got 1."),
    ({"logprobs": 6}, "`logprobs` must be a whole number from 0 to 5; got 6."),
    ({"logprobs": True}, "`logprobs` must be a whole number from 0 to 5; got true."),
    ({"user": 5}, "`user` must be a text, of whole characters; got 5."),
    ({"stop": ""}, f"{STOP}; got ''."),
    ({"stop": ["a"] * 5}, f"{STOP}; got a list of 5."),
    ({"stop": ["x" * 257]}, f"{STOP}; got a list of 1."),
    ({"stop": {"a": 1}}, f"{STOP}; got an object of 1."),
    (
        {"stop_token_ids": [257]},
        "`stop_token_ids` must be at most 63 ids from 0 to 256; got a list",
    ),
    ({"stop_token_ids": list(range(64))}, "`stop_token_ids` must be at most 63 ids"),
    ({"stop_token_ids": "a"}, "`stop_token_ids` must be at most 63 ids from 0 to 256; got 'a'."),
    ({"logit_bias": []}, "`logit_bias` must be an object of at most 1024 ids and numbers;"),
    ({"logit_bias": {"257": 1}}, "`logit_bias` must name ids from 0 to 256, each once; got '257'."),
    ({"logit_bias": {"²": 1}}, "`logit_bias` must name ids from 0 to 256, each once; got '²'."),
    ({"logit_bias": {"1": 1, "01": 2}}, "`logit_bias` must name ids from 0 to 256, each once;"),
    (
        {"logit_bias": {"1": 101}},
        "`logit_bias` must be numbers from -100 to 100; got 101 for id 1.",
    ),
    ({"logit_bias": {str(i): -100 for i in range(257)}}, NOTHING_LEFT),
    ({"logit_bias": {str(i): -100 for i in range(256)}, "min_tokens": 1}, NOTHING_LEFT),
    ({"min_tokens": 17, "max_tokens": 16}, "`min_tokens` must not exceed `max_tokens`; got 17 and"),
    ({"overflow": "wrap"}, "`overflow` must be one of error, stop, truncate, roll; got 'wrap'."),
    ({"prompt": None}, PROMPT),
    ({"prompt": []}, PROMPT),
    ({"prompt": [[]]}, PROMPT),
    ({"prompt": [97, "a"]}, PROMPT),
    ({"prompt": [1.0]}, PROMPT),
    ({"prompt": [257]}, PROMPT),
    ({"prompt": [-1]}, PROMPT),
    ({"prompt": [True]}, PROMPT),
    ({"prompt": "\ud800"}, PROMPT),
    ({"prompt": ["a"] * 5}, "`prompt` must be at most 4 prompts with this `n`; got a list of 5."),
    ({"prompt": ["a"] * 3, "n": 2}, "`prompt` must be at most 2 prompts with this `n`;"),
    ({"stream_options": {}}, "`stream_options` must be given with `stream` true only;"),
    (
        {"stream": True, "stream_options": {"include_usge": 1}},
        "`stream_options.include_usge` is not",
    ),
    ({"response_format": "json"}, "`response_format` must be an object; got 'json'."),
    ({"response_format": {}}, "`response_format.type` must be one of text, json_object,"),
    ({"response_format": {"type": "xml"}}, "`response_format.type` must be one of text,"),
    (
        {"response_format": {"type": "json_schema"}},
        "`response_format.json_schema` must be an object;",
    ),
    (
        {"response_format": {"type": "text", "json_schema": {}}},
        "`response_format.json_schema` is not",
    ),
    ({"guided_regex": "("}, "`guided_regex`: "),
    ({"guided_regex": ""}, "what a text is held to must have a text that is not empty."),
    (
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        "`guided_regex` must not be",
    ),
    ({"guided_regex": "a{30}"}, "a constrained text must fit into what may be drawn;"),
    ({"guided_regex": "a", "min_tokens": 1}, "`forced`, `forbidden`, `min_tokens` and a bias of"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_what_cannot_be_is_refused_by_name(fields, said):
    error = refused(**fields)
    assert error.status == 400
    assert error.as_object()["error"]["type"] == "invalid_request_error"
    assert error.message.startswith(said)
    assert len(error.message) < 500


BAD_CHATS = [
    ({"messages": []}, "`messages` must be a list of 1 to 3 messages; got a list of 0."),
    ({"messages": [USER] * 4}, "`messages` must be a list of 1 to 3 messages; got a list of 4."),
    ({"messages": "Hi"}, "`messages` must be a list of 1 to 3 messages; got 'Hi'."),
    ({"messages": ["Hi"]}, "`messages[0]` must be an object; got 'Hi'."),
    ({"messages": [{"content": "a"}]}, "`messages[0].role` must be one of system, developer,"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "`messages[0].role` must be one of"),
    ({"messages": [{"role": "user"}]}, "`messages[0].content` must be a text, or a list of parts"),
    ({"messages": [USER | {"name": "Bo"}]}, "`messages[0].name` is not supported here; got 'Bo'."),
    ({"messages": [USER, USER | {"conten": ""}]}, "`messages[1].conten` is not a field that is"),
    (
        {"messages": [USER | {"content": "\udfff"}]},
        "`messages[0].content` must be a text, of whole",
    ),
    (
        {"messages": [USER | {"content": [{"type": "image_url"}]}]},
        "`messages[0].content[0].type` must be text; got 'image_url'.",
    ),
    ({"messages": [USER | {"content": "refuse me"}]}, "`messages`: the template refuses that."),
    ({"logprobs": 1}, "`logprobs` must be true or false; got 1."),
    ({"top_logprobs": 2}, "`top_logprobs` must be given with `logprobs` true only; got 2."),
    ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` must be a whole number from 0 to 20"),
    (
        {"max_tokens": 1, "max_completion_tokens": 2},
        "`max_tokens` must not contradict `max_completion_tokens`",
    ),
    ({"tools": [{}]}, "`tools` is not supported here; got a list of 1. Leave it out."),
    ({"functions": [{}]}, "`functions` is not supported here"),
    ({"tool_choice": "required"}, "`tool_choice` is not supported here; got 'required'."),
    ({"modalities": ["text", "audio"]}, "`modalities` is not supported here"),
    ({"audio": {"voice": "x"}}, "`audio` is not supported here; got an object of 1."),
    ({"store": 1}, "`store` is not supported here; got 1."),
    ({"prompt": "Hi"}, "`prompt` is not a field that is known here."),
]


@pytest.mark.parametrize(("fields", "said"), BAD_CHATS)
def test_conversations_that_cannot_be_are_refused_by_name(fields, said):
    assert refused("chat", **fields).message.startswith(said)


def test_what_asks_for_nothing_of_what_is_not_there_is_let_through():
    read(best_of=1, echo=False, suffix="")
    read("chat", tools=[], tool_choice="auto", store=False, modalities=["text"], functions=[])


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("echo", True), ("suffix", "x")])
def test_what_is_not_there_is_refused_by_name(name, value):
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_unknown_fields_get_the_nearest_name():
    error = refused(temprature=1)
    assert error.message.endswith("Did you mean `temperature`?")
    assert (error.param, error.code) == ("temprature", "unknown_parameter")
    assert "Did you mean" not in refused(zzz=1).message


def test_another_model_is_not_found():
    error = refused(model="other")
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert "'tiny'" in error.message
    assert refused(model=None).status == 400


def test_a_model_without_a_template_is_not_talked_with():
    error = refused("chat", dataclasses.replace(SERVED, chat=None))
    assert error.code == "no_chat_template" and "/v1/completions" in error.message


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("completion", {"prompt": "x" * CONTEXT}, "prompt"),
        ("completion", {"prompt": "x" * (CONTEXT - 10), "max_tokens": 16}, "prompt"),
        ("completion", {"prompt": "x" * CONTEXT, "overflow": "stop"}, "prompt"),
        ("chat", {"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    ],
)
def test_what_exceeds_the_context_is_refused_as_openai_does(kind, fields, param):
    error = refused(kind, **fields)
    assert (error.param, error.code) == (param, "context_length_exceeded")


def test_an_automaton_that_never_fits_would_wait_for_ever():
    made = SERVED.compile_regex("a|b")
    successors = np.zeros((1 << 12, 1 << 12), np.int32)
    successors[:, made.classes[-1]] = -1  # of the stop id
    huge = made._replace(successors=successors, distance=np.zeros(1 << 12, np.int32))
    served = dataclasses.replace(SERVED, compile_regex=lambda pattern: huge)
    assert "must fit into the tables" in refused(served=served, guided_regex="a").message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ApiError, match=r"the body must be JSON; .*Send an object"):
        parse_json(body)


def test_numbers_that_overflow_are_refused():
    assert "got inf" in refused(**parse_json(b'{"temperature": 1e999}')).message


@pytest.mark.parametrize("body", [None, 1, "x", [], [{}]])
def test_a_body_must_be_an_object(body):
    with pytest.raises(ApiError, match="the body must be an object; got"):
        read_request("completion", body, SERVED, LIMITS)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5,
)
_NAMES = (
    *("prompt", "messages", "max_tokens", "temperature", "top_p", "n", "stream", "stop", "seed"),
    *("stream_options", "logprobs", "logit_bias", "response_format", "overflow", "top_k", "echo"),
    *("stop_token_ids", "min_tokens", "tools", "user", "min_p", "presence_penalty", "model"),
)


@given(st.sampled_from(["completion", "chat"]), st.dictionaries(st.sampled_from(_NAMES), _VALUES))
def test_whatever_is_sent_is_read_or_refused(kind, fields):
    """Never another error; and whatever is refused can be said in JSON."""
    try:
        asked = read(kind, **fields)
    except ApiError as error:
        json.dumps(error.as_object(), allow_nan=False).encode("ascii")
    else:
        assert isinstance(asked, Asked)
        assert all(0 <= token < TOKENIZER.vocab_size for ids in prompts(asked) for token in ids)
