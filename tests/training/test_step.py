"""One step, many ways to compute it: devices, microbatches and storage must not show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genai_jax.models.lm import SHARDING_RULES, LanguageModel, decays, hidden_matrix
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding
from genai_jax.training.ema import EMAConfig, PowerEMA, power_averages
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.state import init_state
from genai_jax.training.step import (
    check_rows,
    loss_of,
    make_gradients,
    make_train_step,
    row_keys,
    split_rows,
    stratified_times,
)
from genai_jax.training.storage import to_storage
from genai_jax.types import Term

B, T, V = 32, 12, 19
CONFIG = TransformerConfig(
    vocab_size=V,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=32,
    max_length=T,
    dropout=0.2,
    attention_dropout=0.1,
    qkv_bias=True,
    init_std=0.2,
)
STEPS = 3


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Rows with very different numbers of counted tokens, so that wrong weights show."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, V, (B, T + 1), dtype=np.int32)
    mask = (np.arange(T) < rng.integers(0, T + 1, (B, 1))).astype(np.float32)
    segments = np.cumsum(rng.random((B, T)) < 0.2, axis=1).astype(np.int32) + 1
    starts = np.diff(segments, axis=1, prepend=0) > 0
    positions = np.arange(T) - np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "loss_mask": mask,
        "segment_ids": segments,
        "positions": positions.astype(np.int32),
    }


def run(mesh, *, microbatches=1, config=CONFIG, optimizer="adamw", fsdp_rules=SHARDING_RULES):
    """Take a few steps; returns the stored state, the metrics of each step, and compilations."""
    options = OptimizerConfig(optimizer, adafactor_min_dim=8)
    made = make_optimizer(options, lambda step: 0.02, decays=decays, muon=hidden_matrix)
    state = init_state(
        lambda: LanguageModel(config, jax.random.key(1)), made, mesh, fsdp_rules, ema=True
    )
    step = make_train_step(
        next_token,
        made,
        mesh,
        state,
        seed=5,
        microbatches=microbatches,
        clip_norm=0.5,
        ema=EMAConfig(0.9),
    )
    metrics = []
    for s in range(STEPS):
        batch = jax.device_put(make_batch(s), batch_sharding(mesh))
        state, values = step(state, batch)
        metrics.append({name: float(a) / float(b) for name, (a, b) in values.items()})
    stored = {name: np.asarray(x) for name, x in to_storage(state).items()}
    return stored, metrics, step.on_leaves._cache_size()


@pytest.fixture(scope="module")
def one_device():
    return run(make_mesh(devices=jax.devices()[:1]))


def assert_same(actual, expected, tolerance=2e-5):
    (stored, metrics, compilations), (wanted, wanted_metrics, _) = actual, expected
    assert compilations == 1
    assert stored.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(
            stored[name], wanted[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
    for got, want in zip(metrics, wanted_metrics, strict=True):
        assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("devices", "fsdp", "microbatches"),
    [(1, 1, 4), (8, 1, 4), (8, 2, 1), (8, 8, 2)],
)
def test_devices_and_microbatches_change_nothing(one_device, devices, fsdp, microbatches):
    mesh = make_mesh(fsdp, devices=jax.devices()[:devices])
    assert_same(run(mesh, microbatches=microbatches), one_device)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "muon"])
def test_scanned_layers_train_as_unrolled_ones(optimizer):
    mesh = make_mesh(devices=jax.devices()[:1])
    unrolled = dataclasses.replace(CONFIG, dropout=0.0, attention_dropout=0.0)
    scanned = dataclasses.replace(unrolled, layers="scanned")
    expected = run(mesh, config=unrolled, optimizer=optimizer)
    assert_same(run(mesh, config=scanned, optimizer=optimizer), expected, 1e-4)


def test_parameters_are_cut_where_the_rules_say():
    mesh = make_mesh(8)
    state = init_state(
        lambda: LanguageModel(CONFIG, jax.random.key(1)),
        optax.adam(1e-3),
        mesh,
        SHARDING_RULES,
        ema=True,
    )
    up = state.model.layers[0].mlp.up.kernel[...]
    assert up.addressable_shards[0].data.shape == (2, 32)
    assert state.ema.layers[0].mlp.up.kernel[...].sharding == up.sharding
    moments = jax.tree.leaves(state.opt_state[0].mu)
    assert sum(x.addressable_shards[0].data.size for x in moments) < 0.4 * sum(
        x.size for x in moments
    )


def quadratic(model, batch, context):
    """A mean over rows of (w · x - y)² / 2, with weights, whose gradient is known."""
    error = batch["x"] @ model["w"] - batch["y"]
    return {"loss": Term(jnp.sum(batch["weight"] * error**2 / 2), jnp.sum(batch["weight"]))}


def test_step_is_the_closed_form_of_weighted_least_squares():
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(8, 3)).astype(np.float32),
        "y": rng.normal(size=8).astype(np.float32),
        "weight": np.array([0, 1, 2, 0, 5, 1, 1, 3], np.float32),
    }
    w = np.array([1.0, -2.0, 0.5])
    error = batch["x"] @ w - batch["y"]
    gradient = (batch["weight"] * error) @ batch["x"] / batch["weight"].sum()
    norm = np.linalg.norm(gradient)
    for clip, mesh in ((None, make_mesh()), (norm / 2, make_mesh()), (2 * norm, make_mesh(2))):
        scale = 1 if clip is None else min(1, clip / norm)
        state = init_state(lambda: {"w": jnp.asarray(w, jnp.float32)}, optax.sgd(0.1), mesh, ())
        step = make_train_step(quadratic, optax.sgd(0.1), mesh, state, seed=0, clip_norm=clip)
        old = state.model["w"]
        new, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        np.testing.assert_allclose(new.model["w"], w - 0.1 * scale * gradient, rtol=1e-5)
        assert float(metrics["grad_norm"][0]) == pytest.approx(norm, rel=1e-5)
        assert int(new.step) == 1
        assert old.is_deleted()  # donated


def test_average_follows_its_definition():
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(lambda: {"w": jnp.ones(3)}, optax.sgd(0.1), mesh, (), ema=True)
    ema = EMAConfig(0.75, warmup=False)
    step = make_train_step(quadratic, optax.sgd(0.1), mesh, state, seed=0, ema=ema)
    average = np.ones(3)
    batch = {"x": np.eye(3, dtype=np.float32), "y": np.arange(3.0, dtype=np.float32)}
    batch["weight"] = np.ones(3, np.float32)
    for _ in range(4):
        state, _ = step(state, batch)
        average = 0.75 * average + 0.25 * np.asarray(state.model["w"])
    np.testing.assert_allclose(state.averaged["w"], average, rtol=1e-6)


def test_traces_follow_their_definition_and_an_average_may_be_a_power_function():
    mesh = make_mesh()
    traces = power_averages((0.05, 0.1))
    state = init_state(
        *(lambda: {"w": jnp.ones(3)}, optax.sgd(0.1), mesh, ()),
        ema=True,
        traces=traces.keys(),
    )
    step = make_train_step(
        quadratic, optax.sgd(0.1), mesh, state, seed=0, ema=PowerEMA(0.1), traces=traces
    )
    batch = {
        "x": np.tile(np.eye(4, 3, dtype=np.float32), (2, 1)),
        "y": np.arange(8.0, dtype=np.float32),
        "weight": np.ones(8, np.float32),
    }
    batch = jax.device_put(batch, batch_sharding(mesh))
    path = []
    for _ in range(6):
        state, _ = step(state, batch)
        path.append(np.asarray(state.model["w"], np.float64))
    assert list(state.traces) == ["0.05", "0.1"]
    for name, rule in traces.items():
        weights = np.diff((np.arange(7) / 6) ** (rule.gamma + 1))
        expected = weights @ np.stack(path)
        np.testing.assert_allclose(state.traces[name]["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(state.ema["w"], state.traces["0.1"]["w"])
    assert step.on_leaves._cache_size() == 1
    # As many leaves, and others: not taken for those that the step was made for.
    renamed = dataclasses.replace(state, model={"v": state.model["w"]})
    with pytest.raises(ValueError, match="key"):
        step(renamed, batch)


def test_without_traces_a_state_is_stored_as_it_always_was():
    made = init_state(lambda: {"w": jnp.ones(3)}, optax.sgd(0.1), make_mesh(), (), ema=True)
    assert made.traces is None
    assert to_storage(made).keys() == {"step", "model/w", "ema/w"}


def test_terms_are_weighted_by_their_coefficients_and_empty_ones_count_nothing():
    terms = {
        "a": Term(jnp.float32(6.0), jnp.float32(3.0)),
        "b": Term(jnp.float32(8.0), jnp.float32(2.0), 0.5),
        "seen": Term(jnp.float32(100.0), jnp.float32(1.0), 0.0),
        "empty": Term(jnp.float32(0.0), jnp.float32(0.0)),
    }
    totals = {name: term.weight for name, term in terms.items()}
    assert float(loss_of(terms, totals)) == 6 / 3 + 0.5 * 8 / 2


def test_noise_depends_on_seed_step_purpose_and_row_alone():
    keys = {
        (seed, step, purpose): np.asarray(jax.random.key_data(row_keys(seed, step, 4, purpose)))
        for seed in (0, 1)
        for step in (0, 1)
        for purpose in ("train", "other")
    }
    rows = np.concatenate(list(keys.values()))
    assert len(np.unique(rows, axis=0)) == len(rows) == 32
    longer = np.asarray(jax.random.key_data(row_keys(0, 0, 9)))
    np.testing.assert_array_equal(longer[:4], keys[0, 0, "train"])
    later = np.asarray(jax.random.key_data(row_keys(0, 0, 3, first=6)))
    np.testing.assert_array_equal(longer[6:], later)


def test_times_are_stratified_over_the_global_batch_and_uniform_over_steps():
    times = np.stack([stratified_times(3, step, 16) for step in range(200)])
    assert times.dtype == np.float32
    assert times.min() >= 0
    assert times.max() < 1
    strata = np.sort(times.astype(np.float64) * 16, axis=1)
    np.testing.assert_allclose(np.diff(strata, axis=1), 1, atol=1e-4)
    # The offset u is uniform: Kolmogorov and Smirnov's distance, 1.63 / sqrt(n) at 1 %.
    u = np.sort(strata[:, 0])
    assert np.abs(u - (np.arange(200) + 0.5) / 200).max() < 1.63 / np.sqrt(200)
    assert not np.isclose(times[0], stratified_times(4, 0, 16)).any()


def moments(model, batch, context):
    """Of the numbers that the step gives the rows."""
    t, rows = batch["stratified"], jnp.float32(len(batch["stratified"]))
    return {"loss": Term((model["w"] * t).sum(), rows), "square": Term((t**2).sum(), rows, 0.0)}


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 1), (8, 4)])
def test_step_gives_the_rows_their_times_before_it_cuts_them(devices, microbatches):
    mesh = make_mesh(devices=jax.devices()[:devices])
    state = init_state(lambda: {"w": jnp.ones(())}, optax.sgd(0.1), mesh, ())
    step = make_train_step(
        moments, optax.sgd(0.1), mesh, state, seed=3, microbatches=microbatches, clip_norm=None
    )
    batch = jax.device_put({"x": np.zeros(B, np.float32)}, batch_sharding(mesh))
    for number in range(2):
        before = float(state.model["w"])
        state, metrics = step(state, batch)
        t = np.asarray(stratified_times(3, number, B), np.float64)
        assert float(state.model["w"]) == pytest.approx(before - 0.1 * t.mean(), rel=1e-6)
        assert float(metrics["square"][0]) == pytest.approx(np.square(t).sum(), rel=1e-6)


def convolutional(model, batch, context):
    """A weighted mean over rows of the squares that a stack of convolutions gives."""
    hidden = batch["image"]
    for kernel in model:
        hidden = jax.lax.conv_general_dilated(
            hidden, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.silu(hidden)
    rows = jnp.square(hidden).sum((1, 2, 3))
    return {"loss": Term((batch["weight"] * rows).sum(), batch["weight"].sum())}


@pytest.mark.parametrize("devices", [1, 4])
def test_unrolled_microbatches_have_no_loop_the_same_numbers_and_less_memory(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    rng = np.random.default_rng(0)
    model = [jnp.asarray(rng.normal(size=(3, 3, 4, 4)) / 6, jnp.float32) for _ in range(4)]
    batch = {
        "image": rng.normal(size=(32, 8, 8, 4)).astype(np.float32),
        "weight": rng.integers(0, 3, 32).astype(np.float32),
    }
    batch = jax.device_put(batch, batch_sharding(mesh))

    def compute(microbatches, *, unroll):
        gradients_of = jax.jit(make_gradients(convolutional, mesh, microbatches, unroll=unroll))
        lowered = gradients_of.lower(model, batch, None)
        compiled = lowered.compile()
        scratch = compiled.memory_analysis().temp_size_in_bytes
        return compiled(model, batch, None), "while" in lowered.as_text(), scratch

    expected, _, whole = compute(1, unroll=False)
    for unroll in (False, True):
        actual, loops, scratch = compute(4, unroll=unroll)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert loops != unroll
        assert scratch < 0.5 * whole


def test_split_rows_deals_them_out():
    parts = split_rows({"x": np.arange(8)}, 4)
    np.testing.assert_array_equal(parts["x"], [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_batches_that_do_not_divide_are_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"got 12 rows, 8 devices and 1 micro.*batch_size 16"):
        check_rows(12, make_mesh(), 1)
    check_rows(16, make_mesh(4), 2)
