import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_jax.nn.cache import KeyValues, empty_key_values, extend, plan_full, plan_ring


def numbered(positions):
    """Keys that say which position they are of, counted from 1."""
    return (positions + 1).astype(jnp.float32)[:, :, None, None]


def what_is_seen(plan, seen):
    """The positions that each new token may attend to, a set a token."""
    values = np.asarray(seen.key[:, 0, :, 0]).astype(int) - 1
    return [
        [sorted(values[row][mask]) for mask in masks]
        for row, masks in enumerate(np.asarray(plan.visible))
    ]


def run(widths, lengths, plan_of, slots):
    rows = len(lengths)
    empty = jnp.zeros((rows, 1, slots, 1))
    cache, start, found = KeyValues(empty, empty), 0, [[] for _ in range(rows)]
    for width in widths:
        positions = jnp.broadcast_to(jnp.arange(start, start + width), (rows, width))
        plan = plan_of(positions)
        cache, seen = extend(cache, numbered(positions), numbered(positions), plan)
        for row, sets in enumerate(what_is_seen(plan, seen)):
            found[row] += sets
        start += width
    return found


@settings(max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
)
def test_a_ring_shows_each_token_its_window_however_tokens_come(window, reach, widths, lengths):
    total, slots = sum(widths), window + reach - 1

    def plan(positions):
        return plan_ring(slots, window, positions, jnp.array(lengths), reach)

    found = run(widths, lengths, plan, slots)
    for row, length in enumerate(lengths):
        for t in range(min(length, total)):  # what is behind a row's length is padding
            assert found[row][t] == list(range(max(0, t - window + 1), t + 1))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_full_cache_shows_each_token_all_before_it(widths):
    found = run(widths, [1], lambda p: plan_full(64, p), 64)
    assert found[0] == [list(range(t + 1)) for t in range(sum(widths))]


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(2, 4), st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_tokens_that_are_taken_back_leave_no_trace(window, reach, kept):
    """Always `reach` tokens come, and the next ones may begin anywhere among them."""
    slots, first = window + reach - 1, 0
    empty = jnp.full((1, 1, slots, 1), 99.0)
    cache = KeyValues(empty, empty)
    for number, count in enumerate(kept):
        positions = first + jnp.arange(reach)[None]
        plan = plan_ring(slots, window, positions, positions[:, -1] + 1, reach)
        # Tokens of this call are told from those that it takes back.
        marked = numbered(positions) + number / 100
        cache, seen = extend(cache, marked, marked, plan)
        values = np.asarray(seen.key[0, 0, :, 0]) - 1
        for t, mask in enumerate(np.asarray(plan.visible)[0]):
            expected = np.arange(max(0, first + t - window + 1), first + t + 1)
            found = np.sort(values[mask])
            np.testing.assert_array_equal(np.floor(found + 1e-4), expected)
            now = found[expected >= first]
            np.testing.assert_allclose(now - np.floor(now + 1e-4), number / 100, atol=1e-5)
        first += min(count, reach)


def test_8_bit_slots_hold_each_vector_to_half_a_step_of_its_own():
    x = (
        jax.random.normal(jax.random.key(0), (2, 5, 3, 16))
        * 10.0 ** jnp.arange(-2, 3)[:, None, None]
    )
    x = x.at[0, 0].set(0)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    for plan in (plan_full(8, positions), plan_ring(4, 4, positions, jnp.array([5, 5]))):
        slots = plan.visible.shape[-1] - (0 if plan.source is None else 5)
        empty = empty_key_values((2, 3, slots, 16), jnp.float32, quantized=True)
        cache, seen = extend(empty, x, 2 * x, plan)
        assert cache.key.dtype == jnp.int8 and cache.key.shape == (2, 3, slots, 16)
        new = slice(0, 5) if plan.source is None else slice(slots, None)
        for found, expected in ((seen.key, x), (seen.value, 2 * x)):
            expected = np.asarray(jnp.swapaxes(expected, 1, 2))
            step = np.abs(expected).max(-1, keepdims=True) / 127
            error = np.abs(np.asarray(found)[:, :, new] - expected)
            assert (error <= step * 0.5001).all() and error.max() > 0


def test_padding_never_takes_the_place_of_a_token():
    """Rows of different lengths go on where they ended, as the ring comes round."""
    lengths, window = jnp.array([2, 9]), 4
    empty = jnp.zeros((2, 1, window, 1))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    plan = plan_ring(window, window, positions, lengths)
    cache, _ = extend(KeyValues(empty, empty), numbered(positions), numbered(positions), plan)
    held = np.asarray(cache.key[:, 0, :, 0]).astype(int) - 1
    assert held.tolist() == [[0, 1, -1, -1], [8, 5, 6, 7]]
    positions = lengths[:, None]
    plan = plan_ring(window, window, positions, lengths + 1)
    cache, seen = extend(cache, numbered(positions), numbered(positions), plan)
    assert what_is_seen(plan, seen) == [[[0, 1, 2]], [[6, 7, 8, 9]]]


def test_slots_keep_their_type():
    empty = jnp.zeros((1, 1, 4, 1), jnp.bfloat16)
    positions = jnp.array([[0, 1]])
    for plan in (plan_full(4, positions), plan_ring(4, 4, positions, jnp.array([2]))):
        cache, seen = jax.jit(extend)(
            KeyValues(empty, empty), numbered(positions), numbered(positions), plan
        )
        assert {x.dtype for x in jax.tree.leaves((cache, seen))} == {jnp.dtype(jnp.bfloat16)}
