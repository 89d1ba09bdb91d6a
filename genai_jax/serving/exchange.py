"""One request over HTTP, from its first byte to its last: read, bounded, answered, or given up.

As an ASGI application: what it needs of a web server are `scope`, `receive` and `send`. A client
that goes away, however far things are, gives its row to others.
"""

import asyncio
import collections
import contextlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from genai_jax.serving.asked import Asked, Kind, Limits, Served
from genai_jax.serving.errors import ApiError, server_error, timed_out
from genai_jax.serving.fields import parse_json
from genai_jax.serving.protocol import read_request
from genai_jax.serving.responses import DONE, Answer, Written, as_event, as_json
from genai_jax.serving.worker import Event, Job, Update, Worker

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_LOG = logging.getLogger(__name__)
_JSON = (b"content-type", b"application/json")
_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies should pass parts on as they come
)


class Gone(Exception):
    """The client has gone away."""


class Service:
    """A model, the worker that runs it, and who is being answered.

    Attributes:
        served: The model.
        worker: Runs it.
        limits: How much anyone may ask for.
    """

    def __init__(
        self, served: Served, worker: Worker, limits: Limits | None = None, api_key: str = ""
    ) -> None:
        """Begin with nobody.

        Args:
            served: The model.
            worker: Runs it.
            limits: How much anyone may ask for.
            api_key: Which clients must show; empty asks for none.
        """
        self.served, self.worker = served, worker
        self.limits = limits or Limits()
        self._api_key = api_key.encode()
        self._under_way = 0
        # Templates and schemas take time, and must not hold up those who are being answered.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="reader")

    def check_key(self, headers: Headers) -> None:
        """Refuse who does not show the key.

        Raises:
            ApiError: If a key is asked for, and not shown.
        """
        shown = _header(headers, b"authorization")
        expected = b"Bearer " + self._api_key
        if self._api_key and not hmac.compare_digest(shown.strip(), expected):
            raise ApiError(
                "the key must be sent as `Authorization: Bearer KEY`; got none, or another.",
                status=401,
                code="invalid_api_key",
            )

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Take one of the places for those who are being answered.

        Raises:
            ApiError: If there is none.
        """
        if self._under_way >= self.limits.requests:
            raise ApiError(
                f"at most {self.limits.requests} requests are under way at a time. Come again "
                "later.",
                status=429,
                code="too_many_requests",
                retry_after=1,
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def read(self, kind: Kind, body: bytes) -> Asked:
        """Read what a client asks for, outside of the loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._readers, lambda: read_request(kind, parse_json(body), self.served, self.limits)
        )

    async def end(self) -> None:
        """Let the threads end."""
        self.worker.close()
        await asyncio.to_thread(self.worker.join)
        self._readers.shutdown(wait=False, cancel_futures=True)


class Endpoint:
    """What answers requests of one kind."""

    def __init__(self, kind: Kind, service: Service) -> None:
        """Answer for a service.

        Args:
            kind: Of requests.
            service: Of the model.
        """
        self._kind, self._service = kind, service

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply, limits = _Reply(send), self._service.limits
        try:
            async with asyncio.timeout(limits.seconds + limits.delivery):
                await self._serve(scope["headers"], receive, reply)
        except ApiError as error:
            await reply.fail(error)
        except TimeoutError:
            # Of a reader who does not read, nothing can be said any more.
            if not reply.begun:
                await reply.fail(timed_out(limits.seconds))
        except Gone:
            return
        except Exception:
            _LOG.exception("a request failed")
            await reply.fail(server_error())

    async def _serve(self, headers: Headers, receive: Receive, reply: "_Reply") -> None:
        self._service.check_key(headers)
        body = await self._read(headers, receive)
        with self._service.place():
            answering = asyncio.create_task(self._answer(body, reply))
            watching = asyncio.create_task(_until_gone(receive))
            tasks = {answering, watching}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if answering not in done:
            raise Gone
        answering.result()

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limits = self._service.limits
        try:
            async with asyncio.timeout(limits.delivery):
                return await _read_body(headers, receive, limits.body)
        except TimeoutError as error:
            said = f"the body must come within {limits.delivery:g} s. Send it again."
            raise ApiError(said, status=408, code="slow_body") from error

    async def _answer(self, body: bytes, reply: "_Reply") -> None:
        service = self._service
        asked = await service.read(self._kind, body)
        inbox = Inbox(service.limits.unread if asked.stream else math.inf)
        job = Job(asked, inbox.put)
        inbox.when_full = lambda: service.worker.cancel(job)
        service.worker.submit(job)
        loop, seconds = asyncio.get_running_loop(), service.limits.seconds
        clock = loop.call_later(seconds, service.worker.expire, job)
        try:
            answer = Answer(asked, service.served)
            texts = [Written() for _ in asked.requests]
            if asked.stream:
                await _stream(answer, texts, inbox, reply, seconds)
            else:
                while not _ended(texts):
                    _add(texts, await inbox.take())
                _check_begun(texts, seconds)
                await reply.send(200, answer.whole(texts))
        finally:
            clock.cancel()
            service.worker.cancel(job)


class Inbox:
    """What the worker says to one client: put by its thread, taken in the loop's.

    Attributes:
        when_full: Is called when more waits than may.
    """

    def __init__(self, most: float) -> None:
        """Begin empty, in the running loop.

        Args:
            most: Events that may wait; where the loop itself is who reads, any number.
        """
        self.when_full: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._most, self._full = most, False
        self._events = collections.deque[Event]()
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        """Add an event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event) -> None:
        if self._full:
            return
        self._events.append(event)
        if len(self._events) > self._most:
            self._full = True
            self._events.clear()
            fault = f"a stream must be read; {self._most} parts of it have waited for that."
            self._events.append(ApiError(fault, status=408, code="slow_reader"))
            self.when_full()
        self._filled.set()

    async def take(self) -> Update:
        """Wait for the next event.

        Raises:
            ApiError: If that is an error.
        """
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        event = self._events.popleft()
        if isinstance(event, ApiError):
            raise event
        return event


async def _stream(
    answer: Answer, texts: list[Written], inbox: Inbox, reply: "_Reply", seconds: float
) -> None:
    """Send parts as they come; what fails before the first has a status of its own."""
    updates = [await inbox.take()]
    _add(texts, updates[0])
    while not any(text.count for text in texts) and not _ended(texts):
        updates.append(await inbox.take())
        _add(texts, updates[-1])
    _check_begun(texts, seconds)
    await reply.begin(200, _STREAM)
    while True:
        for update in updates:
            parts = answer.part(update.index, update.delta, update.finish_reason)
            await reply.write(b"".join(map(as_event, parts)))
        if _ended(texts):
            break
        updates = [await inbox.take()]
        _add(texts, updates[0], keep=False)
    parts = answer.last([text.count for text in texts])
    await reply.write(b"".join(map(as_event, parts)) + DONE)
    await reply.end()


def _add(texts: list[Written], update: Update, *, keep: bool = True) -> None:
    """Add what is new to a text; what has been sent need not be kept."""
    text = texts[update.index]
    if keep:
        text.parts.append(update.delta.text)
        text.tokens.extend(update.delta.tokens)
    text.finish_reason, text.count = update.finish_reason, update.count


def _ended(texts: list[Written]) -> bool:
    return all(text.finish_reason is not None for text in texts)


def _check_begun(texts: list[Written], seconds: float) -> None:
    """Refuse to call nothing an answer: every text that was begun has a token."""
    if not any(text.count for text in texts):
        raise timed_out(seconds)


class _Reply:
    """What is sent to a client, once."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._ended = False
        self._send = send

    async def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def write(self, data: bytes) -> None:
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        self._ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(
        self, status: int, value: dict[str, Any], headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        data = as_json(value)
        length = (b"content-length", str(len(data)).encode())
        await self.begin(status, [_JSON, length, *(headers or {}).items()])
        self._ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Send an error: as the answer, or as the end of a stream that has begun."""
        if not self.begun:
            await self.send(error.status, error.as_object(), error_headers(error))
        elif not self._ended:
            await self.write(as_event(error.as_object()))
            await self.end()


def error_headers(error: ApiError) -> dict[bytes, bytes]:
    """Give the headers that an error is sent with."""
    headers = {b"connection": b"close"} if error.status == 413 else {}
    if error.status == 401:
        headers[b"www-authenticate"] = b"Bearer"
    if error.retry_after:
        headers[b"retry-after"] = str(error.retry_after).encode()
    return headers


def _header(headers: Headers, name: bytes) -> bytes:
    return next((value for other, value in headers if other.lower() == name), b"")


async def _read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    """Read the body of a request, and no more than may be.

    Raises:
        ApiError: If it is too long, or said to be something other than JSON.
        Gone: If the client goes away before its end.
    """
    kind = _header(headers, b"content-type").split(b";")[0].strip().lower()
    # A page of another site may send other types without asking; JSON it may not.
    if kind != b"application/json":
        raise ApiError("`Content-Type` must be application/json.", code="bad_content_type")
    length = _header(headers, b"content-length")
    body = bytearray()
    size = int(length) if length.isdigit() and len(length) < 20 else 0
    while size <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        size = len(body)
        if size <= most and not message.get("more_body", False):
            return bytes(body)
    raise ApiError(
        f"the body must have at most {most:,} bytes. Send less at a time.",
        status=413,
        code="body_too_large",
    )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
