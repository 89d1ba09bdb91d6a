"""The classification objective against float64 sums, and its random moves row by row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.models.classifier import Classifier, ClassifierConfig
from genai_jax.objectives.classification import classification
from genai_jax.parallel.mesh import make_mesh
from genai_jax.training.step import make_gradients

ROWS = 6


class Fixed:
    """Gives the logits that it was made of, whatever the images, and keeps what it saw."""

    def __init__(self, *logits):
        self.logits = tuple(jnp.asarray(x, jnp.float32) for x in logits)
        self.seen = []

    def __call__(self, images, key=None):
        self.seen.append((images, key))
        return self.logits


def logits_of(classes, seed):
    return np.random.default_rng(seed).standard_normal((ROWS, classes)) * 3


def keys_of(seed=0):
    return jax.random.split(jax.random.key(seed), ROWS)


def images_of(seed=0, size=4):
    return jax.random.uniform(jax.random.key(seed), (ROWS, size, size, 2))


def seen_by(batch, **options):
    model = Fixed(logits_of(3, 0))
    classification(model, batch | {"label": jnp.zeros(ROWS, jnp.int32)}, **options)
    return model.seen[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_accuracy_are_means_over_the_counted_labels(smoothing):
    heads = [logits_of(3, 1), logits_of(4, 2)]
    labels = np.array([[0, 3], [1, -1], [2, 2], [-1, -1], [0, 0], [1, 1]], np.int32)
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)
    loss, correct, count = 0.0, 0, 0
    for head, logits in enumerate(heads):
        for row in range(ROWS):
            truth = labels[row, head]
            if truth < 0 or not weight[row]:
                continue
            log_p = logits[row] - np.log(np.exp(logits[row]).sum())
            loss -= (1 - smoothing) * log_p[truth] + smoothing * log_p.mean()
            correct += logits[row].argmax() == truth
            count += 1
    batch = {"image": images_of(), "label": jnp.asarray(labels), "weight": weight}
    terms = classification(Fixed(*heads), batch, label_smoothing=smoothing)
    assert count == 7
    assert float(terms["loss"].weight) == float(terms["accuracy"].weight) == count
    assert float(terms["loss"].sum) == pytest.approx(loss, rel=1e-5)
    assert float(terms["accuracy"].sum) == correct
    assert (terms["loss"].coefficient, terms["accuracy"].coefficient) == (1, 0)


def test_as_many_heads_as_labels_are_asked_for():
    batch = {"image": images_of(), "label": jnp.zeros((ROWS, 2), jnp.int32)}
    with pytest.raises(ValueError, match="zip"):
        classification(Fixed(logits_of(3, 0)), batch)


def test_nothing_is_smoothed_moved_mirrored_or_dropped_outside_of_training():
    batch = {"image": images_of(), "label": jnp.zeros(ROWS, jnp.int32), "key": keys_of()}
    model = Fixed(logits_of(3, 0))
    options = {"label_smoothing": 0.3, "shift": 2, "flip": True}
    terms = classification(model, batch, **options, training=False)
    images, key = model.seen[0]
    np.testing.assert_array_equal(images, batch["image"])
    assert key is None
    plain = classification(model, batch | {"label": batch["label"]}, training=False)
    assert terms["loss"] == plain["loss"]


def test_moves_repeat_the_edge_and_go_everywhere_alike():
    size, most = 5, 2
    image = jax.random.uniform(jax.random.key(1), (size, size, 1))
    padded = np.pad(np.asarray(image), ((most, most), (most, most), (0, 0)), mode="edge")
    places = [(i, j) for i in range(2 * most + 1) for j in range(2 * most + 1)]
    windows = np.stack([padded[i : i + size, j : j + size] for i, j in places])
    rows = 2000
    seen = []

    def model(images, key=None):
        seen.append(images)
        return (jnp.zeros((rows, 2)),)

    batch = {
        "image": jnp.tile(image, (rows, 1, 1, 1)),
        "label": jnp.zeros(rows, jnp.int32),
        "key": jax.random.split(jax.random.key(2), rows),
    }
    classification(model, batch, shift=most)
    same = (np.asarray(seen[0])[:, None] == windows).all(axis=(2, 3, 4))
    assert (same.sum(1) == 1).all()
    counts = same.sum(0)  # of 25 places, 80 expected each
    assert np.sum((counts - rows / 25) ** 2 / (rows / 25)) < 51.2  # chi^2 of 24 at 0.1 %


def test_mirroring_is_left_to_right_of_about_half():
    flipped, total = 0, 0
    for seed in range(20):
        batch = {"image": images_of(), "key": keys_of(seed)}
        seen = np.asarray(seen_by(batch, flip=True)[0])
        plain = np.asarray(batch["image"])
        is_plain = (seen == plain).all(axis=(1, 2, 3))
        is_mirrored = (seen == plain[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (is_plain ^ is_mirrored).all()
        flipped, total = flipped + is_mirrored.sum(), total + ROWS
    assert 0.35 < flipped / total < 0.65


def test_noise_belongs_to_the_row_and_each_purpose_has_its_own():
    batch = {"image": images_of(), "key": keys_of()}
    images, keys = seen_by(batch, shift=1, flip=True)
    order = jnp.array([3, 1, 4, 0, 5, 2])
    moved, moved_keys = seen_by({k: x[order] for k, x in batch.items()}, shift=1, flip=True)
    np.testing.assert_array_equal(moved, images[order])
    assert jnp.all(jax.random.key_data(moved_keys) == jax.random.key_data(keys[order]))
    assert not jnp.any(
        jnp.all(jax.random.key_data(keys) == jax.random.key_data(batch["key"]), axis=-1)
    )


def test_devices_and_microbatches_do_not_show_in_the_gradient():
    config = ClassifierConfig(
        image_size=4, channels=1, widths=(4,), feature_dim=6, heads=(3, 2), dropout=0.5
    )
    model = jax.jit(lambda key: Classifier(config, key))(jax.random.key(0))
    labels = np.random.default_rng(0).integers(-1, 2, (16, 2)).astype(np.int32)
    batch = {
        "image": jax.random.uniform(jax.random.key(1), (16, 4, 4, 1)),
        "label": jnp.asarray(labels),
        "weight": jnp.ones(16).at[3].set(0.0),
        "key": jax.random.split(jax.random.key(2), 16),
    }
    objective = functools.partial(classification, shift=1, flip=True, label_smoothing=0.1)
    mesh = make_mesh(devices=jax.devices()[:4])
    whole = make_gradients(objective, make_mesh(devices=jax.devices()[:1]))
    parts = make_gradients(objective, mesh, microbatches=2, unroll=True)
    expected, _ = jax.jit(whole)(model, batch, None)
    gradients, metrics = jax.block_until_ready(jax.jit(parts)(model, batch, None))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected
    )
    counted = np.sum(labels[np.arange(16) != 3] >= 0)
    assert float(metrics["loss"][1]) == counted
