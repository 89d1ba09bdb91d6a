import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models import lm
from genai_jax.models.lm import LanguageModel, count_parameters, flops_per_token
from genai_jax.nn.config import TransformerConfig
from genai_jax.objectives.next_token import next_token
from genai_jax.training.storage import from_storage, to_storage

V, T = 29, 24
BASE = TransformerConfig(
    vocab_size=V, num_layers=3, embed_dim=16, num_heads=2, max_length=T, init_std=0.3
)
FAMILIES = {
    "gpt2": dataclasses.replace(
        BASE,
        norm="layer",
        norm_bias=True,
        positions="learned",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        activation="gelu",
        gated=False,
    ),
    "llama": dataclasses.replace(BASE, num_kv_heads=1, tied=False),
    "gemma": dataclasses.replace(
        BASE,
        norm_offset=1.0,
        post_norms=True,
        qk_norm=True,
        embedding_scale=True,
        activation="gelu",
        window=5,
        layer_pattern=("sliding", "global"),  # three layers: a remainder of one
        local_theta=1e3,
        attention_softcap=20.0,
        final_softcap=10.0,
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    config = FAMILIES[request.param]
    return config, LanguageModel(config, jax.random.key(0))


def tokens(rows=2, length=T):
    return jax.random.randint(jax.random.key(1), (rows, length), 0, V)


def loss_and_gradients(model, batch):
    def loss(model):
        terms = next_token(model, batch)
        return terms["loss"].sum / terms["loss"].weight

    return jax.jit(jax.value_and_grad(loss))(model)


def packed_batch():
    """Two documents, and some padding, in one row; and the same documents by themselves."""
    ids = tokens(1, 21)[0]
    first, second = ids[:8], ids[8:]
    row = jnp.concatenate([first[:-1], second[:-1], jnp.zeros(T - 19, jnp.int32)])
    targets = jnp.concatenate([first[1:], second[1:], jnp.zeros(T - 19, jnp.int32)])
    segments = jnp.repeat(jnp.array([1, 2, 0]), jnp.array([7, 12, T - 19]), total_repeat_length=T)
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(12), jnp.zeros(T - 19, jnp.int32)])
    packed = {
        "tokens": row[None],
        "targets": targets[None],
        "loss_mask": (segments > 0).astype(jnp.float32)[None],
        "segment_ids": segments[None],
        "positions": positions[None],
    }

    def alone(document):
        padded = jnp.zeros((2, T), jnp.int32).at[:, : len(document) - 1]
        padded = padded.set(jnp.stack([document[:-1], document[1:]]))
        mask = (jnp.arange(T) < len(document) - 1).astype(jnp.float32)
        return padded[0], padded[1], mask

    parts = [jnp.stack(x) for x in zip(alone(first), alone(second), strict=True)]
    return packed, dict(zip(("tokens", "targets", "loss_mask"), parts, strict=True))


def test_packed_documents_train_as_documents_by_themselves(family):
    _, model = family
    packed, alone = packed_batch()
    expected, wanted = loss_and_gradients(model, alone)
    actual, gradients = loss_and_gradients(model, packed)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_predictions_do_not_see_the_future_nor_other_documents(family):
    _, model = family
    packed, _ = packed_batch()
    forward = jax.jit(
        lambda model, ids: model.hidden(
            ids, positions=packed["positions"], segment_ids=packed["segment_ids"]
        )
    )
    before = forward(model, packed["tokens"])
    changed = packed["tokens"].at[0, 12].add(1) % V  # in the second document, positions 7 to 18
    differs = np.any(np.asarray(forward(model, changed) != before), axis=(0, 2))
    assert differs[12] and not differs[:12].any() and not differs[19:].any()


def test_scanned_layers_compute_the_same(family):
    config, model = family
    scanned = dataclasses.replace(config, layers="scanned")
    like = LanguageModel(scanned, jax.random.key(5))
    other = from_storage(to_storage(model), like)
    for a, b in zip(
        jax.tree.leaves(other),
        jax.tree.leaves(LanguageModel(scanned, jax.random.key(0))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)  # drawn alike
    batch, _ = packed_batch()
    expected, wanted = loss_and_gradients(model, batch)
    actual, gradients = loss_and_gradients(other, batch)
    assert float(actual) == pytest.approx(float(expected), rel=1e-6)
    stored, needed = to_storage(gradients), to_storage(wanted)
    for name in needed:
        np.testing.assert_allclose(stored[name], needed[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_nothing(remat, layers):
    plain = dataclasses.replace(FAMILIES["gemma"], layers=layers)
    batch, _ = packed_batch()
    expected = loss_and_gradients(LanguageModel(plain, jax.random.key(0)), batch)
    config = dataclasses.replace(plain, remat=remat)
    actual = loss_and_gradients(LanguageModel(config, jax.random.key(0)), batch)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_cache_gives_what_the_whole_row_gives(family):
    _, model = family
    ids = tokens()
    expected = jax.jit(lambda model, ids: model(ids))(model, ids)
    decode = jax.jit(lambda model, ids, cache, positions: model.decode(ids, cache, positions))
    cache, parts = model.init_cache(2, T), []
    for start, width in ((0, 9), (9, 1), (10, 1), (11, T - 11)):
        positions = jnp.broadcast_to(jnp.arange(start, start + width), (2, width))
        hidden, cache = decode(model, ids[:, start : start + width], cache, positions)
        parts.append(model.logits(hidden))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), expected, atol=2e-4)


def test_published_models_have_their_published_sizes():
    assert count_parameters(lm.GPT2_124M) == 124_439_808
    assert count_parameters(lm.LLAMA3_8B) == 8_030_261_248


def test_flops_are_counted_from_the_matrix_products():
    """By hand: a layer is 4 D² + 2 D F products, the head D V; attention 2 N H a pair seen."""
    config = dataclasses.replace(BASE, gated=False, mlp_dim=64, num_layers=2)
    d, f, length = 16, 64, 10
    products = 2 * (4 * d * d + 2 * d * f) + V * d
    pairs = sum(range(1, length + 1)) / length
    assert flops_per_token(config, length) == pytest.approx(3 * (2 * products + 2 * 4 * d * pairs))
    window = dataclasses.replace(config, window=3, layer_pattern=("sliding",))
    seen = (1 + 2 + 3 * 8) / length
    assert flops_per_token(window, length) == pytest.approx(3 * (2 * products + 2 * 4 * d * seen))


def test_groups_name_every_parameter_once():
    model = LanguageModel(FAMILIES["gpt2"], jax.random.key(0))
    stored = to_storage(model)
    muon = {name for name in stored if lm.hidden_matrix(name)}
    assert muon == {name for name in stored if "layers" in name and name.endswith("kernel")}
    assert {name for name in stored if lm.decays(name)} == {
        name for name in stored if name.endswith(("kernel", "table"))
    }


def test_rows_beyond_the_context_are_refused(family):
    _, model = family
    with pytest.raises(ValueError, match=f"not be longer than `max_length`; got {T + 1}"):
        model.hidden(tokens(1, T + 1))


def test_a_vocabulary_is_needed():
    with pytest.raises(ValueError, match="`vocab_size` must be known"):
        LanguageModel(TransformerConfig(), jax.random.key(0))


@pytest.mark.parametrize("option", [{"causal": False}, {"modulated": True}])
def test_encoders_and_modulated_blocks_are_no_language_model(option):
    with pytest.raises(ValueError, match="is causal and not modulated"):
        LanguageModel(dataclasses.replace(BASE, **option), jax.random.key(0))
