"""The loss of diffusion: closed forms for networks that know nothing, or everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.predictions import input_scale, like, make_target
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.weightings import LevelConfig
from genai_jax.objectives.denoising import drop, make_denoising
from genai_jax.training.step import row_keys, stratified_times

B, H, W, C = 512, 4, 4, 2
VP = Process("linear", num_steps=100, beta_last=0.02)


class Network:
    """Says what it is made to say, and takes note of how it was asked."""

    def __init__(self, say):
        self.say = say
        self.asked = []

    def __call__(self, x, noise_level, condition=None, key=None):
        self.asked.append((x, noise_level, condition, key))
        return self.say(x, noise_level, condition)

    def null_condition(self, condition):
        return jnp.full_like(condition, 10)


def make_batch(step=0, value=None):
    rng = np.random.default_rng(step)
    image = rng.uniform(-1, 1, (B, H, W, C)) if value is None else np.full((B, H, W, C), value)
    return {
        "image": jnp.asarray(image, jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, B), jnp.int32),
        "key": row_keys(3, step, B),
        "stratified": stratified_times(3, step, B),
    }


def loss_of(terms, name="loss"):
    return float(terms[name].sum) / float(terms[name].weight)


def nothing(x, noise_level, condition):
    return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("eps", 1.0),  # the variance of the noise
        ("x_0", 0.25),  # the square of the image
        ("flow", 1.25),  # both
        ("v", None),
    ],
)
def test_a_network_that_says_zero_pays_the_second_moment_of_its_target(target, expected):
    objective = make_denoising(Diffusion(VP, target), LevelConfig())
    terms = objective(Network(nothing), make_batch(value=0.5))
    if expected is None:  # alpha^2 + sigma^2 / 4 over the steps, each of which the strata hit
        alpha, sigma = VP.alpha_sigma(jnp.arange(1, 101) / 100)
        expected = float(jnp.mean(alpha**2 + sigma**2 / 4))
    # The mean of 16,384 squares of normal numbers: its deviation is 1.1 %.
    assert loss_of(terms) == pytest.approx(expected, rel=0.04)
    assert loss_of(terms, "mse") == loss_of(terms)


@pytest.mark.parametrize("target", ["eps", "x_0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", ["cosine", "flow", "edm"])
def test_who_knows_the_image_pays_nothing(schedule, target):
    """Every image is the same, so that the target follows from what is seen."""
    process = Process(schedule, log_snr_min=-12.0)
    diffusion = Diffusion(process, target)

    def ideal(x, noise_level, condition):
        t = ideal_times(process, noise_level)
        alpha, sigma = process.alpha_sigma(t)
        x_t = x / like(input_scale(target, alpha, sigma, diffusion.sigma_data), x)
        eps = (x_t - like(alpha, x) * 0.5) / like(sigma, x)
        return make_target(target, jnp.full_like(x, 0.5), eps, alpha, sigma, diffusion.sigma_data)

    objective = make_denoising(diffusion, LevelConfig(time_min=1e-2))
    assert loss_of(objective(Network(ideal), make_batch(value=0.5))) < 1e-5


def ideal_times(process, noise_level):
    """Times of the noise levels that a network is told."""
    return process.time_at(-8 * noise_level) if process.schedule == "edm" else noise_level / 1000


def test_weights_count_rows_and_fillers_nothing():
    objective = make_denoising(Diffusion(VP, "eps"), LevelConfig())
    batch = make_batch()
    halves = [
        objective(Network(nothing), batch | {"weight": weight})
        for weight in (jnp.arange(B) < 100, jnp.arange(B) >= 100)
    ]
    whole = objective(Network(nothing), batch)
    assert [float(half["loss"].weight) for half in halves] == [100, B - 100]
    total = sum(float(half["loss"].sum) for half in halves)
    assert total == pytest.approx(float(whole["loss"].sum), rel=1e-6)


def test_min_snr_is_the_weighted_mean_of_the_errors():
    """A network that says zero noise errs by eps; min-SNR then counts min(SNR, 5) / SNR of it."""
    objective = make_denoising(Diffusion(VP, "eps"), LevelConfig("min_snr"))
    snr = np.exp(np.asarray(VP.log_snr(jnp.arange(1, 101) / 100), np.float64))
    expected = np.mean(np.minimum(snr, 5) / snr)
    assert loss_of(objective(Network(nothing), make_batch())) == pytest.approx(expected, rel=0.05)


def test_conditions_are_dropped_as_often_as_said_and_only_in_training():
    network = Network(nothing)
    options = {"condition": "label", "condition_dropout": 0.25}
    diffusion = Diffusion(VP, "eps")
    make_denoising(diffusion, LevelConfig(), **options)(network, make_batch())
    make_denoising(diffusion, LevelConfig(), **options, training=False)(network, make_batch())
    make_denoising(diffusion, LevelConfig())(network, make_batch())
    (_, _, dropped, key), (_, _, kept, no_key), (_, _, none, _) = network.asked
    labels = np.asarray(make_batch()["label"])
    hidden = np.asarray(dropped) == 10
    assert hidden.mean() == pytest.approx(0.25, abs=0.06)  # three deviations
    np.testing.assert_array_equal(np.asarray(dropped)[~hidden], labels[~hidden])
    np.testing.assert_array_equal(kept, labels)
    assert key is not None
    assert no_key is None
    assert none is None


def test_images_are_mirrored_half_of_the_time_and_only_in_training():
    """A network that hands back what it sees: at the first step that is nearly the image."""
    process = Process("linear", num_steps=2, beta_first=1e-9, beta_last=1e-9)
    batch = make_batch()
    network = Network(nothing)
    for training in (True, False):
        objective = make_denoising(
            Diffusion(process, "x_0"), LevelConfig(), flip=True, training=training
        )
        objective(network, batch)
    image = np.asarray(batch["image"])
    flips = []
    for seen, *_ in network.asked:
        same = np.isclose(seen, image, atol=1e-2).all((1, 2, 3))
        mirrored = np.isclose(seen, image[:, :, ::-1], atol=1e-2).all((1, 2, 3))
        assert (same ^ mirrored).all()
        flips.append(mirrored.mean())
    assert flips[0] == pytest.approx(0.5, abs=0.07)
    assert flips[1] == 0


def test_learned_variance_is_trained_by_its_own_term_alone():
    diffusion = Diffusion(VP, "eps", learned_variance=True)
    batch = make_batch()

    def loss(parameters, vlb_weight):
        said, fraction = parameters

        def say(x, noise_level, condition):
            return jnp.concatenate([0 * x + said, 0 * x + fraction], -1)

        terms = make_denoising(diffusion, LevelConfig(), vlb_weight=vlb_weight)(Network(say), batch)
        return terms["loss"].sum / terms["loss"].weight

    gradient = jax.grad(loss)
    with_vlb, without = gradient((0.3, 0.2), 1e-3), gradient((0.3, 0.2), 0.0)
    np.testing.assert_allclose(with_vlb[0], without[0], rtol=1e-6)  # the mean does not feel it
    assert float(without[1]) == 0
    assert abs(float(with_vlb[1])) > 1e-5


def test_noise_belongs_to_the_row_and_not_to_the_batch():
    batch = make_batch()
    network = Network(nothing)
    objective = make_denoising(Diffusion(VP, "eps"), LevelConfig(), condition="label", flip=True)
    objective(network, batch)
    objective(network, jax.tree.map(lambda x: x[100:200], batch))
    (whole, levels, labels, keys), (part, part_levels, part_labels, part_keys) = network.asked
    np.testing.assert_array_equal(whole[100:200], part)
    np.testing.assert_array_equal(levels[100:200], part_levels)
    np.testing.assert_array_equal(labels[100:200], part_labels)
    assert (keys[100:200] == part_keys).all()


def test_drop_replaces_whole_rows_of_any_shape():
    tokens = jnp.arange(6).reshape(3, 2)
    dropped = drop(tokens, jnp.zeros_like(tokens), jnp.array([False, True, False]))
    np.testing.assert_array_equal(dropped, [[0, 1], [0, 0], [4, 5]])
