import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from genai_jax.diffusion.denoiser import ImageModel
from genai_jax.models import dit
from genai_jax.models.dit import DiT, DiTConfig, count_parameters, dit_trunk, flops_per_image
from genai_jax.nn.config import TransformerConfig
from genai_jax.nn.embeddings import sinusoids
from genai_jax.nn.patches import grid_sinusoids, patchify, unpatchify
from genai_jax.parallel.sharding import spec_for
from genai_jax.paths import map_named, named_leaves
from genai_jax.training.storage import from_storage, to_storage

B, SIZE, C, P, D, WORDS, CLASSES = 2, 6, 2, 2, 16, 11, 5
LABELS = DiTConfig(
    image_size=SIZE,
    channels=C,
    patch_size=P,
    transformer=dit_trunk(2, D, 2),
    num_classes=CLASSES,
)
TEXT = dataclasses.replace(
    LABELS,
    num_classes=0,
    text=TransformerConfig(
        vocab_size=WORDS,
        num_layers=1,
        embed_dim=8,
        num_heads=2,
        max_length=6,
        causal=False,
        attention="dense",
    ),
)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def filled(config):
    """Build a DiT with numbers in every parameter, so that nothing is the identity."""
    shapes = jax.eval_shape(lambda: DiT(config, jax.random.key(0)))
    return map_named(lambda name, x: 0.3 * normal(zlib.crc32(name.encode()), x.shape), shapes)


X, LEVEL = normal(0, (B, SIZE, SIZE, C)), jnp.array([3.0, 70.5])
CLASS = jnp.array([4, 1])
CAPTION = jnp.array([[3, 1, 4, 1, 5, 9], [2, 6, 0, 0, 0, 0]])
CASES = {"labels": (LABELS, CLASS), "text": (TEXT, CAPTION)}
MODELS = {name: filled(config) for name, (config, _) in CASES.items()}


@jax.jit
def run(model, x, level, condition, key=None):
    return model(x, level, condition, key)


def parameters_of_the_paper(layers, d, tokens, latent=4, patch=2, classes=1000):
    """Count by hand: Peebles and Xie, section 3.2; positions are counted, as their code does."""
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 6 * d * d + 6 * d
    level = 256 * d + d + d * d + d
    patch_in = patch * patch * latent * d + d
    patch_out = d * patch * patch * 2 * latent + patch * patch * 2 * latent
    final = patch_out + 2 * d * d + 2 * d
    return layers * block + level + patch_in + final + (classes + 1) * d + tokens * d


@pytest.mark.parametrize(
    ("config", "layers", "width", "gflops"),
    [
        (dit.DIT_S_2, 12, 384, 6.06),
        (dit.DIT_B_2, 12, 768, 23.01),
        (dit.DIT_L_2, 24, 1024, 80.71),
        (dit.DIT_XL_2, 28, 1152, 118.64),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_sizes_and_costs_are_those_of_the_paper(config, layers, width, gflops):
    """Costs: table 4, which counts a multiplication with its addition as one, forwards."""
    positions = 16 * 16 * width
    by_hand = parameters_of_the_paper(layers, width, 16 * 16)
    assert count_parameters(config) + positions == by_hand
    assert flops_per_image(config) / 6e9 == pytest.approx(gflops, abs=0.025)
    if config is dit.DIT_XL_2:
        assert by_hand == 675_129_632  # of the published checkpoint


def test_costs_count_the_caption_and_its_encoder():
    """By hand, in products: a token costs 12 D² a layer, a pair of tokens 2 D, a vector 6 D²."""
    t, d = TEXT.text, 8
    encoder = 6 * (4 * d * d + 3 * d * t.mlp_size) + 2 * 36 * d
    trunk = 2 * (15 * 12 * D * D + 2 * 225 * D + 6 * D * D)
    ends = 9 * P * P * D * 2 * C + D * (256 + D) + 2 * D * D + 7 * d * D
    assert flops_per_image(TEXT) == 6 * (encoder + trunk + ends)
    assert flops_per_image(TEXT, 0) < flops_per_image(TEXT, 3) < flops_per_image(TEXT)


def test_a_dit_begins_by_saying_zero():
    # Another generator than the usual one, since its program compiles three times as fast.
    key = jax.random.key(0, impl="unsafe_rbg")
    model = DiT(dataclasses.replace(TEXT, learned_variance=True), key)
    assert isinstance(model, ImageModel)
    said = run(model, X, LEVEL, CAPTION)
    np.testing.assert_array_equal(said, np.zeros((B, SIZE, SIZE, 2 * C)))


def test_around_silent_blocks_it_is_its_formula():
    """With modulations that gate nothing through, in float64: patches, positions, last layer."""
    model = map_named(lambda name, x: 0 * x if "layers" in name else x, MODELS["labels"])
    p = {name: np.asarray(x, np.float64) for name, x in named_leaves(model)}

    def silu(x):
        return x / (1 + np.exp(-x))

    def linear(name, x):
        kernel = p[f"{name}/kernel"]
        axes = kernel.ndim - p[f"{name}/bias"].ndim
        return np.tensordot(x, kernel, axes) + p[f"{name}/bias"]

    waves = np.asarray(sinusoids(LEVEL, 256), np.float64)
    vector = linear("level_out", silu(linear("level_in", waves)))
    vector = vector + p["class_embedding/table"][np.asarray(CLASS)]
    patches = np.asarray(patchify(X, P), np.float64)
    tokens = linear("patch_in", patches) + grid_sinusoids(3, 3, D)
    centred = tokens - tokens.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    shift, scale = np.moveaxis(linear("final_modulation/linear", silu(vector))[:, 0], 1, 0)
    out = linear("patch_out", normed * (1 + scale[:, None]) + shift[:, None])
    expected = unpatchify(jnp.asarray(out, jnp.float32), 3)
    np.testing.assert_allclose(run(model, X, LEVEL, CLASS), expected, atol=1e-4)


def test_both_directions_of_differentiation_agree():
    """Likelihoods differentiate forwards, training backwards: <w, J v> is <Jᵀ w, v>."""

    def function(x):
        return run(MODELS["text"], x, LEVEL, CAPTION)

    v, w = normal(1, X.shape), normal(2, X.shape)
    _, forwards = jax.jvp(function, (X,), (v,))
    _, pull = jax.vjp(function, X)
    (backwards,) = pull(w)
    assert np.abs(forwards).max() > 0.1
    assert jnp.vdot(w, forwards) == pytest.approx(float(jnp.vdot(backwards, v)), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_nothing_said_is_the_null_condition(case):
    model, condition = MODELS[case], CASES[case][1]
    null = model.null_condition(condition)
    assert (null.shape, null.dtype) == (condition.shape, condition.dtype)
    nothing = run(model, X, LEVEL, None)
    np.testing.assert_allclose(run(model, X, LEVEL, null), nothing, atol=2e-5)
    told = run(model, X, LEVEL, condition)
    assert np.all(np.max(np.abs(told - nothing), axis=(1, 2, 3)) > 0.01)
    # Row by row, as guidance doubles a batch.
    mixed = run(model, X, LEVEL, jnp.stack([condition[0], null[1]]))
    np.testing.assert_allclose(mixed, jnp.stack([told[0], nothing[1]]), atol=2e-5)
    assert model.null_condition(None) is None


@jax.jit
def slopes(model, x, caption):
    """Gradients by the parameters and by the image, and the output."""

    def loss(model, x):
        out = model(x, LEVEL[1:], caption)
        return jnp.sum(jnp.sin(out)), out

    return jax.grad(loss, (0, 1), has_aux=True)(model, x)


def assert_same_slopes(actual, expected):
    (by_model, by_image), out = actual
    (by_model_wanted, by_image_wanted), out_wanted = expected
    np.testing.assert_allclose(out, out_wanted, atol=2e-5)
    np.testing.assert_allclose(by_image, by_image_wanted, atol=5e-5)
    found, wanted = to_storage(by_model), to_storage(by_model_wanted)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, atol=1e-5 * (1 + np.abs(x).max()), err_msg=name)


def test_padding_of_a_caption_is_invisible_in_values_and_gradients():
    model = MODELS["text"]
    short = slopes(model, X[1:], CAPTION[1:, :2])
    assert_same_slopes(slopes(model, X[1:], CAPTION[1:]), short)


def test_scanned_and_recomputed_layers_compute_the_same():
    trunk = dataclasses.replace(TEXT.transformer, layers="scanned", remat="full")
    text = dataclasses.replace(TEXT.text, layers="scanned", remat="full")
    scanned = dataclasses.replace(TEXT, transformer=trunk, text=text)
    like = jax.eval_shape(lambda: DiT(scanned, jax.random.key(0)))
    other = from_storage(to_storage(MODELS["text"]), like)
    expected = slopes(MODELS["text"], X[1:], CAPTION[1:])
    assert_same_slopes(slopes(other, X[1:], CAPTION[1:]), expected)


@pytest.mark.parametrize("cut", ["text_pooled", "text_states"])
def test_a_caption_is_heard_as_tokens_and_as_a_whole(cut):
    """Whichever of the two ways is cut off, the other still tells one word from another."""
    model = map_named(lambda name, x: 0 * x if cut in name else x, MODELS["text"])
    other = CAPTION.at[:, 1].set(8)
    difference = run(model, X, LEVEL, CAPTION) - run(model, X, LEVEL, other)
    assert np.all(np.max(np.abs(difference), axis=(1, 2, 3)) > 1e-3)


def test_only_positions_tell_patches_apart(monkeypatch):
    """Without them a DiT maps permuted patches to permuted patches; with them it does not."""
    order = np.random.default_rng(0).permutation(9)
    permuted = unpatchify(patchify(X, P)[:, order], 3)

    def difference():
        call = jax.jit(lambda x: MODELS["labels"](x, LEVEL, CLASS))
        patches, others = (patchify(call(x), P) for x in (X, permuted))
        return np.max(np.abs(patches[:, order] - others))

    assert difference() > 0.1
    monkeypatch.setattr(dit, "grid_sinusoids", lambda rows, columns, dim: np.zeros((9, dim)))
    assert difference() < 2e-5


def test_dropout_follows_the_key_of_the_row():
    config = dataclasses.replace(
        TEXT,
        transformer=dataclasses.replace(TEXT.transformer, dropout=0.5),
        text=dataclasses.replace(TEXT.text, dropout=0.5),
    )
    model, keys = filled(config), jax.random.split(jax.random.key(0), 3)
    both = run(model, X, LEVEL, CAPTION, keys[:2])
    alone = run(model, X[1:], LEVEL[1:], CAPTION[1:], keys[1:2])
    np.testing.assert_allclose(both[1:], alone, atol=5e-5)
    assert np.max(np.abs(alone - run(model, X[1:], LEVEL[1:], CAPTION[1:], keys[2:]))) > 0.1


def test_halves_inside_keep_the_type_outside():
    trunk = dataclasses.replace(LABELS.transformer, dtype="bfloat16")
    model = filled(dataclasses.replace(LABELS, transformer=trunk))
    out, expected = run(model, X, LEVEL, CLASS), run(MODELS["labels"], X, LEVEL, CLASS)
    assert out.dtype == jnp.float32
    error = np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.05


def test_fourier_features_are_read():
    config = dataclasses.replace(LABELS, fourier_frequencies=(1, 2))
    model = filled(config)
    assert model.patch_in.kernel.shape == (P, P, 5 * C, D)
    assert run(model, X, LEVEL, CLASS).shape == X.shape


def test_groups_name_every_parameter_once():
    stored = to_storage(MODELS["text"])
    hidden = {name for name in stored if dit.hidden_matrix(name)}
    assert hidden == {
        f"{stack}/{name}/kernel"
        for stack in ("layers", "text/layers")
        for name in (
            *(f"attention/{part}" for part in ("query", "key", "value", "output")),
            *("mlp/up", "mlp/down", *(["mlp/gate"] if stack != "layers" else [])),
        )
    }
    for name in hidden:
        inputs, outputs = dit.hidden_matrix(name)
        assert inputs + outputs == stored[name].ndim - 1, name  # the first axis counts layers
    assert {name for name in stored if dit.decays(name)} == {
        name for name in stored if name.endswith(("kernel", "table"))
    }


@pytest.mark.parametrize("config", [dit.DIT_XL_2, dit.SHAPES], ids=["XL/2", "shapes"])
def test_eight_devices_hold_an_eighth_each(config):
    if config.text is not None:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=40))
    mesh = jax.make_mesh((1, 8), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    model = jax.eval_shape(lambda: DiT(config, jax.random.key(0)))
    whole = {
        name: leaf.size
        for name, leaf in named_leaves(model)
        if not any(spec_for(name, leaf.shape, mesh, dit.SHARDING_RULES))
    }
    total = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert not any(name.endswith(("kernel", "table")) for name in whole), whole
    assert sum(whole.values()) < 0.005 * total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "`patch_size` must divide `image_size`; got 2 and 7"),
        ({"patch_size": 0}, "`patch_size` must divide"),
        ({"channels": -1}, "`channels` must not be negative; got -1"),
        ({"transformer": TransformerConfig()}, "modulated False, causal True, positions 'rope'"),
        ({"transformer": dit_trunk(1, 6, 1)}, "a multiple of 4.*got 6"),
        ({"text": TransformerConfig(vocab_size=3)}, "reads both ways"),
        ({"text": TEXT.text}, "has a class or a caption; got `num_classes` 5"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LABELS, **options)


def test_size_and_channels_are_needed():
    with pytest.raises(ValueError, match="`channels` must be known"):
        DiT(dataclasses.replace(LABELS, channels=0), jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "x", "condition", "message"),
    [
        ("labels", X[:, :4], CLASS, "must be 6 × 6 × 2.*got 4 × 6 × 2"),
        ("labels", X, CAPTION, r"takes class labels \[b\]; got an array of shape \(2, 6\)"),
        ("text", X, CLASS, r"takes captions \[b, l\]; got an array of shape \(2,\)"),
    ],
)
def test_what_the_model_is_not_made_for_is_refused(model, x, condition, message):
    with pytest.raises(ValueError, match=message):
        MODELS[model](x, LEVEL, condition)
