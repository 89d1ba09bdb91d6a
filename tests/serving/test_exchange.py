"""Requests over HTTP, as an application sees them: answered whole, in parts, or not."""

import asyncio
import contextlib
import json

import pytest

from genai_jax.serving.app import make_app
from genai_jax.serving.asked import Limits
from genai_jax.serving.choices import Delta
from genai_jax.serving.exchange import Inbox
from genai_jax.serving.worker import Update
from tests.serving.tiny_service import TEXT, Pace, make_service, random_model

HEADERS = [(b"content-type", b"application/json")]
SAY = {"model": "tiny", "prompt": [48], "max_tokens": 13}  # recites from the beginning
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


class Client:
    """A client of an ASGI application, which may go away or stop reading."""

    def __init__(self, app, path, body=None, method=None, headers=HEADERS, parts=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._incoming = asyncio.Queue()
        parts = [data] if parts is None else parts
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
        self.reads = asyncio.Event()
        self.reads.set()
        self.begun = asyncio.Event()
        self.sent = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method or ("GET" if body is None else "POST"),
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def _send(self, message):
        await self.reads.wait()
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.begun.set()

    def leave(self):
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def wait(self):
        async with asyncio.timeout(60):
            await self.task
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def data(self):
        assert not self.sent[-1].get("more_body", False), "not ended"
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def json(self):
        return json.loads(self.data)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        parts = self.data.decode("ascii").split("\n\n")
        assert parts.pop() == ""
        assert all(part.startswith("data: ") for part in parts)
        return [part.removeprefix("data: ") for part in parts]


def serve(check, *, pace=None, **options):
    """Run a check beside an application, which ends with it."""

    async def main():
        service = make_service(pace=pace, **options)
        app = make_app(service)
        try:
            await check(app, service)
            assert service._under_way == 0
            if not service.worker._closed:
                await settle(service)
        finally:
            service.worker.close()
            if pace:
                pace.release()
            await service.end()

    asyncio.run(main())


async def until(holds):
    """Wait until something holds."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def settle(service):
    """Wait until the worker has nothing to do."""
    await until(lambda: not service.worker._texts and not service.worker._engine.busy)


def told(service):
    """How many requests the worker has been told of, of those that have not ended."""
    return len(service.worker._texts) + service.worker._commands.qsize()


def put_together(events):
    """Make of a stream's parts what the whole answer would be."""
    *parts, done = events
    assert done == "[DONE]"
    parts = [json.loads(part) for part in parts]
    choices, usage = {}, None
    for part in parts:
        usage = part.pop("usage", None) or usage
        for choice in part.pop("choices"):
            mine = choices.setdefault(choice["index"], {"text": "", "role": None, "logs": []})
            said = choice.get("delta", choice)
            mine["text"] += said.get("text", said.get("content", ""))
            mine["role"] = said.get("role", mine["role"])
            mine["logs"] += [choice["logprobs"]] if choice["logprobs"] else []
            assert "finish_reason" not in mine, "something came after the end"
            if choice["finish_reason"]:
                mine["finish_reason"] = choice["finish_reason"]
        assert part == parts[0] and part["id"]  # who and when, all alike
    return choices, usage


def test_a_completion_is_answered():
    async def check(app, service):
        client = await Client(
            app, "/v1/completions", SAY | {"n": 2, "prompt": [[48], [48, 49]]}
        ).wait()
        assert client.status == 200 and client.headers[b"content-type"] == b"application/json"
        answer = client.json
        assert answer.pop("id").startswith("cmpl-") and answer.pop("created") > 1e9
        texts = ["0123456789 na"] * 2 + ["123456789 na\ufffd"] * 2
        assert answer == {
            "object": "text_completion",
            "model": "tiny",
            "system_fingerprint": "fp_tiny",
            "choices": [
                {"index": i, "text": text, "logprobs": None, "finish_reason": "length"}
                for i, text in enumerate(texts)
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 52, "total_tokens": 55},
        }

    serve(check)


def test_a_conversation_is_answered():
    async def check(app, service):
        stop = {"stop": "café", "max_tokens": 100}
        client = await Client(app, "/v1/chat/completions", CHAT | stop).wait()
        answer = client.json
        assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
        (choice,) = answer["choices"]
        prompt = len("user: Hi\nassistant:")
        assert choice == {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": TEXT.encode()[prompt - 1 :].decode(errors="replace").split("café")[0],
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert answer["usage"]["prompt_tokens"] == prompt

    serve(check)


@pytest.mark.parametrize("stop", [None, "1", ["é", "e"]])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_put_together_is_the_whole_answer(path, stop):
    """Of a random model, whose bytes are rarely whole characters."""
    ask = (SAY | {"logprobs": 2}) if path == "/v1/completions" else CHAT
    if "messages" in ask:
        ask = ask | {"logprobs": True, "top_logprobs": 2}
    ask = ask | {"max_tokens": 50, "seed": 4, "n": 2, "stop": stop}
    streaming = {"stream": True, "stream_options": {"include_usage": True}}

    async def check(app, service):
        whole = (await Client(app, path, ask).wait()).json
        client = await Client(app, path, ask | streaming).wait()
        assert client.headers[b"content-type"].startswith(b"text/event-stream")
        choices, usage = put_together(client.events)
        assert usage == whole["usage"]
        assert len(client.events) > 10
        for choice in whole["choices"]:
            mine = choices[choice["index"]]
            said = choice.get("message", {"content": choice.get("text"), "role": None})
            assert (mine["text"], mine["role"]) == (said["content"], said["role"])
            assert mine["finish_reason"] == choice["finish_reason"]
            for name, values in choice["logprobs"].items():
                joined = [x for log in mine["logs"] for x in log[name] or []]
                assert joined == (values or [])
                assert values is None or values

    serve(check, model=random_model())


def test_log_probabilities_say_what_the_model_thinks():
    async def check(app, service):
        ask = SAY | {"max_tokens": 3, "prompt": [1] * 14, "seed": 1}  # two halves of ï, and v
        logs = (await Client(app, "/v1/completions", ask | {"logprobs": 0}).wait()).json
        assert logs["choices"][0]["logprobs"] == {
            "tokens": ["bytes:\\xc3", "bytes:\\xaf", "v"],
            "token_logprobs": [0, 0, 0],
            "top_logprobs": None,
            "text_offset": [0, 0, 1],
        }
        ask = ask | {"prompt": [1] * 16, "logprobs": 2, "logit_bias": {"118": -100, "256": -100}}
        logs = (await Client(app, "/v1/completions", ask).wait()).json["choices"][0]["logprobs"]
        # What was drawn beside the likeliest, which the bias forbade.
        assert logs["top_logprobs"][0]["v"] == pytest.approx(0, abs=1e-6)
        assert len(logs["top_logprobs"][0]) == 3
        assert logs["token_logprobs"][0] == pytest.approx(-200, abs=1)

    serve(check)


def test_log_probabilities_of_a_conversation():
    async def check(app, service):
        ask = CHAT | {"logprobs": True, "top_logprobs": 1, "max_tokens": 2}
        ask["messages"] = [{"role": "user", "content": "H"}]  # 18 tokens: from character 17
        answer = (await Client(app, "/v1/chat/completions", ask).wait()).json
        content = answer["choices"][0]["logprobs"]["content"]
        byte = TEXT.encode()[17]
        name = f"bytes:\\x{byte:02x}" if byte > 127 else chr(byte)
        assert content[0]["token"] == name and content[0]["bytes"] == [byte]
        assert content[0]["top_logprobs"] == [{"token": name, "logprob": 0.0, "bytes": [byte]}]

    serve(check)


def test_the_end_of_a_document_is_called_by_its_name():
    async def check(app, service):
        ask = SAY | {"prompt": [1] * len(TEXT.encode()), "max_tokens": 2, "logprobs": 1}
        answer = (await Client(app, "/v1/completions", ask).wait()).json
        (choice,) = answer["choices"]
        assert choice["text"] == TEXT[-1] and choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2
        ask = ask | {
            "logit_bias": {"256": -100},
            "logprobs": 3,
            "prompt": [1] * (len(TEXT.encode()) + 1),
        }
        answer = (await Client(app, "/v1/completions", ask).wait()).json
        assert "<|endoftext|>" in answer["choices"][0]["logprobs"]["top_logprobs"][0]

    serve(check)


def test_json_is_valid_whatever_the_model_is():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    json_schema = {"name": "ab", "schema": schema, "strict": True}

    async def check(app, service):
        form = {"response_format": {"type": "json_schema", "json_schema": json_schema}}
        ask = CHAT | form | {"max_tokens": 40, "n": 3, "seed": 1}
        answer = (await Client(app, "/v1/chat/completions", ask).wait()).json
        for choice in answer["choices"]:
            value = json.loads(choice["message"]["content"])
            assert isinstance(value["a"], int) and value["b"] in "xy" and len(value) == 2
            assert choice["finish_reason"] == "stop"
        ask = CHAT | {"response_format": {"type": "json_object"}, "max_tokens": 60}
        answer = (await Client(app, "/v1/chat/completions", ask).wait()).json
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)
        ask = SAY | {"guided_regex": "(ab){2,3}c"}
        answer = (await Client(app, "/v1/completions", ask).wait()).json
        assert answer["choices"][0]["text"] in ("ababc", "abababc")

    serve(check, model=random_model())


def test_what_else_there_is():
    async def check(app, service):
        about = (await Client(app, "/v1/models").wait()).json
        assert about["object"] == "list"
        assert about["data"] == [(await Client(app, "/v1/models/tiny").wait()).json]
        assert about["data"][0]["id"] == "tiny" and about["data"][0]["created"] == 7
        assert (await Client(app, "/health").wait()).json == {"status": "ok"}
        for path, status in [("/v1/models/x", 404), ("/v1/x", 404), ("/v1/completions", 405)]:
            client = await Client(app, path).wait()
            assert client.status == status
            assert set(client.error) == {"message", "type", "param", "code"}

    serve(check)


def test_errors_are_openais_objects():
    async def check(app, service):
        client = await Client(
            app, "/v1/completions", SAY | {"temperature": 3, "stream": True}
        ).wait()
        assert client.status == 400
        assert client.json == {
            "error": {
                "message": "`temperature` must be a number from 0 to 2; got 3.",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": None,
            }
        }
        assert (await Client(app, "/v1/completions", b"{").wait()).error["code"] == "bad_json"
        other = await Client(app, "/v1/completions", SAY, headers=[]).wait()
        assert other.status == 400 and "Content-Type" in other.error["message"]

    serve(check)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_is_bounded(told):
    async def check(app, service):
        length = [(b"content-length", b"101")] if told else []
        parts = [b"x" * 50, b"x" * 50, b"x"]
        client = Client(app, "/v1/completions", SAY, headers=HEADERS + length, parts=parts)
        await client.wait()
        assert client.status == 413 and client.error["code"] == "body_too_large"
        assert client.headers[b"connection"] == b"close"
        fits = json.dumps(SAY).encode().ljust(100)
        client = Client(app, "/v1/completions", SAY, parts=[fits[:50], b"", fits[50:]])
        assert (await client.wait()).status == 200

    serve(check, limits=Limits(body=100))


def test_a_body_that_does_not_come_is_not_waited_for():
    async def check(app, service):
        client = Client(app, "/v1/completions", SAY)
        client._incoming.get_nowait()
        assert (await client.wait()).status == 408

    serve(check, limits=Limits(delivery=0.05))


def test_a_client_that_leaves_before_it_has_asked_is_forgotten():
    async def check(app, service):
        client = Client(app, "/v1/completions", SAY)
        client._incoming.get_nowait()
        client.leave()
        assert (await client.wait()).sent == []

    serve(check)


def test_a_key_is_asked_for():
    async def check(app, service):
        for shown in [b"", b"Bearer", b"Bearer other", b"secret", b"Bearer secret2"]:
            headers = [*HEADERS, (b"authorization", shown)]
            for path, body in [("/v1/completions", SAY), ("/v1/models", None)]:
                client = await Client(app, path, body, headers=headers).wait()
                assert (client.status, client.error["code"]) == (401, "invalid_api_key")
                assert b"secret" not in client.data
        headers = [*HEADERS, (b"authorization", b"Bearer secret")]
        assert (await Client(app, "/v1/completions", SAY, headers=headers).wait()).status == 200
        assert (await Client(app, "/v1/models", headers=headers).wait()).status == 200
        assert (await Client(app, "/health").wait()).status == 200

    serve(check, api_key="secret")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(stream):
    pace = Pace()

    async def check(app, service):
        pace.hold()
        ask = SAY | {"max_tokens": 150, "n": 2, "stream": stream, "stop_token_ids": []}
        leaving = Client(app, "/v1/completions", ask)
        if stream:
            pace.release(1)
            await leaving.begun.wait()
        else:
            await until(lambda: service.worker._texts)
        waiting = Client(app, "/v1/completions", SAY | {"max_tokens": 3})
        await until(lambda: told(service) == 3)
        leaving.leave()
        await leaving.wait()
        assert service._under_way == 1
        # Two steps: one that was under way, one for who was waiting. Not 150 tokens.
        pace.release(2)
        await waiting.wait()
        assert waiting.json["choices"][0]["text"] == "012"
        assert not any(b"DONE" in message.get("body", b"") for message in leaving.sent)
        pace.release()

    serve(check, pace=pace, rows=2)


def test_too_many_requests_are_told_to_come_again():
    pace = Pace()

    async def check(app, service):
        pace.hold()
        clients = [Client(app, "/v1/completions", SAY) for _ in range(2)]
        await until(lambda: told(service) == 2)
        client = await Client(app, "/v1/completions", SAY).wait()
        assert client.status == 429 and client.headers[b"retry-after"] == b"1"
        assert client.error["type"] == "rate_limit_error"
        pace.release()
        for client in clients:
            assert (await client.wait()).status == 200
        assert (await Client(app, "/v1/completions", SAY).wait()).status == 200

    serve(check, pace=pace, limits=Limits(requests=2))


@pytest.mark.parametrize("stream", [False, True])
def test_time_ends_a_text_with_what_it_has(stream):
    pace = Pace()

    async def check(app, service):
        pace.hold()
        ask = SAY | {"max_tokens": 100, "stream": stream}
        client = Client(app, "/v1/completions", ask)
        pace.release(1)
        await until(lambda: pace.asked)
        await until(service.worker._commands.qsize)  # it is told that time is over
        pace.release()
        await client.wait()
        if stream:
            choices, _ = put_together(client.events)
            text, reason = choices[0]["text"], choices[0]["finish_reason"]
        else:
            (choice,) = client.json["choices"]
            text, reason = choice["text"], choice["finish_reason"]
        assert reason == "length" and "0123".startswith(text[:4]) and 0 < len(text) < len(TEXT)

    serve(check, pace=pace, limits=Limits(seconds=1))


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_nothing_when_time_is_over_is_told(stream):
    pace = Pace()

    async def check(app, service):
        pace.hold()
        first = Client(app, "/v1/completions", SAY | {"n": 2, "max_tokens": 150})
        await until(lambda: service.worker._texts)
        second = Client(app, "/v1/completions", SAY | {"stream": stream})
        await until(lambda: told(service) == 3)
        pace.release(1)  # of three texts, the third has no row
        await until(lambda: len(service.worker._texts) == 3)
        service.worker.expire(service.worker._texts[2].job)
        pace.release(1)
        await second.wait()
        assert second.status == 503 and second.error["code"] == "timeout"
        assert b"retry-after" in second.headers
        pace.release()
        assert (await first.wait()).status == 200

    serve(check, pace=pace, rows=2)


def test_failures_have_a_status_of_their_own_until_a_stream_has_begun(caplog):
    pace = Pace()

    async def check(app, service):
        for stream in (False, True):
            pace.failures = 1
            client = await Client(app, "/v1/completions", SAY | {"stream": stream}).wait()
            assert client.status == 500 and client.error["type"] == "server_error"
            assert (await Client(app, "/v1/completions", SAY).wait()).status == 200
        pace.hold()
        client = Client(app, "/v1/completions", SAY | {"stream": True})
        pace.release(1)
        await client.begun.wait()
        pace.failures = 1
        pace.release()
        await client.wait()
        assert client.status == 200
        *parts, last = map(json.loads, client.events)
        assert parts and last["error"]["code"] == "internal_error"
        assert (await Client(app, "/v1/completions", SAY).wait()).status == 200
        pace.failures = 2
        assert (await Client(app, "/v1/completions", SAY).wait()).status == 500
        await asyncio.to_thread(service.worker.join)
        assert (await Client(app, "/health").wait()).status == 503
        assert (await Client(app, "/v1/completions", SAY).wait()).status == 500

    serve(check, pace=pace)


def test_a_fault_of_ours_is_not_told_to_strangers(caplog):
    async def check(app, service):
        client = await Client(app, "/v1/chat/completions", CHAT).wait()
        assert client.status == 500 and "secret path" not in client.data.decode()
        assert "secret path" in caplog.text

    class Broken:
        def encode(self, tokenizer, messages):
            raise OSError("secret path")

        def end_ids(self, tokenizer):
            return ()

    serve(check, chat=Broken())


def test_shutting_down_ends_requests_and_says_so():
    pace = Pace()

    async def check(app, service):
        pace.hold()
        stream = Client(app, "/v1/completions", SAY | {"stream": True, "max_tokens": 100})
        pace.release(1)
        await stream.begun.wait()
        whole = Client(app, "/v1/completions", SAY)
        await until(lambda: told(service) == 2)
        service.worker.close()
        pace.release()
        assert (await whole.wait()).status == 503
        assert whole.error["code"] == "shutting_down"
        await stream.wait()
        assert json.loads(stream.events[-1])["error"]["code"] == "shutting_down"
        late = await Client(app, "/v1/completions", SAY).wait()
        assert late.status == 503 and b"retry-after" in late.headers

    serve(check, pace=pace)


def test_a_reader_who_does_not_read_is_given_up_and_holds_nobody_up():
    async def check(app, service):
        ask = SAY | {
            "stream": True,
            "max_tokens": 150,
            "stop_token_ids": [],
            "logit_bias": {"256": -100},
        }
        slow = Client(app, "/v1/completions", ask)
        await slow.begun.wait()
        slow.reads.clear()
        other = await Client(app, "/v1/completions", SAY).wait()
        assert other.status == 200
        await settle(service)  # its row is free, however far it was
        slow.reads.set()
        await slow.wait()
        assert json.loads(slow.events[-1])["error"]["code"] == "slow_reader"

    pace = Pace()
    serve(check, limits=Limits(unread=3), pace=pace)


def test_a_reader_who_never_reads_is_cut_off():
    async def check(app, service):
        assert (await Client(app, "/v1/completions", SAY).wait()).status == 200
        service.limits = Limits(seconds=1, delivery=0.1)
        slow = Client(app, "/v1/completions", SAY | {"stream": True})
        slow.reads.clear()
        await slow.wait()
        assert slow.sent == []

    serve(check)


def test_an_inbox_is_bounded():
    async def main():
        called = []
        inbox = Inbox(2)
        inbox.when_full = lambda: called.append(True)
        for i in range(5):
            inbox.put(Update(0, Delta("", ()), None, i))
        await asyncio.sleep(0.05)
        assert called == [True] and len(inbox._events) == 1
        with contextlib.suppress(Exception):
            await inbox.take()
        return inbox

    inbox = asyncio.run(main())
    inbox.put(Update(0, Delta("", ()), None, 9))  # the loop has ended: nobody listens
