"""The engine's thread: what is told of whom, and what harms nobody else."""

import dataclasses
import queue

import pytest

from genai_jax.decoding.loop import advance, place_row, prefill
from genai_jax.decoding.requests import Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.serving.asked import Asked
from genai_jax.serving.errors import ApiError
from genai_jax.serving.worker import Job
from tests.serving.tiny_service import CONTEXT, TEXT, Pace, make_worker, random_model

LETTERS = SamplingConfig(logit_bias={256: float("-inf")})


@pytest.fixture
def begin():
    """Make workers, and end them."""
    workers = []

    def make(*arguments, **options):
        workers.append(make_worker(*arguments, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()
        if worker._engine.pace:
            worker._engine.pace.release()
        worker.join()
        assert not worker._thread.is_alive()


def ask(*prompts, stop=(), stream=False, logprobs=None, **options):
    options = {"stop_ids": [256], "max_tokens": 100, "overflow": "error"} | options
    requests = tuple(Request(list(prompt.encode()), **options) for prompt in prompts)
    return Asked("completion", requests, 1, tuple(stop), logprobs, stream)


class Client:
    """Who has asked, and what was said."""

    def __init__(self, worker, asked):
        self.events = queue.SimpleQueue()
        self.job = Job(asked, self.events.put)
        self.texts = ["" for _ in asked.requests]
        self.counts, self.reasons, self.parts = {}, {}, []
        worker.submit(self.job)

    def next(self):
        event = self.events.get(timeout=60)
        if isinstance(event, ApiError):
            return event
        self.texts[event.index] += event.delta.text
        self.counts[event.index] = event.count
        if event.finish_reason:
            assert event.index not in self.reasons, "ended twice"
            self.reasons[event.index] = event.finish_reason
        self.parts.append(event)
        return event

    def wait(self):
        """All that is said."""
        while len(self.reasons) < len(self.texts):
            event = self.next()
            if isinstance(event, ApiError):
                return event
        return self.texts

    def silent(self):
        return self.events.empty()


def test_texts_end_as_they_do(begin):
    worker = begin()
    client = Client(worker, ask("0", "01234", stop=["tea"]))
    assert client.wait() == [TEXT.split("tea")[0], TEXT[4:].split("tea")[0]]
    assert client.reasons == {0: "stop", 1: "stop"}
    whole = Client(worker, ask("0"))
    assert whole.wait() == [TEXT] and whole.reasons == {0: "stop"}
    assert whole.counts[0] == len(TEXT.encode()) + 1
    cut = Client(worker, ask("0", max_tokens=13))
    assert cut.wait() == ["0123456789 na"] and cut.reasons == {0: "length"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_counts_the_same_however_the_engine_steps(begin, stream):
    pace = Pace()
    client = Client(begin(pace=pace), ask("0", stop=["78"], stream=stream))
    assert client.wait() == ["0123456"] and client.counts == {0: 9}
    assert set(pace.asked) == {4 if stream else 16}


def test_a_stop_text_frees_its_row(begin):
    pace = Pace()
    worker = begin(pace=pace, rows=2)
    pace.hold()
    first, second = Client(worker, ask("0", "0", stop=["3"])), Client(worker, ask("0", stop=["3"]))
    pace.release(2)  # the first step ends both texts of the first, the next the second
    assert (first.wait(), second.wait()) == (["012"] * 2, ["012"])


def test_the_same_request_is_the_same_alone_and_in_company(begin):
    """Beside others that come and go, streaming or not, by its seed alone."""
    worker = begin(random_model())
    alone = Client(worker, ask("Hi", sampling=LETTERS, seed=3, max_tokens=40)).wait()
    others = [
        Client(worker, ask("x" * n, "Hi", sampling=LETTERS, seed=n, max_tokens=9 + n, stream=n > 4))
        for n in range(1, 8)
    ]
    again = Client(worker, ask("Hi", sampling=LETTERS, seed=3, max_tokens=40))
    other = Client(worker, ask("Hi", sampling=LETTERS, seed=4, max_tokens=40))
    assert again.wait() == alone != other.wait()
    for client in others:
        client.wait()


def test_who_cancels_hears_no_more_and_gives_up_the_row(begin):
    pace = Pace()
    worker = begin(pace=pace, rows=2)
    pace.hold()
    leaving = Client(worker, ask("0", "0", max_tokens=150, stop_ids=[]))
    waiting = Client(worker, ask("0", max_tokens=3))
    pace.release(1)
    assert leaving.next().delta.text == TEXT.encode()[:16].decode()
    leaving.next()
    worker.cancel(leaving.job)
    worker.cancel(leaving.job)  # again harms nobody
    pace.release(3)
    assert waiting.wait() == ["012"]  # has got a row
    while not leaving.silent():  # of the step that was under way
        leaving.next()
    assert len(leaving.parts) in (2, 4) and not leaving.reasons
    worker.cancel(waiting.job)  # nor does it when all is over
    pace.release()
    assert Client(worker, ask("0", max_tokens=3)).wait() == ["012"]
    assert leaving.silent()
    assert not worker._texts and not worker._engine.busy


def test_a_job_is_cancelled_before_it_has_a_row(begin):
    pace = Pace()
    worker = begin(pace=pace, rows=2)
    pace.hold()
    first = Client(worker, ask("0", "0", max_tokens=40))
    second = Client(worker, ask("0", max_tokens=40))
    worker.cancel(second.job)
    pace.release()
    assert first.wait() == [TEXT.encode()[:40].decode()] * 2
    assert second.silent() and not worker._engine.busy


def test_time_ends_a_text_with_what_it_has(begin):
    pace = Pace()
    worker = begin(pace=pace, rows=2)
    pace.hold()
    client = Client(worker, ask("0", "01", "012", stop=["6789 x"], stream=True))
    pace.release(2)
    while len(client.parts) < 4:
        client.next()
    worker.expire(client.job)
    pace.release()
    # What was held back, as the beginning of a stop text, comes too; the third had no row yet.
    assert client.wait()[0].startswith("01234567") and client.texts[2] in ("", TEXT[2:6])
    assert client.reasons == dict.fromkeys(range(3), "length")
    assert client.silent()


def test_a_failure_of_the_engine_ends_who_is_under_way_and_nobody_after(begin, caplog):
    pace = Pace()
    worker = begin(pace=pace)
    pace.hold()
    clients = [Client(worker, ask("0", "0")), Client(worker, ask("0"))]
    pace.release(1)
    clients[0].next()
    pace.failures = 1
    pace.release()
    for client in clients:
        error = client.wait()
        assert (error.status, error.code) == (500, "internal_error")
        assert "memory" not in error.message  # what went wrong is for the log alone
    assert "out of memory" in caplog.text
    worker.cancel(clients[0].job)
    assert Client(worker, ask("0", max_tokens=3)).wait() == ["012"]
    assert len(pace.engines) == 2 and worker.healthy
    assert all(client.silent() for client in clients)


def test_an_engine_that_cannot_be_mended_is_given_up(begin, caplog):
    pace = Pace()
    worker = begin(pace=pace)
    pace.failures = 2  # the fresh one fails its trial
    client = Client(worker, ask("0"))
    assert client.wait().status == 500
    worker.join()
    assert not worker.healthy
    with pytest.raises(ApiError) as caught:
        Client(worker, ask("0"))
    assert caught.value.status == 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": []},
        {"max_tokens": 0},
        {"prompt": [1] * CONTEXT},
    ],
)
def test_a_request_that_the_engine_refuses_harms_no_other(begin, wrong, caplog):
    pace = Pace()
    worker = begin(pace=pace)
    pace.hold()
    good = Client(worker, ask("0", max_tokens=20))
    asked = ask("0", "0")
    requests = (asked.requests[0], dataclasses.replace(asked.requests[1], **wrong))
    bad = Client(worker, dataclasses.replace(asked, requests=requests))
    pace.release()
    assert bad.wait().status == 500
    assert good.wait() == [TEXT.encode()[:20].decode()]
    assert bad.silent()


def test_a_text_that_breaks_ends_its_request_once(begin, caplog, monkeypatch):
    """Both texts have nothing to draw, in the same step; as a broken model would, unforeseen."""
    monkeypatch.setattr("genai_jax.decoding.engine.check_request", lambda *_: None)
    everything = SamplingConfig(logit_bias={i: float("-inf") for i in range(256)}, min_tokens=1)
    worker = begin()
    bad = Client(worker, ask("0", "0", sampling=everything))
    assert bad.wait().status == 500
    assert Client(worker, ask("0", max_tokens=3)).wait() == ["012"]
    assert bad.silent()
    assert "nothing to draw" in caplog.text


def test_a_client_that_cannot_be_told_harms_no_other(begin, caplog):
    worker = begin()

    def sink(event):
        raise RuntimeError("nobody there")

    worker.submit(Job(ask("0"), sink))
    assert Client(worker, ask("0", max_tokens=3)).wait() == ["012"]
    assert "nobody there" in caplog.text


def test_closing_ends_all_and_takes_nothing_in(begin):
    pace = Pace()
    worker = begin(pace=pace, rows=2)
    pace.hold()
    clients = [Client(worker, ask("0", "0", "0")) for _ in range(3)]
    worker.close()
    worker.close()
    pace.release()
    worker.join()
    for client in clients:
        error = client.wait()
        assert (error.status, error.code) == (503, "shutting_down") and client.silent()
    with pytest.raises(ApiError, match="shutting down"):
        Client(worker, ask("0"))
    worker.cancel(clients[0].job)


def test_warming_up_compiles_all_there_is(begin):
    """What clients ask for afterwards is other numbers, and no other program."""
    worker = make_worker(random_model(), rows=5)
    worker.close()
    worker.join()
    worker.warm_up()
    programs = (advance, place_row, prefill)
    before = [program._cache_size() for program in programs]
    worker._engine.run(
        [
            Request([1, 2, 3], LETTERS, max_tokens=5, alternatives=3, stop_ids=[9]),
            Request([1] * 40, max_tokens=5, overflow="roll"),
        ]
    )
    assert [program._cache_size() for program in programs] == before
