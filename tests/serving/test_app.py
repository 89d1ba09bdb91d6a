"""The server itself, over sockets of this machine."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest

from genai_jax.serving.app import bind, make_server, url_of
from tests.serving.tiny_service import TEXT, Pace, make_service

HEADERS = {"Content-Type": "application/json"}
SAY = {"model": "tiny", "prompt": [48], "max_tokens": 13}


@contextlib.contextmanager
def serving(pace=None, **options):
    """Serve in a thread of its own; ends it as a signal would."""
    service = make_service(pace=pace, **options)
    ready = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = make_server(service, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert ready.wait(60)
        yield service, bound.getsockname()[1], server
    finally:
        server.should_exit = True
        if pace:
            pace.release()
        thread.join(60)
        assert not thread.is_alive()
        assert not service.worker._thread.is_alive()


def send(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
    return connection


@contextlib.contextmanager
def post(port, body):
    with contextlib.closing(send(port, body)) as connection:
        yield connection.getresponse()


def until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_server_answers_until_it_is_told_to_end():
    with serving() as (_, port, _):
        for _ in range(2):
            with post(port, SAY) as response:
                assert response.status == 200
                assert json.load(response)["choices"][0]["text"] == "0123456789 na"
        with post(port, SAY | {"stream": True, "stop": "café"}) as response:
            assert response.getheader("content-type").startswith("text/event-stream")
            events = response.read().decode().split("\n\n")
            assert events[-2:] == ["data: [DONE]", ""]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_breaks_frees_its_rows(stream):
    pace = Pace()
    with serving(pace, rows=2) as (service, port, _):
        pace.hold()
        ask = SAY | {"max_tokens": 150, "n": 2, "stream": stream, "logit_bias": {"256": -100}}
        raw = socket.create_connection(("127.0.0.1", port), timeout=60)
        data = json.dumps(ask).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        raw.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        if stream:
            pace.release(1)
            assert b"200 OK" in raw.recv(1 << 16)
        until(lambda: service.worker._texts)
        raw.close()
        until(lambda: service._under_way == 0)
        pace.release()
        until(lambda: not service.worker._engine.busy)
        assert sum(pace.asked) < 100  # the engine did not go on to the end
        with post(port, SAY) as response:
            assert json.load(response)["choices"][0]["text"] == TEXT[:13]


def test_ending_ends_who_is_under_way():
    pace = Pace()
    with serving(pace) as (service, port, server):
        pace.hold()
        with contextlib.closing(send(port, SAY | {"max_tokens": 50})) as connection:
            until(lambda: service.worker._texts)
            server.should_exit = True
            until(lambda: service.worker._closed)
            pace.release()
            response = connection.getresponse()
            assert response.status == 503
            assert json.load(response)["error"]["code"] == "shutting_down"


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded():
    with contextlib.closing(bind("127.0.0.1", 0)) as first:
        first.listen()
        with pytest.raises(OSError):
            bind("127.0.0.1", first.getsockname()[1])


def test_addresses_are_shown_as_clients_need_them():
    with contextlib.closing(bind("127.0.0.1", 0)) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
    if socket.has_ipv6:
        with contextlib.suppress(OSError), contextlib.closing(bind("::1", 0)) as bound:
            assert url_of(bound) == f"http://[::1]:{bound.getsockname()[1]}"
