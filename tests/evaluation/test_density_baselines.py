"""Simple densities against brute force, and on data whose entropy is known."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from genai_jax.evaluation import density_baselines
from genai_jax.evaluation.density_baselines import (
    Splits,
    full_gaussian,
    gaussian_mixture,
    histogram_masses,
    kernel_density,
    kernel_masses,
    measure_baselines,
    mixture_masses,
    pixel_histogram,
)

L = 4
EVERY_IMAGE = np.array(list(itertools.product(range(L), repeat=3)))
TRAIN = np.random.default_rng(0).choice(EVERY_IMAGE, 12)


def bin_mass(level, mean, deviation, num_levels=L):
    high = np.inf if level == num_levels - 1 else level + 0.5
    low = -np.inf if level == 0 else level - 0.5
    return norm.cdf(high, mean, deviation) - norm.cdf(low, mean, deviation)


def densities():
    rng = np.random.default_rng(1)
    weights, means = np.array([0.3, 0.7]), rng.uniform(-1, L, (2, 3))
    factors = rng.standard_normal((2, 3, 3))
    matrices = factors @ factors.transpose(0, 2, 1) + 0.3 * np.eye(3)
    return {
        "histogram": histogram_masses(TRAIN, L, 0.3),
        "kernels": kernel_masses(TRAIN.astype(np.uint8), L, 0.8),
        "variances": mixture_masses(weights, means, np.array([[0.1, 2, 9], [1, 0.01, 1]]), L),
        "matrices": mixture_masses(weights, means, matrices, L),
    }


@pytest.mark.parametrize("name", ["histogram", "kernels", "variances", "matrices"])
def test_masses_of_all_images_are_one(name):
    nats, errors = densities()[name](EVERY_IMAGE, 2000)
    assert nats.shape == errors.shape == (64,)
    simulated = math.sqrt(np.square(np.exp(nats) * errors).sum())
    assert (simulated > 0) == (name == "matrices")
    assert abs(np.exp(nats).sum() - 1) < 1e-10 + 4 * simulated
    assert simulated < 0.01


def test_kernel_density_is_brute_force():
    nats, _ = kernel_masses(TRAIN, L, 0.8)(EVERY_IMAGE[:20], 1)
    expected = [
        np.mean(
            [
                math.prod(bin_mass(level, centre, 0.8) for level, centre in zip(x, c, strict=True))
                for c in TRAIN
            ]
        )
        for x in EVERY_IMAGE[:20]
    ]
    np.testing.assert_allclose(np.exp(nats), expected, rtol=1e-10)


def test_diagonal_and_full_matrices_of_the_same_mixture_agree():
    weights, means = np.array([0.4, 0.6]), np.array([[0.0, 1, 2], [3, 2, 1.0]])
    variances = np.array([[0.5, 1, 0.2], [2, 0.3, 1]])
    matrices = np.stack([np.diag(row) for row in variances])
    exact, _ = mixture_masses(weights, means, variances, L)(EVERY_IMAGE, 8)
    simulated, errors = mixture_masses(weights, means, matrices, L)(EVERY_IMAGE, 8)
    np.testing.assert_allclose(simulated, exact, rtol=1e-12)
    assert errors.max() < 1e-12


def split(images, num_levels, draws=64):
    third = len(images) // 3
    return Splits(
        images[:third], images[third : 2 * third], images[2 * third :], num_levels, draws=draws
    )


def test_histogram_finds_the_entropy_of_independent_pixels():
    rng = np.random.default_rng(2)
    chances = np.array([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])  # 1.75 and 2 bits
    images = np.stack([rng.choice(4, 60_000, p=row) for row in chances], axis=1)
    found = pixel_histogram(split(images, 4))
    assert found.bits.mean == pytest.approx(1.875, abs=4 * found.bits.standard_error + 1e-3)
    assert found.bits.standard_error < 0.003
    assert found.bits.images == 20_000
    assert found.simulation_error == 0


def test_full_gaussian_finds_the_entropy_of_one():
    """Rounded to levels far narrower than it is, and with all of its correlation."""
    rng = np.random.default_rng(3)
    covariance = np.array([[16.0, 12.0], [12.0, 16.0]])
    images = np.rint(rng.multivariate_normal([32, 32], covariance, 3000)).astype(int)
    splits = split(images, 65)
    found = full_gaussian(splits, shrinkages=(0.001, 0.5), ridges=(0.01, 3.0))
    entropy = math.log2(2 * math.pi * math.e * math.sqrt(np.linalg.det(covariance))) / 2
    assert found.bits.mean == pytest.approx(entropy, abs=4 * found.bits.standard_error)
    assert found.bits.standard_error < 0.03
    assert found.tuned == {"shrinkage": 0.001, "ridge": 0.01}
    assert found.simulation_error < 0.005
    # Its pixels on their own do not know of each other: half of the mutual information more.
    alone = entropy - math.log2(1 - 0.75**2) / 4
    assert pixel_histogram(splits).bits.mean > (entropy + alone) / 2


def clusters(rng, count):
    """Two far apart, each of pixels that know of each other: 1 / 3 bit more a pixel for which."""
    which = rng.integers(0, 2, count)
    covariance = np.array([[4.0, 3, 0], [3, 4, 0], [0, 0, 1]])
    noise = rng.multivariate_normal(np.zeros(3), covariance, count)
    entropy = math.log2((2 * math.pi * math.e) ** 3 * np.linalg.det(covariance)) / 6 + 1 / 3
    return np.rint(np.where(which[:, None], 9, 30) + noise).clip(0, 39).astype(int), entropy


def test_mixtures_find_the_entropy_of_clusters():
    images, entropy = clusters(np.random.default_rng(4), 1500)
    splits = split(images, 40)
    full = gaussian_mixture(splits, "full", components=(1, 2, 1000), ridges=(1e-3,))
    assert full.tuned == {"components": 2, "ridge": 1e-3}
    assert full.bits.mean == pytest.approx(entropy, abs=4 * full.bits.standard_error)
    diagonal = gaussian_mixture(splits, "diag", components=(1, 2, 4), ridges=(1e-3, 0.1))
    # Two Gaussians without their correlation would cost this much.
    ignorant = entropy - math.log2(1 - 0.75**2) / 6
    assert full.bits.mean < diagonal.bits.mean < ignorant + 4 * diagonal.bits.standard_error
    assert diagonal.simulation_error == 0
    kernels = kernel_density(splits)
    assert full.bits.mean < kernels.bits.mean < entropy + 0.5


def test_constants_are_chosen_on_validation_images():
    images, _ = clusters(np.random.default_rng(5), 300)
    splits = split(images, 40)
    widths = (0.3, 1.0, 2.0, 8.0)
    chosen = kernel_density(splits, widths)
    bits = {
        width: -kernel_masses(splits.train, 40, width)(splits.validation, 1)[0].mean()
        / (3 * math.log(2))
        for width in widths
    }
    assert chosen.tuned["bandwidth"] == min(bits, key=bits.get)
    assert chosen.validation_bits == pytest.approx(min(bits.values()))
    # Other test images change what is reported, and nothing else.
    other = kernel_density(dataclasses.replace(splits, test=splits.train), widths)
    assert other.tuned == chosen.tuned
    assert other.bits.mean < chosen.bits.mean


def test_all_of_them_are_measured(monkeypatch):
    few = functools.partial(gaussian_mixture, components=(2,), ridges=(0.3,))
    monkeypatch.setattr(density_baselines, "gaussian_mixture", few)
    images = np.random.default_rng(6).integers(0, 3, (60, 4))
    found = measure_baselines(split(images, 3, draws=16))
    assert len({one.name for one in found}) == len(found) == 5
    for one in found:  # nothing beats chance on noise, and a prediction is never free
        assert math.log2(3) - 0.1 < one.bits.mean < 3
        assert one.tuned


def test_there_must_be_something_to_choose_from():
    """A mixture of more Gaussians than half of the images is none."""
    splits = Splits(TRAIN, TRAIN, TRAIN, L)
    with pytest.raises(ValueError, match="got none for the Gaussian mixture, diag covariances"):
        gaussian_mixture(splits, "diag", components=(7,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_levels": 1}, "`num_levels` must be at least 2; got 1"),
        ({"num_levels": 3}, r"Levels of `train` must be in 0 \.\.\. 2; got 0 \.\.\. 3"),
        ({"test": TRAIN - 1}, r"Levels of `test` must be in 0 \.\.\. 3; got -1"),
        ({"validation": TRAIN[:1]}, "`validation` must have at least 2 images; got 1"),
        ({"draws": 2}, "`draws` must be at least 16; got 2"),
    ],
)
def test_what_has_no_meaning_is_refused(change, message):
    splits = {"train": TRAIN, "validation": TRAIN, "test": TRAIN, "num_levels": L}
    with pytest.raises(ValueError, match=message):
        Splits(**(splits | change))
