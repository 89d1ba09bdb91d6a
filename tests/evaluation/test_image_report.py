"""The table of samples on a world whose truth is known: what is real passes, controls fail."""

import dataclasses
import json
import math

import numpy as np
import pytest

from genai_jax.data.image_rows import float_to_levels, levels_to_float
from genai_jax.diffusion.likelihood import Estimate
from genai_jax.evaluation.density_baselines import Baseline
from genai_jax.evaluation.features import pixels
from genai_jax.evaluation.frechet import frechet_distance, moments_of
from genai_jax.evaluation.image_report import (
    Bar,
    Column,
    as_json,
    draw_gaussians,
    draw_training_images,
    format_bits,
    format_table,
    make_bars,
    measure_draws,
)
from genai_jax.evaluation.yardstick import MEASURES, LabelledImages, Yardstick

LEVELS, COUNT, CLASSES = 129, 120, 3


def truth(n, seed):
    """Images of three classes, each on two thin arcs: far from any Gaussian."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    angle = random.uniform(0, 2 * np.pi, n)
    images = np.full((n, 3, 3, 1), -0.2)
    images[np.arange(n), labels, 0, 0] = 0.3
    images[:, :2, 1, 0] += 0.4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    images += 0.02 * random.standard_normal(images.shape)
    on_levels = levels_to_float(float_to_levels(images.astype(np.float32), LEVELS), LEVELS)
    return LabelledImages(on_levels, labels)


def predict(images):
    return images[:, :, 0, 0].argmax(axis=1)[:, None]


@pytest.fixture(scope="module")
def yardstick():
    return Yardstick(
        truth(360, 0),
        truth(COUNT, 1),
        levels=LEVELS,
        features=lambda images: np.tanh(6 * pixels(images)),
        predict=predict,
    )


@pytest.fixture(scope="module")
def columns(yardstick):
    train, labels, seeds = yardstick.train, yardstick.held_out.labels, range(3)
    return {
        "real": measure_draws(
            "training", draw_training_images(train, COUNT), yardstick, seeds, judged=False
        ),
        "new": measure_draws("new", lambda seed: truth(COUNT, 10 + seed), yardstick, seeds),
        "one": measure_draws("one Gaussian", draw_gaussians(train, None, COUNT), yardstick, seeds),
        "each": measure_draws("each", draw_gaussians(train, labels, COUNT), yardstick, seeds),
        "copies": measure_draws(
            "copies", draw_training_images(train, COUNT), yardstick, range(5, 8), bits=math.inf
        ),
    }


def failed(columns, name, density_bits=math.nan):
    bars = make_bars(columns["real"], density_bits)
    return {bar.measure for bar in bars if bar.fails(columns[name])}


def test_new_images_pass_every_bar(columns):
    assert failed(columns, "new") == set()
    new = columns["new"]
    assert new.mean("agreement") == 1
    assert new.mean("trained_on") > 0.95
    assert abs(new.mean("two_sample") - 0.5) < 0.1
    assert new.mean("copied") < 0.1


def test_controls_fail_where_they_must(columns):
    assert {"two_sample", "frechet"} <= failed(columns, "one")
    assert "two_sample" in failed(columns, "each")
    assert failed(columns, "copies", density_bits=2.0) == {"close", "bits"}
    # On pixels the Gaussian has the moments of the data, and the distance of the data.
    assert columns["one"].mean("frechet_pixels") < 2 * columns["real"].mean("frechet_pixels")


def test_an_unlabelled_draw_has_no_agreement_and_fails_none(columns):
    assert math.isnan(columns["one"].mean("agreement"))
    assert math.isnan(columns["one"].mean("trained_on"))
    assert not Bar("agreement", 0.97, at_least=True).fails(columns["one"])


def test_samples_are_rounded_to_the_levels_first(yardstick):
    drawn = truth(COUNT, 20)
    off = drawn.images + np.float32(0.4 * 2 / (LEVELS - 1)) * np.sign(
        np.random.default_rng(0).standard_normal(drawn.images.shape)
    ).astype(np.float32)
    assert yardstick.measure(LabelledImages(off, drawn.labels)) == yardstick.measure(drawn)
    features = np.tanh(6 * pixels(drawn.images))
    reference = np.tanh(6 * pixels(yardstick.held_out.images))
    expected = frechet_distance(moments_of(features), moments_of(reference))
    assert yardstick.frechet(off) == yardstick.measure(drawn)["frechet"] == expected


def test_wrong_labels_and_copies_are_seen(yardstick):
    drawn = truth(COUNT, 21)
    wrong = (drawn.labels + 1) % CLASSES
    values = yardstick.measure(LabelledImages(drawn.images, wrong))
    assert values["agreement"] == 0
    assert values["trained_on"] < 0.05
    values = yardstick.measure(LabelledImages(yardstick.train.images[:COUNT], None))
    assert values["copied"] == 1


def test_draws_of_another_size_are_refused(yardstick):
    with pytest.raises(ValueError, match=r"got 60 and 120\. The Fréchet distance depends on it"):
        yardstick.measure(truth(60, 0))


def test_training_draws_are_distinct_images_and_a_function_of_the_seed(yardstick):
    draw = draw_training_images(
        LabelledImages(np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1), np.arange(50)), 40
    )
    drawn = draw(0)
    assert len(np.unique(drawn.images)) == 40
    np.testing.assert_array_equal(drawn.images.ravel(), drawn.labels)
    np.testing.assert_array_equal(draw(0).labels, drawn.labels)
    assert (draw(1).labels != drawn.labels).any()


def test_training_draws_have_the_classes_that_are_asked_for():
    numbers = np.arange(50)
    train = LabelledImages(numbers.astype(np.float32).reshape(50, 1, 1, 1), numbers % 5)
    asked = np.array([4] * 9 + [0] * 3 + [2] * 12)
    drawn = draw_training_images(train, 24, asked)(0)
    np.testing.assert_array_equal(drawn.labels, asked)
    np.testing.assert_array_equal(drawn.images.ravel() % 5, asked)
    assert len(np.unique(drawn.images[:12])) == 12  # but of the ten twos some come twice
    several = LabelledImages(train.images, np.stack([numbers, numbers], axis=1))
    assert len(np.unique(draw_training_images(several, 40, several.labels)(0).images)) == 40


def test_gaussians_have_the_moments_of_their_class():
    random = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    images = random.standard_normal((4000, 2, 1, 1)) * 0.1 + labels[:, None, None, None]
    images[labels == 1, 1] = images[labels == 1, 0]  # singular: both pixels are equal
    train = LabelledImages(images.astype(np.float32), labels)
    drawn = draw_gaussians(train, labels, 4000)(1)
    np.testing.assert_array_equal(drawn.labels, labels)
    for label in (0, 1):
        real, made = (pixels(x.images[labels == label]) for x in (train, drawn))
        np.testing.assert_allclose(made.mean(0), real.mean(0), atol=0.01)
        np.testing.assert_allclose(np.cov(made.T), np.cov(real.T), atol=1e-3)
    both = draw_gaussians(train, None, 4000)(1)
    assert both.labels is None
    np.testing.assert_allclose(np.cov(pixels(both.images).T), np.cov(pixels(images).T), atol=0.02)


def made_up(name, value, bits=math.nan, judged=True):
    draws = [{measure: value + d for measure in MEASURES} for d in (-0.01, 0.01)]
    return Column(name, draws, bits, 0.012, judged)


def test_table_says_mean_spread_bars_and_verdicts():
    real, model = made_up("real", 0.5, judged=False), made_up("model", 0.3, bits=1.5)
    bars = make_bars(real, 1.5)
    text = format_table([real, model], bars)
    assert "30.0 ± 1.4" in text  # a share, in per cent
    assert ">= 97.0" in text
    assert "1.500 ± 0.012" in text
    assert "<= 1.00\n" in text  # twice the distance of the training images
    verdict = text.splitlines()[-1]
    assert verdict.startswith("model: fails class agreement, % 30.0, not >= 97.0; ")
    assert "bits per dimension 1.500" in verdict  # the best density has to be beaten
    better = dataclasses.replace(model, bits=1.49)
    assert "bits per dimension" not in format_table([better], bars).splitlines()[-1]
    passing = format_table([made_up("m", 0.2)], [Bar("two_sample", 0.6), Bar("bits", 1.0)])
    assert passing.endswith("m: passes all 1 bars that it was measured by")


def test_a_single_draw_has_no_spread_and_unmeasured_lines_are_left_out():
    column = Column("x", [dict.fromkeys(MEASURES, 0.5) | {"agreement": math.nan}])
    text = format_table([column], [])
    assert "±" not in text
    assert "class agreement" not in text
    assert "bits per dimension" not in text


def test_json_holds_every_draw(columns):
    bars = make_bars(columns["real"], 2.0)
    saved = json.loads(json.dumps(as_json(list(columns.values()), bars), allow_nan=False))
    assert len(saved["columns"]["new"]["draws"]) == 3
    assert saved["columns"]["one Gaussian"]["draws"][0]["agreement"] is None
    assert saved["columns"]["copies"]["bits_per_dimension"] == "inf"
    assert saved["columns"]["copies"]["fails"] == ["close", "bits"]
    assert saved["columns"]["training"]["fails"] == []
    assert saved["bars"]["agreement"] == {"limit": 0.97, "at_least": True}


def test_bits_are_written_one_below_the_other():
    baseline = Baseline("histogram", Estimate(2.4, 0.02, 359), 2.3, {"pseudo_count": 0.1}, 0.0)
    text = format_bits(Estimate(1.9, 0.01, 359), [baseline], "test").splitlines()
    assert text[0].startswith("bits per dimension of 359 images of the test split")
    assert text[1] == "the model, at most  1.900 ± 0.010"
    assert text[2] == "histogram           2.400 ± 0.020  pseudo_count 0.1, chosen on validation"
    assert format_bits(None, [], "test") == ""
