"""The network as everything else sees it: what it is told, and what is made of its answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.diffusion.denoiser import Diffusion, ImageModel
from genai_jax.diffusion.process import Process
from tests.diffusion.known_scores import IdealNetwork, make_denoiser, make_mixture

PROCESSES = [
    Process("linear", num_steps=100),
    Process("cosine", log_snr_min=-15.0),
    Process("edm"),
    Process("flow", log_snr_min=-15.0),
]
MIXTURE = make_mixture(4, 3)
X = MIXTURE.sample(jax.random.key(0), 5).reshape(5, 2, 2, 1)


@pytest.mark.parametrize(
    ("number", "target"),
    [(0, "eps"), (0, "flow"), (1, "v"), (1, "x_0"), (2, "edm"), (2, "eps"), (3, "flow"), (3, "v")],
)
def test_every_process_and_target_makes_the_same_denoiser(number, target):
    """An ideal network, called by its noise level on scaled input, is E[x_0 | x_t]."""
    process = PROCESSES[number]
    diffusion = Diffusion(process, target)
    denoise = jax.jit(diffusion.make_denoiser(IdealNetwork(MIXTURE, diffusion)))
    exact = jax.jit(make_denoiser(MIXTURE, process))
    t = jnp.asarray([0.01, 0.1, 0.4, 0.7, 0.95])
    alpha, sigma = (level[:, None, None, None] for level in process.alpha_sigma(t))
    x_t = alpha * X + sigma * jax.random.normal(jax.random.key(1), X.shape)
    found = denoise(x_t, t)
    assert found.log_variance is None
    # Of eps and flow an error is divided by alpha.
    atol = 2e-5 * np.asarray(1 / alpha + sigma * (target == "flow"))
    assert (np.abs(found.x_0 - exact(x_t, t).x_0) < atol).all()


def test_one_time_for_all_rows_is_that_time_a_row():
    diffusion = Diffusion(PROCESSES[1])
    denoise = jax.jit(diffusion.make_denoiser(IdealNetwork(MIXTURE, diffusion)))
    one, each = denoise(X, jnp.float32(0.3)), denoise(X, jnp.full(5, 0.3))
    np.testing.assert_allclose(one.x_0, each.x_0, rtol=1e-6)


def test_conditions_reach_the_network():
    diffusion = Diffusion(PROCESSES[1])
    labels = jnp.asarray([0, 1, 2, 3, 0])  # 3 says nothing
    found = diffusion.make_denoiser(IdealNetwork(MIXTURE, diffusion), labels)(X, jnp.float32(0.5))
    expected = make_denoiser(MIXTURE, diffusion.process, labels)(X, jnp.float32(0.5))
    np.testing.assert_allclose(found.x_0, expected.x_0, atol=1e-5)


class Recorder:
    """A network that says what it was called with."""

    def __init__(self, channels):
        self.channels = channels

    def __call__(self, x, noise_level, condition=None, key=None):
        self.seen = x, noise_level, condition, key
        return jnp.broadcast_to(jnp.arange(1.0, self.channels + 1), (*x.shape[:3], self.channels))

    def null_condition(self, condition):
        return condition


def test_networks_are_called_as_they_want_to_be():
    """DDPM's step index, 1000 t, and EDM's log(sigma) / 4 with input of unit variance."""
    assert isinstance(Recorder(1), ImageModel)
    keys = jax.random.split(jax.random.key(0), 5)
    t = jnp.asarray([0.01, 0.25, 0.5, 0.75, 1.0])
    expected = {
        PROCESSES[0]: [0, 24, 49, 74, 99],
        Process("flow"): [10, 250, 500, 750, 1000],
        PROCESSES[2]: np.log([0.8, 20, 40, 60, 80]) / 4,
    }
    for process, levels in expected.items():
        target = "edm" if process.schedule == "edm" else "v"
        network = Recorder(1)
        Diffusion(process, target).run(network, X, t, "told", keys)
        x, level, condition, key = network.seen
        np.testing.assert_allclose(level, levels, rtol=1e-5, atol=1e-5)
        assert condition == "told"
        assert (jax.random.key_data(key) == jax.random.key_data(keys)).all()
        if target == "edm":
            scale = 1 / np.sqrt((80 * np.asarray(t)) ** 2 + 0.25)
            np.testing.assert_allclose(x, X * scale[:, None, None, None], rtol=1e-5)
        else:
            np.testing.assert_array_equal(x, X)


def test_learned_variance_is_the_second_half_of_the_channels():
    process = Process("linear", num_steps=100)
    colour = jnp.zeros((2, 4, 4, 3))
    learned = Diffusion(process, "x_0", learned_variance=True)
    found = learned.make_denoiser(Recorder(6))(colour, jnp.float32(0.5))
    np.testing.assert_allclose(found.x_0[0, 0, 0], [1, 2, 3], rtol=1e-5)
    # -1 to 1 is from the smallest to the largest.
    np.testing.assert_allclose(found.log_variance[0, 0, 0], [2.5, 3, 3.5])
    fixed = dataclasses.replace(learned, learned_variance=False)
    assert fixed.make_denoiser(Recorder(3))(colour, jnp.float32(0.5)).log_variance is None


def test_images_without_signal_are_no_trouble():
    """At t = 1 of the flow x_t is noise: v, x_0 and edm still say an image."""
    for target in ("v", "x_0", "edm"):
        for process in (Process("flow"), Process("cosine")):
            diffusion = Diffusion(process, target)
            denoise = jax.jit(diffusion.make_denoiser(IdealNetwork(MIXTURE, diffusion)))
            _, sigma = process.alpha_sigma(jnp.ones(()))
            x_0 = denoise(sigma * X, jnp.float32(1)).x_0
            assert jnp.isfinite(x_0).all()
            if process.schedule == "flow":  # then it can only be the mean of all
                mean = np.broadcast_to(MIXTURE.mean().reshape(2, 2, 1), x_0.shape)
                np.testing.assert_allclose(x_0, mean, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_data": 0.0}, r"`sigma_data` must be positive; got 0\.0\. Try 0\.5"),
        ({"target": "eps", "process": Process("cosine")}, r"process\.log_snr_min -15"),
        ({"target": "eps", "process": Process("flow")}, "Choose v, x_0 or flow"),
        (
            {
                "target": "eps",
                "process": Process("linear", num_steps=10, zero_terminal_snr=True),
            },
            "no signal is left",
        ),
        ({"learned_variance": True}, r"got process\.num_steps 0\. Give num_steps 1000"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(**arguments)


def test_a_diffusion_may_be_met_first_inside_jit():
    @jax.jit
    def level(t):
        diffusion = Diffusion(Process("cosine", log_snr_min=-12.5), "eps")
        return diffusion.process.log_snr(t)

    assert level(jnp.float32(1)) == pytest.approx(-12.5, rel=1e-5)
