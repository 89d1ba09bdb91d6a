"""The classifier: counts and shapes by hand, rows on their own, and what cannot be built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models import classifier
from genai_jax.models.classifier import Classifier, ClassifierConfig, count_parameters
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import shardings_for
from genai_jax.paths import named_leaves

TINY = ClassifierConfig(
    image_size=8, channels=2, widths=(8, 16), feature_dim=12, heads=(3, 5, 2), dropout=0.5
)


def draw(config, seed):
    return jax.jit(lambda key: Classifier(config, key))(jax.random.key(seed))


@pytest.fixture(scope="module")
def model():
    return draw(TINY, 0)


def images_of(n, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, 8, 8, 2), minval=-1, maxval=1)


def test_parameters_are_those_of_the_layers():
    conv = sum(9 * i * o + o + 2 * o for i, o in ((2, 8), (8, 8), (8, 16), (16, 16)))
    linear = 16 * 4 * 4 * 12 + 12 + 12 * (3 + 5 + 2) + (3 + 5 + 2)
    assert count_parameters(TINY) == conv + linear


def test_heads_read_one_layer_and_have_their_classes(model):
    images = images_of(4)
    logits, features = model(images), model.features(images)
    assert [x.shape for x in logits] == [(4, 3), (4, 5), (4, 2)]
    assert features.shape == (4, 12)
    joined = features @ model.heads.kernel[...] + model.heads.bias[...]
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), joined, rtol=1e-5, atol=1e-6)


def test_signals_keep_their_size_through_the_layers():
    config = ClassifierConfig(image_size=32, channels=3, widths=(32, 64, 64, 64), heads=(10,))
    images = jax.random.normal(jax.random.key(2), (8, 32, 32, 3))
    features = jax.jit(Classifier.features)(model := draw(config, 1), images)
    logits = features @ model.heads.kernel[...]
    assert 0.2 < float(features.std()) < 2
    assert 0.2 < float(logits.std()) < 2


def test_rows_do_not_see_each_other(model):
    """Values and gradients of a row are the same in any company."""
    images = images_of(4)

    def first(images):
        return sum(x[0].sum() for x in model(images))

    alone = images.at[1:].set(0.0)
    assert first(images) == pytest.approx(float(first(alone)), rel=1e-5)
    gradient = jax.grad(first)(images)
    np.testing.assert_allclose(gradient[0], jax.grad(first)(alone)[0], rtol=1e-4, atol=1e-6)
    assert not gradient[1:].any()
    assert jnp.all(jnp.any(gradient[0] != 0, axis=-1))  # all of the image is seen


def test_dropout_is_keyed_by_row_and_off_without_keys(model):
    images, keys = images_of(4), jax.random.split(jax.random.key(3), 4)
    noisy = model(images, keys)[1]
    assert not np.allclose(noisy, model(images)[1])
    moved = model(images[::-1], keys[::-1])[1][::-1]
    np.testing.assert_allclose(noisy, moved, rtol=1e-5, atol=1e-6)
    same = model(jnp.tile(images[:1], (4, 1, 1, 1)), keys)[1]
    assert len(np.unique(np.asarray(same[:, 0]))) == 4


def test_names_say_what_decays_what_muon_takes_and_what_is_cut(model):
    names = [name for name, _ in named_leaves(model)]
    assert [n for n in names if classifier.decays(n)] == [n for n in names if "kernel" in n]
    taken = {n: classifier.hidden_matrix(n) for n in names if classifier.hidden_matrix(n)}
    assert taken == {
        "blocks/1/conv/kernel": (3, 1),
        "blocks/2/conv/kernel": (3, 1),
        "blocks/3/conv/kernel": (3, 1),
        "last/kernel": (1, 1),
    }
    mesh = make_mesh(4)
    cut = named_leaves(shardings_for(model, mesh, classifier.SHARDING_RULES))
    specs = {name: sharding.spec[-1] for name, sharding in cut if len(sharding.spec)}
    assert specs["blocks/1/conv/kernel"] == specs["last/kernel"] == "fsdp"
    assert specs["heads/kernel"] is None  # 4 does not divide 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 6, "widths": (8, 8, 8)}, "got 6 and (8, 8, 8)"),
        ({"heads": (3, 1)}, "at least 2 classes; got (3, 1)"),
        ({"widths": ()}, "`widths` and `feature_dim` must be positive"),
        ({"dropout": 1.0}, "`dropout` must be in [0, 1); got 1.0"),
        ({"channels": -1}, "`channels` must not be negative; got -1"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(changes, words):
    with pytest.raises(ValueError) as error:
        ClassifierConfig(**({"image_size": 8, "channels": 1, "heads": (2,)} | changes))
    assert words in str(error.value)


def test_images_of_another_size_and_unknown_shapes_are_refused(model):
    with pytest.raises(ValueError, match=r"must be 8 × 8 × 2, .*; got 8 × 8 × 1"):
        model(images_of(2)[..., :1])
    with pytest.raises(ValueError, match=r"`image_size` must be known"):
        Classifier(ClassifierConfig(), jax.random.key(0))
