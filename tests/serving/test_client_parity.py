"""OpenAI's own client beside the server, over a socket of this machine."""

import json
import os
import time

import pytest

from tests.serving.test_app import serving
from tests.serving.tiny_service import TEXT, Pace, random_model

if not os.environ.get("GENAI_JAX_PARITY"):  # where it is set, a missing package is a failure
    pytest.importorskip("openai", reason="parity needs the extra [parity]")
import openai

RECITE = {"model": "tiny", "prompt": [48]}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def client():
    """Of a server whose model recites."""
    with serving(api_key="secret") as (_, port, _), connect(port) as found:
        yield found


@pytest.fixture(scope="module")
def random_client():
    with serving(model=random_model(), api_key="secret") as (_, port, _), connect(port) as found:
        yield found


def connect(port):
    return openai.OpenAI(
        api_key="secret", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, timeout=60
    )


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "genai_jax"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completions(client):
    answer = client.completions.create(**RECITE, max_tokens=13, n=2)
    assert [choice.text for choice in answer.choices] == ["0123456789 na"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert answer.usage.total_tokens == 27 and answer.system_fingerprint == "fp_tiny"
    answer = client.completions.create(**RECITE, max_tokens=100, stop=["tea"], logprobs=1)
    (choice,) = answer.choices
    assert choice.text == TEXT.split("tea")[0] and choice.finish_reason == "stop"
    assert len(choice.logprobs.tokens) == len(choice.text.encode())
    assert choice.logprobs.top_logprobs[0] == {"0": 0.0}


def test_chat(client):
    ask = TALK | {"max_completion_tokens": 5, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**ask).choices
    assert choice.message.role == "assistant" and choice.message.tool_calls is None
    assert len(choice.logprobs.content) == 5
    for token in choice.logprobs.content:
        assert token.logprob == 0 and len(token.top_logprobs) == 3
    said = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert said.decode(errors="replace") == choice.message.content
    # What was answered goes back as it came.
    again = [*TALK["messages"], choice.message.model_dump(), *TALK["messages"]]
    assert client.chat.completions.create(**TALK | {"messages": again}, max_tokens=1).choices


def test_streaming(random_client):
    ask = RECITE | {"max_tokens": 40, "seed": 3, "n": 2, "logprobs": 2}
    whole = random_client.completions.create(**ask)
    texts, ids = ["", ""], set()
    with random_client.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            ids.add(chunk.id)
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert chunk.usage == whole.usage and len(ids) == 1


def test_streaming_of_a_conversation(client):
    ask = TALK | {"max_tokens": 60, "logprobs": True, "top_logprobs": 2, "stop": ["more", "zzz"]}
    whole = client.chat.completions.create(**ask)
    with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs == whole.choices[0].logprobs
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage == whole.usage


def test_json_schema(random_client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = random_client.chat.completions.create(
        **TALK, n=2, seed=1, max_tokens=80, response_format=form
    )
    for choice in answer.choices:
        value = json.loads(choice.message.content)
        assert set(value) == {"name", "age"} and isinstance(value["age"], int)
    form = {"type": "json_object"}
    answer = random_client.chat.completions.create(**TALK, max_tokens=80, response_format=form)
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_our_own_settings(random_client):
    extra = {"guided_regex": "[a-c]{4}", "top_k": 3, "min_p": 0.01}
    answer = random_client.completions.create(**RECITE, extra_body=extra)
    assert len(answer.choices[0].text) == 4 and set(answer.choices[0].text) <= set("abc")


def test_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**RECITE, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="Did you mean `top_k`"):
        client.completions.create(**RECITE, extra_body={"topk": 3})
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**RECITE, max_tokens=1000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**TALK | {"model": "other"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").models.list()


def test_a_failure_in_a_stream_is_an_error():
    pace = Pace()
    with serving(pace) as (_, port, _), connect(port) as client:
        pace.hold()
        pace.release(1)
        with client.completions.create(**RECITE, max_tokens=50, stream=True) as stream:
            assert next(iter(stream)).choices[0].text == "0123"
            pace.failures = 1
            pace.release()
            with pytest.raises(openai.APIError, match="the server failed"):
                list(stream)


def test_a_client_that_closes_its_stream_frees_the_row():
    pace = Pace()
    with serving(pace, rows=2) as (service, port, _), connect(port) as client:
        pace.hold()
        pace.release(1)
        ask = RECITE | {"max_tokens": 150, "n": 2, "logit_bias": {"256": -100}}
        with client.completions.create(**ask, stream=True) as stream:
            next(iter(stream))
        end = time.monotonic() + 60
        while service._under_way and time.monotonic() < end:
            time.sleep(0.01)
        pace.release()
        assert client.completions.create(**RECITE, max_tokens=3).choices[0].text == "012"
        assert sum(pace.asked) < 100
