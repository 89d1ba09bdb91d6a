import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from genai_jax.models import lm
from genai_jax.models.lm import LanguageModel
from genai_jax.models.lora import (
    adapters_of,
    add_lora,
    count_trained,
    is_adapter,
    merge_lora,
    with_base,
    without_lora,
)
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.linear import quantize_linears
from genai_jax.nn.lora import LoraConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import spec_for
from genai_jax.paths import map_named, named_leaves
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.partition import trainable, with_trainable
from genai_jax.training.state import init_state
from genai_jax.training.step import make_train_step
from genai_jax.training.storage import to_storage

CONFIG = TransformerConfig(
    vocab_size=31, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, max_length=12
)
CONFIG = dataclasses.replace(CONFIG, qkv_bias=True, init_std=0.3)
TOKENS = jax.random.randint(jax.random.key(9), (2, 12), 0, 31)
forward = jax.jit(lambda model, tokens: model(tokens))


LAYERS = ("unrolled", "scanned")


@functools.cache
def base(layers="unrolled", **changes):
    config = dataclasses.replace(CONFIG, layers=layers, **changes)
    return jax.jit(lambda: LanguageModel(config, jax.random.key(0)))()


def trained(model):
    """Give adapters numbers as if they had been trained, which do not depend on the storage."""
    rng = np.random.default_rng(0)
    new = {
        name: np.asarray(x) + 0.1 * rng.normal(size=x.shape)
        for name, x in to_storage(model).items()
        if is_adapter(name)
    }

    def put(name, leaf):
        first, _, rest = name.partition("/")
        layer, _, below = rest.partition("/")
        if not is_adapter(name):
            return leaf
        found = new[f"{first}/{below}"][int(layer)] if layer.isdigit() else new[name]
        return jnp.asarray(found, jnp.float32)

    return map_named(put, model)


KINDS = {
    "lora": LoraConfig(rank=3),
    "rslora, two": LoraConfig(rank=4, alpha=2.0, rslora=True, targets=("query", "down")),
    "dora": LoraConfig(rank=2, dora=True),
}


@functools.cache
def new(name, layers):
    """A model with adapters that have learned nothing."""
    add = jax.jit(lambda model, key: add_lora(model, KINDS[name], key))
    return add(base(layers), jax.random.key(1))


@functools.cache
def adapted(name, layers="unrolled"):
    return trained(new(name, layers))


@functools.cache
def logits(name, layers="unrolled"):
    return np.asarray(forward(adapted(name, layers), TOKENS))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def test_new_adapters_change_nothing_and_stacks_draw_what_lists_do(kind):
    one, other = (to_storage(new(kind, layers)) for layers in LAYERS)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    names = {name for name in one if is_adapter(name)}
    assert "layers/attention/query/lora/a" in names
    parts, wanted = (3 if kind == "dora" else 2), (2 if "two" in kind else 7)
    assert len(names) == parts * wanted
    a = np.asarray(one["layers/mlp/down/lora/a"])
    assert (a[0] != a[1]).all()
    for layers in LAYERS:
        expected = forward(base(layers), TOKENS)
        np.testing.assert_allclose(forward(new(kind, layers), TOKENS), expected, atol=2e-5)


@pytest.mark.parametrize("layers", LAYERS)
def test_merged_is_adapted(kind, layers):
    merged = jax.jit(merge_lora)(adapted(kind, layers))
    assert jax.tree.structure(merged) == jax.tree.structure(base(layers))
    expected = logits(kind, layers)
    assert np.abs(expected - forward(base(layers), TOKENS)).max() > 0.3
    np.testing.assert_allclose(forward(merged, TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert adapters_of(adapted(kind, layers))  # as it was


def test_stacks_compute_what_lists_do(kind):
    np.testing.assert_allclose(logits(kind, "unrolled"), logits(kind, "scanned"), atol=2e-5)


def test_without_adapters_it_is_the_base_on_the_same_arrays(kind):
    model, plain = adapted(kind), base()
    off = without_lora(model)
    assert jax.tree.structure(off) == jax.tree.structure(plain)
    arrays = {id(x) for x in jax.tree.leaves(model)}
    assert all(id(x) in arrays for x in jax.tree.leaves(off))
    within = jax.jit(lambda model, tokens: without_lora(model)(tokens))
    np.testing.assert_array_equal(within(model, TOKENS), forward(plain, TOKENS))
    moved = with_base(model, jax.tree.map(lambda x: x + 1, plain))
    before = dict(named_leaves(model))
    for name, leaf in named_leaves(moved):
        np.testing.assert_array_equal(leaf, before[name] + (0 if is_adapter(name) else 1))


def test_a_compiled_function_captures_neither_base_nor_adapters():
    compiled = jax.jit(lambda model, tokens: model(tokens))
    first = np.asarray(compiled(adapted("dora"), TOKENS))
    for part in (is_adapter, lambda name: not is_adapter(name)):
        moved = map_named(lambda name, x, part=part: x * 1.1 if part(name) else x, adapted("dora"))
        assert np.abs(np.asarray(compiled(moved, TOKENS)) - first).max() > 1e-3
    assert compiled._cache_size() == 1


def fresh(kind):
    config = dataclasses.replace(CONFIG, layers="scanned")
    return add_lora(LanguageModel(config, jax.random.key(0)), KINDS[kind], jax.random.key(1))


def training(model_of, name="adamw", fsdp=1, objective=next_token):
    """A state and a step in which adapters alone train."""
    mesh = make_mesh(fsdp, devices=jax.devices()[:fsdp])
    optimizer = make_optimizer(
        OptimizerConfig(name), lambda step: 1e-2, decays=lm.decays, muon=lm.hidden_matrix, mesh=mesh
    )
    state = init_state(model_of, optimizer, mesh, lm.SHARDING_RULES, trains=is_adapter)
    return state, make_train_step(objective, optimizer, mesh, state, seed=0, trains=is_adapter)


def batch():
    tokens = jax.random.randint(jax.random.key(3), (8, 13), 0, 31)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_mask": jnp.ones((8, 12)),
    }


def test_a_step_trains_adapters_alone_and_reads_the_base_it_is_given():
    traced = []

    def objective(*arguments):
        traced.append(1)
        return next_token(*arguments)

    state, step = training(lambda: fresh("dora"), objective=objective)
    names = {name for name, x in named_leaves(state.opt_state) if x.ndim}
    assert names and all(is_adapter(name) for name in names)
    before = [np.array(x) for x in jax.tree.leaves(state.model)]
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert losses[-1] < losses[0] - 0.01
    for (name, leaf), old in zip(named_leaves(state.model), before, strict=True):
        assert np.array_equal(leaf, old) != is_adapter(name), name
    times = len(traced)
    # The same step on another base: another loss, and nothing is compiled again.
    other = map_named(lambda name, x: x if is_adapter(name) else 1.5 * x, state.model)
    _, metrics = step(dataclasses.replace(state, model=other), batch())
    assert abs(float(metrics["loss"][0] / metrics["loss"][1]) - losses[-1]) > 0.05
    assert len(traced) == times > 0


@pytest.mark.parametrize(("pattern", "copies"), [(("global",), 0.5), (("global", "sliding"), 1.5)])
def test_frozen_kernels_have_no_gradients_and_are_not_kept_by_a_scan(pattern, copies):
    """By the compiler's analysis; a cycle of several kinds of layers may be reshaped once."""
    config = TransformerConfig(vocab_size=31, num_layers=4, embed_dim=128, num_heads=2)
    config = dataclasses.replace(
        config, layers="scanned", remat="full", layer_pattern=pattern, window=8
    )
    model = jax.eval_shape(
        lambda: add_lora(
            LanguageModel(config, jax.random.key(0)), LoraConfig(rank=1), jax.random.key(1)
        )
    )
    kernels = sum(4 * x.size for name, x in named_leaves(model) if name.endswith("kernel"))
    rows = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def gradients(model, batch):
        part = trainable(model, is_adapter)

        def loss(part):
            return next_token(with_trainable(model, part, is_adapter), batch)["loss"].sum

        return jax.grad(loss)(part)

    inputs = {"tokens": rows, "targets": rows, "loss_mask": rows}
    said = jax.jit(gradients).lower(model, inputs).compile().memory_analysis()
    assert said.temp_size_in_bytes < copies * kernels


def test_muon_leaves_adapters_to_adamw_and_two_devices_are_one():
    """Cut over two devices and not cut at all: the same adapters after a step."""
    found = []
    for fsdp in (1, 2):
        state, step = training(lambda: fresh("lora"), "muon", fsdp)
        if fsdp == 2:
            query = state.model.layers.attention.query.lora
            assert query.a[...].sharding.spec == PartitionSpec(None, "fsdp", None)
        state, _ = step(state, batch())
        found.append({n: np.asarray(x) for n, x in named_leaves(state.model) if is_adapter(n)})
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-4, err_msg=name)


def test_adapters_are_cut_along_what_is_not_their_rank():
    config = dataclasses.replace(CONFIG, layers="scanned", num_kv_heads=None, mlp_dim=32)
    model = jax.eval_shape(
        lambda: add_lora(
            LanguageModel(config, jax.random.key(0)), LoraConfig(rank=4), jax.random.key(1)
        )
    )
    mesh = make_mesh(4, devices=jax.devices()[:4])
    for name, leaf in named_leaves(model):
        if is_adapter(name):
            spec = tuple(spec_for(name, leaf.shape, mesh, lm.SHARDING_RULES))
            rank_axis = leaf.ndim - 1 if name.endswith("a") else 1
            assert spec.count("fsdp") == 1, name
            assert spec[rank_axis] is None and spec[0] is None, name
    assert lm.decays("layers/mlp/up/lora/a") and not lm.decays("layers/mlp/up/lora/magnitude")
    assert lm.hidden_matrix("layers/mlp/up/lora/a") is None


def test_adapters_train_on_a_base_of_8_bits():
    """Their gradient is that on the kernels that the integers stand for; merged, those move."""
    quantized = jax.jit(quantize_linears)(base("scanned"))
    assert quantized.layers.mlp.up.kernel.dtype == jnp.int8
    small = trained(add_lora(quantized, KINDS["dora"], jax.random.key(1)))
    # The kernels that the integers stand for: what merging makes of adapters that change nothing.
    no_change = add_lora(quantized, LoraConfig(rank=1), jax.random.key(1))
    wide = with_base(small, jax.jit(merge_lora)(no_change))
    assert wide.layers.mlp.up.kernel.dtype == jnp.float32

    @jax.jit
    def gradients(model):
        part = {name: x for name, x in named_leaves(model) if is_adapter(name)}

        def loss(part):
            terms = next_token(map_named(lambda name, x: part.get(name, x), model), batch())
            return terms["loss"].sum / terms["loss"].weight

        return jax.grad(loss)(part)

    found, expected = gradients(small), gradients(wide)
    largest = max(float(jnp.abs(x).max()) for x in expected.values())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=0.01 * largest, err_msg=name)
    error = forward(jax.jit(merge_lora)(small), TOKENS) - forward(wide, TOKENS)
    assert np.abs(error).max() < 1e-4


def test_two_percent_of_gpt2_train():
    """By hand: a projection of a layer has (inputs + outputs) numbers a rank."""
    shape = dataclasses.replace(lm.GPT2_124M, layers="scanned")
    for config, most in ((LoraConfig(), 0.011), (LoraConfig(rank=15), 0.02)):
        model = jax.eval_shape(
            lambda c=config: add_lora(LanguageModel(shape, jax.random.key(0)), c, jax.random.key(1))
        )
        count, whole = count_trained(model)
        assert count == 12 * config.rank * (4 * (768 + 768) + 2 * (768 + 3072))
        assert whole == 124_439_808 and count / whole <= most


def test_what_cannot_be_adapted_is_refused():
    model = jax.eval_shape(
        lambda: LanguageModel(dataclasses.replace(CONFIG, gated=False), jax.random.key(0))
    )
    with pytest.raises(ValueError, match="down, key, output, query, up, value; got gate"):
        add_lora(model, LoraConfig(targets=("gate",)), jax.random.key(0))
    with pytest.raises(ValueError, match="must have no adapters to be given some"):
        add_lora(adapted("lora"), LoraConfig(), jax.random.key(0))
    assert add_lora(model, LoraConfig(rank=0), jax.random.key(0)) is model
