import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from genai_jax.paths import map_named, named_leaves
from genai_jax.training.muon import orthogonalize
from genai_jax.training.optimizers import OptimizerConfig, make_optimizer
from genai_jax.training.storage import to_storage

STEPS = 4
L, V, D, N, H, F = 2, 24, 8, 2, 4, 16

CONFIGS = {
    "adamw": OptimizerConfig("adamw"),
    "lion": OptimizerConfig("lion"),
    "adafactor": OptimizerConfig("adafactor", adafactor_min_dim=4),
    "adafactor_relative": OptimizerConfig(
        "adafactor", adafactor_min_dim=4, adafactor_relative=True, adafactor_clip=0.5
    ),
    "muon": OptimizerConfig("muon"),
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class Layer(nnx.Module):
    """One of L layers, or with `slice(None)` the stack of them."""

    def __init__(self, index):
        def param(seed, *shape):
            return nnx.Param(jnp.asarray(normal(seed, L, *shape)[index], jnp.float32))

        self.query = param(0, D, N, H)
        self.query_bias = param(1, N, H)
        self.up = param(2, D, F)
        self.experts = param(3, 3, F, D)
        self.scale = param(4, D)


class Model(nnx.Module):
    def __init__(self, stacked):
        self.table = nnx.Param(jnp.asarray(normal(5, V, D), jnp.float32))
        self.layers = Layer(slice(None)) if stacked else nnx.List([Layer(i) for i in range(L)])


def decays(name):
    return not name.endswith(("bias", "scale"))


def muon(name):
    if "layers" not in name or not decays(name):
        return None
    return (1, 2) if name.endswith("query") else (1, 1)


def schedule(step):
    return 0.1 / (1 + step)


def train(config, params, gradients):
    """Take a few steps; gradients have a leading axis of steps."""
    optimizer = make_optimizer(config, schedule, decays=decays, muon=muon)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[0])(params, gradients)


def gradients_like(model, stacked):
    """Gradients of the same layers are the same, however they are stored."""

    def draw(name, leaf):
        if not stacked and (layer := re.search(r"layers/(\d+)/(.*)", name)):
            drawn = normal(len(layer[2]), STEPS, L, *leaf.shape)[:, int(layer[1])]
        else:
            drawn = normal(len(name.split("/")[-1]), STEPS, *leaf.shape)
        return jnp.asarray(drawn, jnp.float32)

    return map_named(draw, model)


@pytest.fixture(scope="module")
def runs():
    """Parameters and state after a few steps, by optimizer and storage."""
    done = {}
    for stacked in (False, True):
        model = Model(stacked)
        gradients = gradients_like(model, stacked)
        for name, config in CONFIGS.items():
            done[name, stacked] = train(config, model, gradients)
    return done


@pytest.mark.parametrize("name", CONFIGS)
def test_stacked_layers_are_updated_as_unstacked_ones(runs, name):
    (params, state), (stacked_params, stacked_state) = runs[name, False], runs[name, True]
    for unrolled, scanned in ((params, stacked_params), (state, stacked_state)):
        unrolled, scanned = to_storage(unrolled), to_storage(scanned)
        assert unrolled.keys() == scanned.keys()
        for leaf in unrolled:
            np.testing.assert_allclose(
                unrolled[leaf], scanned[leaf], rtol=2e-6, atol=2e-6, err_msg=leaf
            )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stacked", [False, True])
def test_state_is_named_for_its_parameters(runs, name, stacked):
    params, state = runs[name, stacked]
    shapes = {leaf_name: leaf.shape for leaf_name, leaf in named_leaves(params)}
    statistics = [(n, x) for n, x in named_leaves(state) if x.ndim]
    assert statistics and all(x.dtype == jnp.float32 for _, x in statistics)
    for state_name, leaf in statistics:
        if state_name.endswith(("/row", "/column")):
            continue
        owners = [n for n in shapes if state_name.endswith(f"/{n}")]
        assert owners, state_name
        assert leaf.shape == shapes[max(owners, key=len)]


@pytest.mark.parametrize("name", CONFIGS)
def test_sharded_update_equals_the_update_on_one_device(runs, name):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def shard(leaf):
        """Cut the first axis that eight devices can share."""
        axis = next((i for i, size in enumerate(leaf.shape) if size % 8 == 0), None)
        spec = P() if axis is None else P(*(None,) * axis, "fsdp")
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    model = Model(stacked=True)
    gradients = gradients_like(model, stacked=True)
    sharded = train(CONFIGS[name], jax.tree.map(shard, model), jax.tree.map(shard, gradients))
    jax.block_until_ready(sharded)
    for (leaf_name, leaf), one in zip(
        named_leaves(sharded), jax.tree.leaves(runs[name, True]), strict=True
    ):
        np.testing.assert_allclose(leaf, one, rtol=2e-5, atol=2e-6, err_msg=leaf_name)


def one_matrix_run(config, kernel, bias, kernel_gradients, bias_gradients):
    """Train a matrix that decays and a bias that does not, both of them in `layers/0`."""

    def tree(kernel, bias):
        arrays = {"layers": [{"kernel": kernel, "bias": bias}]}
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)

    params, _ = train(config, tree(kernel, bias), tree(kernel_gradients, bias_gradients))
    return params["layers"][0]["kernel"], params["layers"][0]["bias"]


def reference_run(direction, param, gradients, weight_decay):
    """The outer update in float64; `direction(g, t, memory)` may write to its memory."""
    memory = {}
    for t, gradient in enumerate(gradients):
        param = param - schedule(t) * (direction(gradient, t, memory) + weight_decay * param)
    return param


def adam(gradient, t, memory, b1=0.9, b2=0.95, eps=1e-8):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * gradient
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * gradient**2
    mean = memory["m"] / (1 - b1 ** (t + 1))
    return mean / (np.sqrt(memory["v"] / (1 - b2 ** (t + 1))) + eps)


def lion(gradient, t, memory, b1=0.9, b2=0.95):
    update = np.sign(b1 * memory.get("m", 0) + (1 - b1) * gradient)
    memory["m"] = b2 * memory.get("m", 0) + (1 - b2) * gradient
    return update


def adafactor(gradient, t, memory, clip=1.0):
    """Algorithm 4 of the paper, with sums; Algorithm 5 for vectors."""
    beta = 1 - (t + 1.0) ** -0.8
    square = gradient**2 + 1e-30
    if gradient.ndim == 2:
        memory["r"] = beta * memory.get("r", 0) + (1 - beta) * square.sum(1)
        memory["c"] = beta * memory.get("c", 0) + (1 - beta) * square.sum(0)
        variance = np.outer(memory["r"], memory["c"]) / memory["r"].sum()
    else:
        variance = memory["v"] = beta * memory.get("v", 0) + (1 - beta) * square
    update = gradient / np.sqrt(variance)
    return update / max(1, np.sqrt(np.mean(update**2)) / clip)


def newton_schulz(matrix, steps=5):
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon_direction(gradient, t, memory, momentum=0.95):
    """Keller Jordan's: the momentum as a mean, and Nesterov's look ahead."""
    memory["m"] = momentum * memory.get("m", 0) + (1 - momentum) * gradient
    ahead = momentum * memory["m"] + (1 - momentum) * gradient
    return 0.2 * np.sqrt(max(gradient.shape)) * newton_schulz(ahead)


@pytest.mark.parametrize(
    ("name", "of_kernel", "of_bias"),
    [
        ("adamw", adam, adam),
        ("lion", lion, lion),
        ("adafactor", adafactor, adafactor),
        ("muon", muon_direction, adam),
    ],
)
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_updates_match_a_float64_reference(name, of_kernel, of_bias, shape):
    kernel, bias = normal(0, *shape), normal(1, 6)
    kernel_gradients, bias_gradients = normal(2, STEPS, *shape), normal(3, STEPS, 6)
    actual = one_matrix_run(CONFIGS[name], kernel, bias, kernel_gradients, bias_gradients)
    expected = (
        reference_run(of_kernel, kernel, kernel_gradients, weight_decay=0.1),
        reference_run(of_bias, bias, bias_gradients, weight_decay=0),
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_relative_adafactor_is_optax_on_unstacked_matrices():
    theirs = optax.adafactor(
        schedule, min_dim_size_to_factor=4, clipping_threshold=0.5, weight_decay_rate=None
    )
    ours = make_optimizer(
        OptimizerConfig(
            "adafactor",
            weight_decay=0.0,
            adafactor_min_dim=4,
            adafactor_clip=0.5,
            adafactor_relative=True,
        ),
        schedule,
        decays=decays,
        muon=muon,
    )
    start = {"table": jnp.asarray(normal(0, 6, 10), jnp.float32), "scale": jnp.ones(5)}
    results = []
    for optimizer in (theirs, ours):
        params, state = start, optimizer.init(start)
        for t in range(STEPS):
            gradients = jax.tree.map(lambda x, t=t: jnp.asarray(normal(t, *x.shape)), start)
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    for name in start:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5, atol=1e-6)


def test_orthogonalize_brings_singular_values_near_one():
    matrices = jnp.asarray(normal(0, 3, 24, 48), jnp.float32)
    for x in (matrices, matrices.mT):
        found = orthogonalize(x, 5)
        values = np.linalg.svd(found, compute_uv=False)
        assert values.min() > 0.65 and values.max() < 1.25
        expected = np.stack(
            [newton_schulz(m) if m.shape[0] < m.shape[1] else newton_schulz(m.T).T for m in x]
        )
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.any(orthogonalize(jnp.zeros((4, 4)), 5))


def test_muon_moves_every_shape_at_the_same_root_mean_square():
    for shape in ((16, 16), (16, 64), (64, 16)):
        params = {"layers": [{"kernel": jnp.zeros(shape)}]}
        gradients = jax.tree.map(lambda x: jnp.asarray(normal(0, 1, *x.shape)), params)
        moved, _ = train(CONFIGS["muon"], params, gradients)
        rms = np.sqrt(np.mean(np.square(moved["layers"][0]["kernel"])))
        assert rms == pytest.approx(0.2 * schedule(0), rel=0.15)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "muon"])
def test_bfloat16_parameters_keep_a_float32_state(name):
    params = {"layers": [{"kernel": jnp.ones((4, 8), jnp.bfloat16)}]}
    gradients = {"layers": [{"kernel": jnp.ones((STEPS, 4, 8), jnp.bfloat16)}]}
    moved, state = train(CONFIGS[name], params, gradients)
    assert moved["layers"][0]["kernel"].dtype == jnp.bfloat16
    assert float(moved["layers"][0]["kernel"].max()) < 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_factored_state_is_small():
    optimizer = make_optimizer(CONFIGS["adafactor"], schedule, decays=decays, muon=muon)
    state = jax.eval_shape(optimizer.init, {"table": jnp.zeros((V, D))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == V + D


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("muon_momentum", 1.5),
        ("eps", 0.0),
        ("weight_decay", -1.0),
        ("muon_ns_steps", 0),
        ("adafactor_min_dim", 1),
    ],
)
def test_meaningless_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must.*got {value}"):
        OptimizerConfig(**{field: value})


def test_a_matrix_with_too_few_axes_is_refused():
    optimizer = make_optimizer(CONFIGS["muon"], schedule, decays=decays, muon=lambda name: (1, 2))
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(
        ValueError, match=r"`kernel` has shape \(4, 4\) and is said to have 1 and 2"
    ):
        optimizer.update(params, optimizer.init(params), params)
