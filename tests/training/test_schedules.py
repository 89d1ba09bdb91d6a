import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.training.schedules import ScheduleConfig, make_schedule


def nanogpt_lr(it, learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, lr_decay_iters=2000):
    """The published recipe, in Python's float64."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


def curve(config, steps, at):
    return np.asarray(jax.jit(jax.vmap(make_schedule(config, steps)))(jnp.asarray(at)))


def test_default_is_nanogpts_schedule():
    at = np.arange(0, 2200)
    expected = [nanogpt_lr(it) for it in at]
    np.testing.assert_allclose(curve(ScheduleConfig(), 2000, at), expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Peak 1, floor 0.1; warm-up over 4 of 20 updates; wsd falls over the last 8.
        ("cosine", {4: 1.0, 8: 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 12: 0.55, 20: 0.1, 99: 0.1}),
        ("linear", {4: 1.0, 8: 0.775, 12: 0.55, 20: 0.1, 99: 0.1}),
        ("wsd", {4: 1.0, 11: 1.0, 12: 1.0, 14: 0.55, 20: 0.1, 99: 0.1}),
        ("constant", {4: 1.0, 12: 1.0, 20: 1.0, 99: 1.0}),
    ],
)
def test_exact_points(kind, expected):
    config = ScheduleConfig(peak=1.0, kind=kind, warmup_steps=4, decay_fraction=0.4)
    expected = {0: 0.2, 1: 0.4, 3: 0.8} | expected
    np.testing.assert_allclose(
        curve(config, 20, list(expected)), list(expected.values()), rtol=1e-6
    )


@given(
    kind=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    steps=st.integers(2, 30),
    warmup=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
def test_rises_then_falls_within_its_bounds(kind, steps, warmup, final):
    config = ScheduleConfig(
        peak=0.5,
        kind=kind,
        warmup_steps=int(warmup * steps),
        final_fraction=final,
        decay_fraction=0.5,
    )
    # One length for all examples, so that nothing is compiled twice.
    values = np.asarray(make_schedule(config, steps)(jnp.arange(31)))[: steps + 1]
    assert values[0] > 0 or (final == 0 and not config.warmup_steps)
    assert np.all(np.diff(values[: config.warmup_steps + 1]) > 0)
    assert np.all(np.diff(values[config.warmup_steps :]) <= 1e-7)
    assert values.max() == pytest.approx(0.5, rel=1e-6)
    if kind != "constant":
        assert values[-1] == pytest.approx(0.5 * final, abs=1e-7)


def test_value_is_a_float32_scalar_of_a_python_int_too():
    value = make_schedule(ScheduleConfig(), 2000)(100)
    assert value.shape == () and value.dtype == jnp.float32
    assert float(value) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak", 0.0),
        ("peak", math.nan),
        ("warmup_steps", -1),
        ("final_fraction", 1.5),
        ("decay_fraction", 0.0),
    ],
)
def test_meaningless_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must.*got {value}.*Choose"):
        ScheduleConfig(**{field: value})


def test_warmup_must_end_before_the_fall():
    with pytest.raises(ValueError, match="got 100 warmup_steps and 50 updates"):
        make_schedule(ScheduleConfig(), 50)
    with pytest.raises(ValueError, match="Lower warmup_steps to 80"):
        make_schedule(ScheduleConfig(kind="wsd", warmup_steps=90), 100)
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        make_schedule(ScheduleConfig(warmup_steps=0), 0)
