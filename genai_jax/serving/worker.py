"""The thread in which the engine runs, and what it is told and tells through queues.

Everything that touches the engine happens in this thread. It waits where there is nothing to do,
and holds no lock while the engine computes.
"""

import contextlib
import dataclasses
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Literal

from genai_jax.data.tokenizers import Tokenizer
from genai_jax.decoding.engine import Engine, Piece, Reason
from genai_jax.decoding.requests import Request
from genai_jax.serving.asked import Asked
from genai_jax.serving.choices import Choice, Delta
from genai_jax.serving.errors import ApiError, server_error, shutting_down

FinishReason = Literal["stop", "length"]

_LOG = logging.getLogger(__name__)
# Few where somebody watches the text come; else more, at the end of which requests come and go.
_STEPS_OF_STREAMS, _STEPS = 4, 16


@dataclasses.dataclass(frozen=True)
class Update:
    """What is new of one of a job's texts.

    Attributes:
        index: Which.
        delta: What has come.
        finish_reason: Why it has ended, if it has.
        count: How many tokens it has.
    """

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    count: int


Event = Update | ApiError
"""An error ends a job as a whole."""


@dataclasses.dataclass(eq=False)
class Job:
    """A request under way.

    Attributes:
        asked: What is asked for.
        sink: Is told what comes, in the worker's thread: it must be quick, and is told nothing
            after the end of all texts, an error, or `cancel`.
        over: Whether it has been given up.
    """

    asked: Asked
    sink: Callable[[Event], None]
    over: bool = False


@dataclasses.dataclass(eq=False)
class _Text:
    """One of a job's texts, under way in the engine."""

    job: Job
    index: int
    choice: Choice
    ticket: int = -1


class Worker:
    """Runs an engine in a thread of its own.

    Attributes:
        healthy: Whether it can answer.
    """

    def __init__(self, make_engine: Callable[[], Engine], tokenizer: Tokenizer) -> None:
        """Make an engine; `start` lets it run.

        Args:
            make_engine: Makes one, and another when one has failed.
            tokenizer: Of the model.
        """
        self.healthy = True
        self._make_engine, self._tokenizer = make_engine, tokenizer
        self._engine = make_engine()
        self._commands = queue.SimpleQueue[tuple[Callable[[Job], None], Job | None]]()
        self._texts: dict[int, _Text] = {}  # by their tickets
        self._lock = threading.Lock()  # of what is told: nothing after the end
        self._closed = False
        # A step that never ends must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def warm_up(self) -> None:
        """Compile all programs, before anybody waits for them."""
        for _ in range(2):  # rows are placed once among none, and once among what was computed
            self._engine.run([Request([0, 0], max_tokens=1)])

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """End all that is under way, and take nothing more in; does not wait for it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._commands.put((lambda job: None, None))  # wakes it

    def join(self) -> None:
        """Wait for the end of the thread, for a while."""
        self._thread.join(timeout=60)

    def submit(self, job: Job) -> None:
        """Take a job in.

        Raises:
            ApiError: If the worker has been closed, or has failed for good.
        """
        if not self._tell(self._submit, job):
            raise self._farewell()

    def cancel(self, job: Job) -> None:
        """Forget a job, and free its rows; nothing happens if it has ended."""
        self._tell(self._drop, job)

    def expire(self, job: Job) -> None:
        """End a job with what it has, as if it had reached its limit."""
        self._tell(self._expire, job)

    def _tell(self, action: Callable[[Job], None], job: Job) -> bool:
        """Have something done in the worker's thread; whether there still is one."""
        with self._lock:
            if not self._closed:
                self._commands.put((action, job))
            return not self._closed

    def _farewell(self) -> ApiError:
        return shutting_down() if self.healthy else server_error()

    def _work(self) -> None:
        """Do what is told, and let the engine go on, until the end."""
        try:
            while not self._closed:
                self._obey()
                if self._engine.busy and not self._closed:
                    self._step()
        except BaseException:
            _LOG.exception("the worker failed")
            self.healthy = False
        finally:
            with self._lock:
                self._closed = True
            self._fail(self._farewell())
            while not self._commands.empty():
                _, job = self._commands.get()
                if job is not None:
                    self._emit(job, self._farewell())

    def _obey(self) -> None:
        """Do what was told by now; where nothing else is to do, wait for it."""
        while not self._engine.busy or not self._commands.empty():
            action, job = self._commands.get()
            if self._closed or job is None:
                self._commands.put((action, job))  # who ends all jobs ends this one
                return
            action(job)

    def _step(self) -> None:
        """Let the engine go on; where it cannot, take another one that can."""
        streams = any(text.job.asked.stream for text in self._texts.values())
        try:
            ended = self._engine.step(_STEPS_OF_STREAMS if streams else _STEPS)
        except Exception:
            _LOG.exception("the engine failed, and is made anew")
            self._fail(server_error())
            self._engine = self._make_engine()
            self.warm_up()
            return
        texts = [self._texts.pop(ticket, None) for ticket in ended]
        for text, generated in zip(texts, ended.values(), strict=True):
            if text is not None:
                self._end(text, generated.reason)

    def _submit(self, job: Job) -> None:
        with self._guarding(job):
            for index, request in enumerate(job.asked.requests):
                choice = Choice(
                    self._tokenizer,
                    stop=job.asked.stop,
                    stop_ids=request.stop_ids,
                    tokens=job.asked.logprobs is not None,
                )
                text = _Text(job, index, choice)
                text.ticket = self._engine.submit(request, functools.partial(self._take, text))
                self._texts[text.ticket] = text

    def _take(self, text: _Text, piece: Piece) -> None:
        """Pass on what the engine has drawn of a text."""
        if text.ticket not in self._texts:
            return
        with self._guarding(text.job):
            delta = text.choice.take(piece)
            if text.choice.ended:
                self._release(text)
                self._send(text, delta, "stop")
            elif delta.text or delta.tokens:
                self._send(text, delta, None)

    def _end(self, text: _Text, reason: Reason) -> None:
        """Pass on that a text has ended."""
        with self._guarding(text.job):
            if reason == "broken":
                raise RuntimeError("the model's logits are no numbers, or leave nothing to draw")
            delta = text.choice.finish()
            stopped = reason == "stop" or text.choice.ended
            self._send(text, delta, "stop" if stopped else "length")

    def _expire(self, job: Job) -> None:
        for text in self._texts_of(job):
            self._release(text)
            self._end(text, "length")

    def _drop(self, job: Job) -> None:
        job.over = True
        for text in self._texts_of(job):
            self._release(text)

    @contextlib.contextmanager
    def _guarding(self, job: Job) -> Iterator[None]:
        """See to it that what goes wrong with one job harms no other."""
        try:
            yield
        except Exception:
            _LOG.exception("a request failed")
            self._emit(job, server_error())
            self._drop(job)

    def _fail(self, error: ApiError) -> None:
        """End all jobs by an error; what the engine knows of them is lost."""
        jobs = {id(text.job): text.job for text in self._texts.values()}
        self._texts.clear()
        for job in jobs.values():
            self._emit(job, error)

    def _texts_of(self, job: Job) -> list[_Text]:
        return [text for text in self._texts.values() if text.job is job]

    def _release(self, text: _Text) -> None:
        """Give the row of a text that has not ended to another one."""
        if self._texts.pop(text.ticket, None) is not None:
            self._engine.cancel(text.ticket)

    def _send(self, text: _Text, delta: Delta, reason: FinishReason | None) -> None:
        self._emit(text.job, Update(text.index, delta, reason, text.choice.count))

    def _emit(self, job: Job, event: Event) -> None:
        if job.over:
            return
        job.over = isinstance(event, ApiError)
        try:
            job.sink(event)
        except Exception:
            _LOG.exception("a client could not be told")
