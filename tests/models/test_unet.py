import dataclasses
import math
from collections import Counter

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models import unet
from genai_jax.models.unet import UNet, count_parameters, flops_per_image
from genai_jax.models.unet_config import UNetConfig
from genai_jax.nn.config import TransformerConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding, shardings_for
from genai_jax.paths import map_named, named_leaves
from genai_jax.training.step import make_gradients
from genai_jax.types import Term

B, SIZE, CHANNELS, CLASSES = 8, 8, 2, 3
CONFIG = UNetConfig(
    image_size=SIZE,
    channels=CHANNELS,
    width=8,
    multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    groups=4,
    num_classes=CLASSES,
    dropout=0.3,
)
TEXT = TransformerConfig(
    vocab_size=11, num_layers=1, embed_dim=8, num_heads=2, max_length=6, causal=False
)
X = jax.random.normal(jax.random.key(1), (B, SIZE, SIZE, CHANNELS))
LEVEL = jnp.linspace(-1.5, 999.0, B)
LABELS = jnp.arange(B) % (CLASSES + 1)
KEYS = jax.random.split(jax.random.key(2), B)


def stir(model):
    """Redraw the parameters: as drawn, every branch ends almost at zero."""

    def redraw(name, leaf):
        noise = jax.random.normal(jax.random.key(len(name) + leaf.size), leaf.shape)
        if name.endswith("scale"):
            return 1 + 0.1 * noise
        return noise / math.sqrt(max(1, leaf.size // leaf.shape[-1]))

    return map_named(redraw, model)


def make(config):
    return jax.jit(lambda: UNet(config, jax.random.key(0)))()


def make_stirred(config):
    return jax.jit(lambda: stir(UNet(config, jax.random.key(0))))()


def describe(config):
    return jax.eval_shape(lambda: UNet(config, jax.random.key(0)))


@pytest.fixture(scope="module")
def model():
    return make_stirred(CONFIG)


@jax.jit
def run(model, x=X, level=LEVEL, condition=None, key=None):
    return model(x, level, condition, key)


@jax.jit
def loss_and_gradient(model, x, key):
    """Differentiate by the parameters and by the images."""
    return jax.value_and_grad(
        lambda model, x: jnp.square(model(x, LEVEL, LABELS, key) - 1).mean(), argnums=(0, 1)
    )(model, x)


def assert_close(actual, expected, **tolerance):
    pairs = zip(named_leaves(actual), named_leaves(expected), strict=True)
    for (name, a), (_, b) in pairs:
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


def test_ddpm_has_the_size_of_the_paper():
    """Every part of the U-Net for CIFAR-10; the paper says 35.7 and 114 million."""
    model = describe(unet.CIFAR10_DDPM)
    parts = Counter()
    for name, leaf in named_leaves(model):
        parts[name.split("/")[0]] += leaf.size
    assert parts == {
        "level_in": 128 * 512 + 512,
        "level_out": 512 * 512 + 512,
        "conv_in": 3_584,
        "down": 10_190_720,
        "middle": 2_888_704,
        "up": 22_330_880,
        "norm_out": 256,
        "conv_out": 3_459,
    }
    assert parts["level_in"] + parts["level_out"] == 328_704
    assert count_parameters(unet.CIFAR10_DDPM) == 35_746_307
    assert count_parameters(unet.LSUN_DDPM) == 113_673_219


def products(jaxpr):
    """Count the products of a program's convolutions and matrix products."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        sizes = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "conv_general_dilated":
            _, kernel, out = sizes
            total += math.prod(out) * math.prod(kernel[:-1])
        if equation.primitive.name == "dot_general":
            left, _, out = sizes
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(out) * math.prod(left[i] for i in contracted)
    return total


def test_flops_are_those_of_the_program():
    """Two heads: one head's merged products are fewer than what is counted."""
    config = dataclasses.replace(
        CONFIG,
        multipliers=(1, 2, 2),
        num_res_blocks=2,
        num_heads=2,
        fourier_frequencies=(1,),
        learned_variance=True,
    )
    program = jax.make_jaxpr(lambda: UNet(config, jax.random.key(0))(X[:1], LEVEL[:1]))()
    norms = sum(  # a group norm averages over its groups by products too
        2 * leaf.size**2
        for name, leaf in named_leaves(describe(config))
        if name.endswith("scale") and leaf.size > config.groups
    )
    assert flops_per_image(config) == 6 * (products(program.jaxpr) - norms)
    assert flops_per_image(unet.CIFAR10_DDPM) / 6e9 == pytest.approx(6.22, abs=0.005)  # products


def test_it_begins_almost_at_zero():
    y = run(make(dataclasses.replace(CONFIG, learned_variance=True)))
    assert y.shape == (B, SIZE, SIZE, 2 * CHANNELS)
    assert 0 < float(jnp.abs(y).max()) < 1e-3


def test_rows_do_not_see_each_other(model):
    order = jax.random.permutation(jax.random.key(3), B)
    y = run(model, X, LEVEL, LABELS, KEYS)
    shuffled = run(model, X[order], LEVEL[order], LABELS[order], KEYS[order])
    np.testing.assert_allclose(shuffled, y[order], atol=1e-4)
    changed = run(model, X.at[0].add(1), LEVEL, LABELS, KEYS)
    np.testing.assert_allclose(changed[1:], y[1:], atol=1e-4)
    assert not np.allclose(changed[0], y[0], atol=1e-2)


def test_noise_levels_and_labels_are_told(model):
    y = run(model, X, LEVEL, LABELS)
    nearby = run(model, X, LEVEL + 0.25, LABELS)  # a quarter of a step of DDPM
    assert np.all(np.abs(nearby - y).max((1, 2, 3)) > 1e-4)
    others = run(model, X, LEVEL, (LABELS + 1) % (CLASSES + 1))
    assert np.all(np.abs(others - y).max((1, 2, 3)) > 1e-2)


def test_nothing_said_is_the_null_condition(model):
    null = model.null_condition(LABELS)
    np.testing.assert_array_equal(null, np.full(B, CLASSES))
    assert null.dtype == LABELS.dtype
    np.testing.assert_allclose(run(model), run(model, X, LEVEL, null), atol=1e-5)
    assert model.null_condition(None) is None


def test_dropout_is_the_rows_own_and_off_without_keys(model):
    y = run(model, X, LEVEL, LABELS, KEYS)
    assert not np.allclose(y, run(model, X, LEVEL, LABELS), atol=1e-2)
    same = run(model, X, LEVEL, LABELS, jnp.broadcast_to(KEYS[0], B))
    np.testing.assert_allclose(same[0], y[0], atol=1e-4)
    assert np.all(np.abs(same[1:] - y[1:]).max((1, 2, 3)) > 1e-2)


def test_every_parameter_is_trained(model):
    """Except the bias of one head's keys, with which all logits move alike."""
    _, (gradient, _) = loss_and_gradient(model, X, KEYS)
    idle = [name for name, leaf in named_leaves(gradient) if not np.any(leaf)]
    assert idle and all(name.endswith("attention/key/bias") for name in idle)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_forward_mode_agrees_with_the_reverse_mode(model):
    """Likelihoods differentiate the network forwards by the image."""
    d = jax.random.normal(jax.random.key(4), X.shape)
    y, slope = jax.jit(lambda: jax.jvp(lambda x: model(x, LEVEL, LABELS, KEYS), (X,), (d,)))()
    _, (_, by_x) = loss_and_gradient(model, X, KEYS)
    expected = float(jnp.vdot(by_x, d)) * y.size / 2
    assert float(jnp.vdot(y - 1, slope)) == pytest.approx(expected, rel=1e-3)


def test_recomputing_changes_nothing(model):
    config = dataclasses.replace(CONFIG, remat=True)
    like = describe(config)
    recomputing = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))
    assert_close(
        loss_and_gradient(recomputing, X, KEYS), loss_and_gradient(model, X, KEYS), atol=1e-5
    )


def test_bfloat16_activations_stay_near(model):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    like = describe(config)
    half = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))
    y, expected = run(half, X, LEVEL, LABELS), run(model, X, LEVEL, LABELS)
    assert y.dtype == jnp.float32
    error = float(jnp.sqrt(jnp.square(y - expected).mean() / jnp.square(expected).mean()))
    assert 1e-5 < error < 0.03


def test_fourier_features_are_channels_of_the_first_convolution(model):
    config = dataclasses.replace(CONFIG, fourier_frequencies=(1, 3))
    wider = make_stirred(config)
    parts = dict(named_leaves(model))

    def take(name, leaf):
        if name != "conv_in/kernel":
            return parts[name]
        return jnp.zeros_like(leaf).at[:, :, :CHANNELS].set(parts[name])

    silent = map_named(take, wider)
    np.testing.assert_allclose(run(silent), run(model), atol=1e-5)
    assert not np.allclose(run(wider), run(model), atol=1e-2)


def test_devices_do_not_show(model):
    """Rows over eight devices and parameters over four of them: the gradients of one device."""

    def objective(model, batch, context):
        said = model(batch["image"], batch["level"], batch["label"], batch["key"])
        error = jnp.square(said - batch["image"]).mean((1, 2, 3))
        return {"loss": Term(error.sum(), jnp.asarray(error.size, jnp.float32))}

    batch = {"image": X, "level": LEVEL, "label": LABELS, "key": KEYS}
    results = []
    for devices, fsdp in ((1, 1), (8, 4)):
        mesh = make_mesh(fsdp, devices=jax.devices()[:devices])
        parameters = jax.device_put(model, shardings_for(model, mesh, unet.SHARDING_RULES))
        rows = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in batch.items()}
        with jax.set_mesh(mesh):
            gradients = jax.jit(make_gradients(objective, mesh))(parameters, rows, None)
        results.append(jax.block_until_ready(gradients))
    assert_close(*results, atol=2e-5, rtol=1e-3)


def test_captions_are_read_and_their_padding_is_not():
    config = dataclasses.replace(CONFIG, num_classes=0, text=TEXT, num_heads=2)
    model = make_stirred(config)
    captions = jax.random.randint(jax.random.key(5), (B, 4), 1, 11).at[1:4, 2:].set(0)
    y = run(model, X, LEVEL, captions)
    longer = jnp.pad(captions, ((0, 0), (0, 2)))
    np.testing.assert_allclose(run(model, X, LEVEL, longer), y, atol=1e-4)
    swapped = captions.at[0, :2].set(captions[0, 1::-1])  # the order of words counts
    changed = np.abs(run(model, X, LEVEL, swapped) - y).max((1, 2, 3))
    assert changed[0] > 1e-3 and np.all(changed[1:] < 1e-4)
    null = run(model, X, LEVEL, model.null_condition(captions))
    np.testing.assert_allclose(run(model), null, atol=1e-4)


def test_groups_name_every_parameter_once():
    config = dataclasses.replace(CONFIG, num_classes=0, text=TEXT, num_heads=2)
    shapes = describe(config)
    for name, leaf in named_leaves(shapes):
        axes = unet.hidden_matrix(name)
        inside = name.startswith(("down", "middle", "up", "text/layers"))
        assert (axes is not None) == (inside and name.endswith("kernel")), name
        assert axes is None or sum(axes) == leaf.ndim
        assert unet.decays(name) == (leaf.ndim > 1 and not name.endswith("bias"))
    assert unet.hidden_matrix("down/0/blocks/0/residual/first_conv/kernel") == (3, 1)
    assert unet.hidden_matrix("middle/0/attention/output/kernel") == (2, 1)


BAD = [
    ({"image_size": 9}, "halved 1 times for 2 multipliers; got 9. Choose a multiple of 2"),
    ({"groups": 3}, "`groups` must divide every width; got 3"),
    ({"num_heads": 3}, "`num_heads` must divide the width of every attention; got 3 and 16"),
    ({"head_dim": 5}, "`head_dim` must divide the width of every attention; got 5 and 16"),
    ({"attention_resolutions": (4, 2)}, "among the heights 8, 4 of the U-Net; got 2"),
    ({"width": 5}, "`width` must be even and at least 4; got 5"),
    ({"multipliers": ()}, "`multipliers` are at least 1"),
    ({"dropout": 1.0}, "`dropout` must be in"),
    ({"num_res_blocks": 0}, "`num_res_blocks` must be at least 1; got 0"),
    ({"channels": -1}, "`channels` must not be negative; got -1"),
    ({"text": TEXT}, "a class or a caption"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_shapes_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_wrong_inputs_are_refused(model):
    with pytest.raises(ValueError, match="`image_size` must be known; got 0"):
        UNet(UNetConfig(channels=1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"must be 8 × 8 × 2.*got 4 × 8 × 2"):
        model(X[:, :4], LEVEL)
    with pytest.raises(ValueError, match=r"takes class labels \[b\]; got an array of shape \(8, 1"):
        model(X, LEVEL, LABELS[:, None])
    bare = describe(dataclasses.replace(CONFIG, num_classes=0))
    with pytest.raises(ValueError, match="takes no condition"):
        bare(X, LEVEL, LABELS)
