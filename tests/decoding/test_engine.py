import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.constraints.token_automaton import TokenAutomaton
from genai_jax.decoding.engine import Engine
from genai_jax.decoding.loop import advance, place_row, place_rows, prefill, read_part, read_texts
from genai_jax.decoding.requests import ContextError, Request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig

GREEDY, WARM = SamplingConfig(0.0), SamplingConfig(1.5)
CONFIG = TransformerConfig(
    vocab_size=23,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    max_length=48,
    init_std=0.4,
    window=6,
    layer_pattern=("sliding", "global"),
)
FULL = dataclasses.replace(CONFIG, layer_pattern=("global",), window=None)
NAMES = ("tokens", "log_probs", "drawn_log_probs", "likeliest", "their_log_probs")
SHAPE = {"rows": 3, "chunk": 4}
# Counts to two, then may end: 1 leads on, 0 stays, 2 is never allowed.
COUNT = TokenAutomaton(
    classes=np.array([0, 1, *[2] * 20], np.int32),
    successors=np.array([[0, 1, -1], [1, 2, -1], [-1, -1, -1]], np.int32),
    distance=np.array([2, 1, 0], np.int32),
    start=0,
)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def full_model():
    return LanguageModel(FULL, jax.random.key(0))


def make_requests(count, seed=0, **options):
    numbers = np.random.default_rng(seed)
    return [
        Request(
            numbers.integers(0, 23, numbers.integers(1, 30)).tolist(),
            SamplingConfig(float(numbers.choice([0, 0.7, 1.5])), top_k=int(numbers.choice([0, 5]))),
            max_tokens=int(numbers.integers(1, 18)),
            seed=int(numbers.integers(0, 99)),
            stop_ids=[int(numbers.integers(0, 23))],
            **options,
        )
        for _ in range(count)
    ]


def assert_same(found, expected):
    """To the last bit."""
    assert found.reason == expected.reason
    for name in NAMES:
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name


def test_requests_are_the_same_alone_and_in_any_company(model):
    """Twelve requests over three rows, in steps of any length, come and go as they end."""
    requests = make_requests(12, alternatives=3)
    together = Engine(model, **SHAPE).run(requests)
    for request, expected in zip(requests[:4], together, strict=False):
        assert_same(Engine(model, **SHAPE).run([request])[0], expected)

    engine, numbers = Engine(model, **SHAPE), np.random.default_rng(5)
    order = numbers.permutation(12).tolist()
    tickets, results = {}, {}
    while order or engine.busy:
        for _ in range(int(numbers.integers(0, 4))):
            if order:
                number = order.pop()
                tickets[engine.submit(requests[number])] = number
        results |= engine.step(int(numbers.integers(1, 9)))
    assert len(results) == 12
    for ticket, found in results.items():
        assert_same(found, together[tickets[ticket]])


@pytest.mark.parametrize("kind", ["model", "full_model"])
def test_prompts_that_are_read_together_do_not_see_each_other(kind, request):
    """Of any lengths, none and several chunks among them, in a ring too; equal ones but once."""
    model = request.getfixturevalue(kind)
    requests = make_requests(9, seed=1)
    requests += [dataclasses.replace(requests[2], seed=90 + i) for i in range(3)]
    requests.append(Request([5], WARM, 4))
    shape = SHAPE | {"rows": 4, "together": 3}
    together = Engine(model, **shape).run(requests)
    for number in (0, 2, 11, 12):
        assert_same(Engine(model, **shape).run([requests[number]])[0], together[number])
    for found, expected in zip(
        Engine(model, **shape).run(requests[::-1]), together[::-1], strict=True
    ):
        assert_same(found, expected)
    for found, expected in zip(Engine(model, **SHAPE).run(requests), together, strict=True):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_equal_prompts_are_read_once_where_prompts_are_read_together(full_model, monkeypatch):
    reads = []
    whole = read_texts

    def note(model, cache, texts, *rest):
        reads.append(len(texts))
        return whole(model, cache, texts, *rest)

    monkeypatch.setattr("genai_jax.decoding.engine.read_texts", note)
    prompts = [[n, 2, 3] for n in (1, 1, 1, 4, 4, 6, 7, 7)]
    requests = [Request(prompt, WARM, 4, seed=i) for i, prompt in enumerate(prompts)]
    Engine(full_model, rows=8, chunk=4, together=2).run(requests)
    assert reads == [2, 2]


@pytest.mark.parametrize("kind", ["model", "full_model"])
def test_sharing_prefixes_changes_no_bit(kind, request):
    """Also where a layer forgets what lies before its window."""
    model = request.getfixturevalue(kind)
    numbers = np.random.default_rng(2)
    system = numbers.integers(0, 23, 14).tolist()
    prompts = [[*system, *numbers.integers(0, 23, n).tolist()] for n in (3, 9, 9, 1, 20)]
    prompts += [prompts[1], system[:8], [*system[:9], 1, 2, 3]]
    requests = [Request(p, WARM, max_tokens=6, seed=i) for i, p in enumerate(prompts)]
    plain = Engine(model, **SHAPE).run(requests)
    shared = Engine(model, prefixes=4, **SHAPE)
    read, whole = [], read_part
    reads = pytest.MonkeyPatch()
    reads.setattr("genai_jax.decoding.engine.read_part", lambda *a: (read.append(1), whole(*a))[1])
    try:
        for found, expected in zip(shared.run(requests), plain, strict=True):
            assert_same(found, expected)
    finally:
        reads.undo()
    chunks = [-(-(len(prompt) - 1) // 4) for prompt in prompts]
    assert chunks[0] + 5 < len(read) < sum(chunks) - 10


@pytest.mark.parametrize("kind", ["model", "full_model"])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(0.6), SamplingConfig(0.3, top_p=0.9)])
def test_looking_ahead_changes_no_token(kind, sampling, request):
    """Switched on or off at one width, to the last bit; and the tokens are those of width 1."""
    model = request.getfixturevalue(kind)
    pattern = [3, 1, 4, 1, 5, 9, 2, 6] * 2
    prompts = [pattern, [7, 7, 7, 7], [11, 12, 13]]
    requests = [
        Request(p, sampling, max_tokens=n, seed=i)
        for i, (p, n) in enumerate(zip(prompts, (30, 9, 40), strict=True))
    ]
    off = [dataclasses.replace(x, speculate=False) for x in requests]
    with_it = Engine(model, width=4, **SHAPE).run(requests)
    for found, expected in zip(with_it, Engine(model, width=4, **SHAPE).run(off), strict=True):
        assert_same(found, expected)
    for found, expected in zip(with_it, Engine(model, **SHAPE).run(requests), strict=True):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_looking_ahead_spares_steps_where_text_repeats(full_model):
    """Greedy text of a small model goes round in circles."""
    request = Request([4], GREEDY, max_tokens=40)
    reads = {}
    for width in (1, 4):
        engine = Engine(full_model, width=width, **SHAPE)
        ticket, reads[width] = engine.submit(request), 0
        results = {}
        while ticket not in results:
            results, reads[width] = engine.step(1), reads[width] + 1
    assert reads[1] == 40 and reads[4] < 25
    off = dataclasses.replace(request, speculate=False)
    engine, count = Engine(full_model, width=4, **SHAPE), 0
    ticket = engine.submit(off)
    while ticket in engine._tickets:
        count += len(engine.step(1)) >= 0
    assert count == 40


def test_looking_ahead_is_under_all_controls(full_model):
    sampling = SamplingConfig(
        1.0, repetition_penalty=1.3, frequency_penalty=0.2, min_tokens=6, forced=(4, 4)
    )
    request = Request([5, 6] * 5, sampling, max_tokens=25, seed=3, stop_ids=[1, 2])
    expected = Engine(full_model, **SHAPE).run([request])[0]
    found = Engine(full_model, width=3, **SHAPE).run([request])[0]
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert found.reason == expected.reason


def test_constrained_texts_are_complete_within_what_may_be_drawn(model):
    requests = [
        Request([3], SamplingConfig(50.0), max_tokens=n, seed=i, automaton=COUNT)
        for i in range(6)
        for n in (2, 3, 9)
    ]
    for width in (1, 3):
        results = Engine(model, width=width, **SHAPE).run([*requests, Request([3], WARM)])
        for found in results[:-1]:
            assert found.tokens.tolist().count(1) == 2 and found.tokens[-1] == 1
            assert set(found.tokens.tolist()) <= {0, 1} and found.reason == "stop"
        assert not set(results[-1].tokens.tolist()) <= {0, 1}
        assert len({len(found.tokens) for found in results[:-1]}) > 2


def test_constrained_texts_may_end_where_they_are_complete(model):
    """Any number of ones, then a stop id; the stop id alone says that it is complete."""
    ones = TokenAutomaton(
        np.array([0, 1, *[0] * 21], np.int32),
        np.array([[-1, 1], [-1, 1]], np.int32),
        np.array([1, 0], np.int32),
        0,
    )
    results = Engine(model, **SHAPE).run(
        [
            Request([3], SamplingConfig(50.0), max_tokens=3, seed=i, automaton=ones, stop_ids=[9])
            for i in range(12)
        ]
    )
    for found in results:
        ended = found.reason == "stop"
        assert found.tokens.tolist() == [1] * (len(found.tokens) - ended) + [9] * ended
        assert found.tokens[0] == 1 and (ended or len(found.tokens) == 3)
    assert {found.reason for found in results} == {"stop", "length"}


def test_constraints_that_cannot_be_met_are_refused(model):
    engine = Engine(model, **SHAPE)
    with pytest.raises(ValueError, match="the shortest has 2 tokens, and 1 may be drawn"):
        engine.submit(Request([3], max_tokens=1, automaton=COUNT))
    with pytest.raises(ValueError, match="must not be given where the text is constrained"):
        engine.submit(Request([3], SamplingConfig(forbidden=(1,)), automaton=COUNT))


def test_an_automaton_that_no_table_holds_is_refused_at_once(model, monkeypatch):
    monkeypatch.setattr("genai_jax.decoding.tables._SIZES", (14,))
    engine = Engine(model, **SHAPE)
    with pytest.raises(ValueError, match="3 states and 3 classes"):
        engine.submit(Request([3], automaton=COUNT))


def test_requests_wait_where_their_automata_do_not_fit_together(model, monkeypatch):
    monkeypatch.setattr("genai_jax.decoding.tables._SIZES", (15,))
    other = COUNT._replace(start=1)  # another one, and not the same table
    requests = [Request([3], WARM, 9, seed=i, automaton=(COUNT, other)[i % 2]) for i in range(4)]
    ones = [result.tokens.tolist().count(1) for result in Engine(model, **SHAPE).run(requests)]
    assert ones == [2, 1, 2, 1]


def test_memory_of_reading_a_prompt_is_linear_in_its_length(model):
    """The compiler's own count of temporary memory: no scores of all tokens with all others."""
    sizes = {}
    for length in (2048, 8192):
        longer = LanguageModel(dataclasses.replace(FULL, max_length=length), jax.random.key(0))
        cache = longer.init_cache(1, length)
        part, start = np.zeros((1, 64), np.int32), np.int32(0)
        lowered = prefill.lower(longer, cache, part, start, np.array([length], np.int32))
        sizes[length] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert sizes[8192] < 4.5 * sizes[2048]


def test_alternatives_are_the_likeliest(model):
    request = Request([1, 2, 3], WARM, max_tokens=8, alternatives=23 - 3)
    (found,) = Engine(model, **SHAPE).run([request])
    assert found.likeliest.shape == found.their_log_probs.shape == (8, 20)
    assert (np.diff(found.their_log_probs, axis=1) <= 0).all()
    for token, log_prob, ids, theirs in zip(
        found.tokens, found.log_probs, found.likeliest, found.their_log_probs, strict=True
    ):
        if token in ids:
            assert theirs[ids.tolist().index(int(token))] == log_prob
    (none,) = Engine(model, **SHAPE).run([dataclasses.replace(request, alternatives=0)])
    assert none.likeliest.shape == (8, 0)
    np.testing.assert_array_equal(none.tokens, found.tokens)


def test_a_full_context_follows_the_policy(model):
    prompt = list(range(1, 21)) * 2  # 40 of 48

    def run(overflow, prompt=prompt, most=100):
        return Engine(model, **SHAPE).run([Request(prompt, GREEDY, most, overflow=overflow)])[0]

    stopped = run("stop")
    assert (len(stopped.tokens), stopped.reason, stopped.cut) == (8, "context", 0)
    assert_same(run("truncate"), stopped)
    cut = run("truncate", prompt * 2)
    assert (len(cut.tokens), cut.reason, cut.cut) == (24, "truncated", 80 - 24)
    with pytest.raises(ContextError, match=r"context of 48 tokens; got 40 and up to 100"):
        run("error")
    assert run("error", most=8).reason == "length"
    with pytest.raises(ContextError, match="shorter than the context of 48 tokens; got 80"):
        run("stop", prompt * 2)


def test_a_rolling_context_is_read_again_from_its_sinks_and_newest_tokens(model):
    prompt, most = list(range(1, 21)) * 2, 70
    request = Request(prompt, WARM, most, seed=7, overflow="roll", sinks=3)
    (found,) = Engine(model, **SHAPE).run([request])
    assert len(found.tokens) == most and found.reason == "rolled"
    # By hand: a full row keeps 3 + 22 of its 48 tokens, and goes on with noise of its own places.
    row, drawn, cut = list(prompt), [], 0
    while len(drawn) < most:
        room = 48 - len(row)
        step = Request(row, WARM, min(room, most - len(drawn)), seed=7)
        # The noise of a place is that of the whole text, so tokens are compared where none is cut.
        if not cut:
            expected = Engine(model, **SHAPE).run([step])[0].tokens.tolist()
            assert found.tokens[: len(expected)].tolist() == expected
        new = found.tokens[len(drawn) : len(drawn) + step.max_tokens].tolist()
        drawn, row = drawn + new, row + new
        log_probs = np.asarray(jax.nn.log_softmax(model(jnp.array([row]))))[0]
        places = np.arange(len(row) - len(new) - 1, len(row) - 1)
        np.testing.assert_allclose(
            found.log_probs[len(drawn) - len(new) : len(drawn)], log_probs[places, new], atol=1e-4
        )
        if len(drawn) < most:
            cut += len(row) - 25
            row = row[:3] + row[-22:]
    assert found.cut == cut == 3 * 23
    greedy = Request(list(range(23)) * 9, GREEDY, 5, overflow="roll")
    assert Engine(model, **SHAPE).run([greedy])[0].cut == 23 * 9 - 26


def test_noise_is_that_of_the_place_in_the_whole_text(model):
    """A prompt that lost its oldest tokens goes on as it would have, not as a short one."""
    prompt = np.random.default_rng(1).integers(0, 23, 90).tolist()
    (cut,) = Engine(model, **SHAPE).run([Request(prompt, WARM, 10, seed=3)])
    (short,) = Engine(model, **SHAPE).run([Request(prompt[-38:], WARM, 10, seed=3)])
    assert cut.cut == 52 and cut.tokens.tolist() != short.tokens.tolist()


def test_what_the_caller_changes_later_changes_nothing(model):
    engine = Engine(model, prefixes=2, **SHAPE)
    buffer = np.arange(1, 14, dtype=np.int32)
    expected = [
        Engine(model, **SHAPE).run([Request(p, GREEDY, 6)])[0] for p in (buffer, buffer + 5)
    ]
    ticket = engine.submit(Request(buffer, GREEDY, 6))
    buffer += 5
    assert_same(engine.step()[ticket], expected[0])
    assert_same(engine.run([Request(buffer, GREEDY, 6)])[0], expected[1])


def test_a_callback_that_fails_harms_nobody(model):
    requests = [Request([i + 1], WARM, 12, seed=i) for i in range(3)]
    expected = Engine(model, **SHAPE).run(requests)
    engine, results = Engine(model, **SHAPE), {}
    heard = []

    def fail(piece):
        raise RuntimeError("no")

    tickets = [engine.submit(requests[0]), engine.submit(requests[1], fail)]
    tickets.append(engine.submit(requests[2], heard.append))
    for steps in (5, 64, 64):
        try:
            results |= engine.step(steps)
        except RuntimeError as error:
            assert str(error) == "no"
    for ticket, found in zip(tickets, expected, strict=True):
        assert_same(results[ticket], found)
    tokens = np.concatenate([piece.tokens for piece in heard])
    np.testing.assert_array_equal(tokens, expected[2].tokens)


def test_an_interrupt_loses_nothing_that_was_drawn(model, monkeypatch):
    """Wherever it strikes, once the rows have been given away."""
    requests = [
        Request([1, 2, 3], GREEDY, 20),
        Request([4], GREEDY, 30, overflow="roll"),
        Request([7], SamplingConfig(50.0), 9, automaton=COUNT),
    ]
    expected = Engine(model, **SHAPE).run(requests)
    for name in ("advance", "place_row"):
        engine, results, calls = Engine(model, **SHAPE), {}, []
        whole = getattr(__import__("genai_jax.decoding.loop", fromlist=[name]), name)

        def strike(*args, whole=whole, calls=calls, **options):
            calls.append(1)
            out = whole(*args, **options)
            if len(calls) in (1, 2, 5, 8, 9):
                raise KeyboardInterrupt
            return out

        monkeypatch.setattr(f"genai_jax.decoding.engine.{name}", strike)
        tickets = [engine.submit(request) for request in requests]
        for _ in range(60):
            try:
                results |= engine.step(4)
            except KeyboardInterrupt:
                continue
        for ticket, found in zip(tickets[:2], expected, strict=False):
            np.testing.assert_array_equal(results[ticket].tokens, found.tokens)
        assert results[tickets[2]].tokens.tolist().count(1) == 2
        monkeypatch.undo()


def test_results_of_others_are_kept_for_who_asks(model):
    engine = Engine(model, **SHAPE)
    first = engine.submit(Request([1], GREEDY, 3))
    engine.run([Request([2], GREEDY, 30)])
    assert engine.busy and engine.step().keys() == {first} and not engine.busy


def test_what_cannot_be_is_refused_at_the_door(model):
    """Nothing that is taken in can fail later, and stop the others."""
    engine = Engine(model, **SHAPE)
    for bad, message in (
        (Request(np.ones((2, 1), np.int32)), "a row of ids"),
        (Request(np.array([1.7])), "a row of ids"),
        (Request([2**40]), "must be below"),
        (Request([1], stop_ids=[23]), "from 0 to 22"),
        (Request([1], stop_ids=[-1]), "from 0 to 22"),
        (Request([1], SamplingConfig(forced=(1, 2, 3)), 2), "`forced` must have no more"),
        (Request([1], automaton=COUNT, stop_ids=[1]), "must not be what a constrained text"),
        (Request([1], automaton=COUNT._replace(classes=np.zeros(24, np.int32))), "one of 24 ids"),
        (Request([1], automaton=COUNT._replace(start=2)), "has the empty text alone"),
        (Request([1], SamplingConfig(min_tokens=2), 3, stop_ids=range(23)), "some id must be left"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(bad)
    assert not engine.busy
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        engine.step(0)


def test_pieces_hold_no_more_than_their_tokens(model):
    engine, pieces = Engine(model, **SHAPE), []
    engine.submit(Request([1], GREEDY, 5), pieces.append)
    engine.step()
    assert all(part.base is None for piece in pieces for part in piece)


def test_requests_can_be_cancelled_anywhere(model):
    """Before they have a row, while tokens come, and by what hears of them."""
    engine = Engine(model, rows=2)
    first, second, third = (engine.submit(Request([1], WARM, 40, seed=i)) for i in range(3))
    assert engine.cancel(third).reason == "cancelled"
    engine.step(5)
    half = engine.cancel(second)
    assert (len(half.tokens), half.reason) == (5, "cancelled")
    with pytest.raises(KeyError):
        engine.cancel(second)
    heard = []

    def hear(piece):
        heard.append(piece)
        if len(heard) == 2:
            engine.cancel(fourth)

    fourth = engine.submit(Request([1], WARM, 40, seed=1), hear)
    results = {}
    while engine.busy:
        results |= engine.step(5)
    assert results.keys() == {first}
    assert np.concatenate([piece.tokens for piece in heard])[:5].tolist() == half.tokens.tolist()
    whole = Engine(model, rows=2).run([Request([1], WARM, 40, seed=0)])[0]
    np.testing.assert_array_equal(results[first].tokens, whole.tokens)


def test_a_request_that_is_refused_takes_no_other_down(model):
    engine = Engine(model, **SHAPE)
    good = engine.submit(Request([1], GREEDY, 5))
    for bad in (Request([], GREEDY), Request([99], GREEDY), Request([1], GREEDY, 0)):
        with pytest.raises(ValueError, match="must"):
            engine.submit(bad)
    assert engine.step().keys() == {good}


def test_three_programs_are_compiled_whatever_comes(model):
    """However many requests, of whatever lengths, settings, policies and automata."""
    engine = Engine(model, prefixes=2, **SHAPE)
    engine.run([Request([1] * 6, WARM, 3)])
    programs = (advance, place_row, prefill)
    before = [program._cache_size() for program in programs]
    engine.run(make_requests(8, seed=3, overflow="roll", sinks=2))
    engine.run(make_requests(3, seed=4, alternatives=5))
    engine.run([Request([2] * 30, WARM, 9, automaton=COUNT), Request([2] * 47, WARM, 9)])
    Engine(model, **SHAPE).run(make_requests(2, seed=6))
    assert [program._cache_size() for program in programs] == before

    programs = (*programs, place_rows)
    Engine(model, together=2, **SHAPE).run(make_requests(1, seed=3))
    before = [program._cache_size() for program in programs]
    for count in (1, 2, 5):
        Engine(model, together=2, **SHAPE).run(make_requests(count, seed=count))
    assert [program._cache_size() for program in programs] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 1}, "`rows` must be from 2"),
        ({"context": 49}, "`context` must be from 2 to 48; got 49"),
        ({"width": 17}, "`width` must be from 1 to 16"),
        ({"chunk": 6}, "`chunk` must be a power of two; got 6"),
        ({"prefixes": -1}, "`prefixes` must be from 0"),
        ({"rows": 3, "together": 3}, "`together` must be from 1 to 2; got 3"),
        ({"rows": 3, "together": 2, "prefixes": 1}, "`prefixes` must be from 0 to 0; got 1"),
        ({"vocab_size": 24}, "`vocab_size` must be from 1 to 23; got 24"),
    ],
)
def test_engines_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, **options)
