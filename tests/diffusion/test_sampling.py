"""The sampler as its users call it: settings, executables, devices, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.grids import GRIDS
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.sampling import SOLVERS, SamplerConfig, make_sampler, settings_of
from genai_jax.diffusion.steps import starting_noise
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding, replicated

ROWS, SHAPE, T = 16, (2, 2, 1), 20
DIFFUSION = Diffusion(Process("cosine", num_steps=T), "v", learned_variance=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """Cheap to compile: v is tanh(w x), less by the label; the log-variance is 0.3 of the way."""

    weights: jax.Array

    def __call__(self, x, noise_level, condition=None, key=None):
        told = 0 if condition is None else condition.reshape(-1, 1, 1, 1)
        said = jnp.tanh(x * self.weights) * (1 - 0.2 * told) - 0.3 * told
        return jnp.concatenate([said, jnp.full_like(said, -0.4)], axis=-1)

    def null_condition(self, condition):
        return jnp.zeros_like(condition)


NETWORK, WEAKER = (Network(w * jnp.array([[[0.5], [1.5]], [[2.0], [1.0]]])) for w in (1, 0.5))
KEYS = jax.random.split(jax.random.key(0), ROWS)
LABELS = np.arange(ROWS, dtype=np.int32) % 3


@functools.cache
def sampler(solver):
    return make_sampler(DIFFUSION, SHAPE, solver)


def sample(config, **arguments):
    start = arguments.pop("start", 1.0)
    settings = settings_of(config, start)
    return np.asarray(sampler(config.solver)(NETWORK, KEYS, LABELS, settings, **arguments).x)


# Of each setting: the others by which it has an effect, and a value that has another one.
EVERYWHERE = {
    "num_steps": ({}, 7),
    "grid": ({}, "karras"),
    "rho": ({"grid": "karras"}, 3.0),
    "sigma_min": ({"grid": "log_snr"}, 0.2),
    "guidance_scale": ({}, 3.0),
    "guidance_start": ({"guidance_scale": 3.0}, 0.5),
    "guidance_stop": ({"guidance_scale": 3.0}, 0.5),
    "guidance_rescale": ({"guidance_scale": 3.0}, 0.7),
    "threshold": ({"guidance_scale": 9.0}, "static"),
    "threshold_percentile": ({"guidance_scale": 9.0, "threshold": "dynamic"}, 0.5),
}
CHURN = {
    "churn": ({}, 4.0),
    "churn_min": ({"churn": 4.0}, 0.5),
    "churn_max": ({"churn": 4.0}, 0.5),
    "churn_noise": ({"churn": 4.0}, 1.3),
}
OWN = {
    "ancestral": {"variance": ({}, "learned")},
    "ddim": {"eta": ({}, 0.5)},
    "euler": CHURN,
    "heun": CHURN,
    "dpm_solver_2m": {},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_executable_serves_every_setting(solver):
    for name, (others, value) in {**EVERYWHERE, **OWN[solver]}.items():
        config = SamplerConfig(solver, **{"num_steps": 10, "threshold": "none", **others})
        before, after = sample(config), sample(dataclasses.replace(config, **{name: value}))
        assert np.all(np.isfinite(after)) and np.abs(after).max() <= 1
        assert np.abs(after - before).max() > 1e-3, name
    for kind in GRIDS:
        for num_steps in (1, T):
            assert np.all(np.isfinite(sample(SamplerConfig(solver, num_steps, kind))))
    sample(SamplerConfig(solver), start=0.3)
    assert sampler(solver)._cache_size() == 1


@pytest.mark.parametrize(
    ("fsdp", "solver", "noise"), [(1, "heun", {"churn": 2.0}), (2, "ddim", {"eta": 1.0})]
)
def test_devices_change_nothing(fsdp, solver, noise):
    """Eight devices, each with its own rows; or the compiler's, where parameters are cut."""
    mesh = make_mesh(fsdp, devices=jax.devices())
    config = SamplerConfig(solver, num_steps=6, guidance_scale=2.0, guidance_stop=0.7, **noise)
    model = jax.device_put(NETWORK, replicated(mesh))
    if fsdp > 1:
        model = jax.device_put(NETWORK, NamedSharding(mesh, P("fsdp")))
    rows = jax.device_put((KEYS, LABELS), batch_sharding(mesh))
    found = make_sampler(DIFFUSION, SHAPE, solver, mesh)(model, *rows, settings_of(config)).x
    assert found.sharding.is_equivalent_to(batch_sharding(mesh), 4)
    np.testing.assert_allclose(found, sample(config), atol=2e-6)


def test_a_row_is_the_same_in_any_batch():
    config = SamplerConfig("ddim", num_steps=6, eta=1.0)
    whole = sample(config)
    order = np.random.default_rng(0).permutation(ROWS)
    moved = sampler("ddim")(NETWORK, KEYS[order], LABELS[order], settings_of(config)).x
    np.testing.assert_allclose(moved, whole[order], atol=1e-6)


def test_a_weaker_network_guides_without_condition():
    def guided(scale):
        settings = settings_of(SamplerConfig("ddim", num_steps=5, guidance_scale=scale))
        return sampler("ddim")(NETWORK, KEYS, None, settings, weaker=WEAKER).x

    assert np.abs(guided(2.0) - guided(1.0)).max() > 0.01


def test_frames_are_images_on_the_way():
    mesh = make_mesh(devices=jax.devices())
    watched = make_sampler(DIFFUSION, SHAPE, "euler", mesh, frames=4)
    settings = settings_of(SamplerConfig("euler", num_steps=12))
    samples = watched(NETWORK, KEYS, LABELS, settings)
    assert samples.trajectory.shape == (ROWS, 4, *SHAPE)
    assert np.abs(samples.trajectory).max() <= 1
    # The last step ends at the data: its estimate is the sample.
    np.testing.assert_allclose(samples.trajectory[:, -1], samples.x, atol=1e-6)


def test_rows_that_the_devices_do_not_divide_are_refused():
    run = make_sampler(DIFFUSION, SHAPE, "ddim", make_mesh(devices=jax.devices()))
    with pytest.raises(ValueError, match=r"got 12 images and 8 devices\. Choose 16\."):
        run(NETWORK, KEYS[:12], LABELS[:12], settings_of(SamplerConfig()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1; got 0"),
        ({"num_steps": -3}, "`num_steps` must be at least 1; got -3"),
        ({"rho": 0.0}, "`rho` must be positive"),
        ({"sigma_min": -1.0}, "`sigma_min` must be positive"),
        ({"sigma_min": float("nan")}, "`sigma_min` must be positive"),
        ({"rho": float("inf")}, "`rho` must be positive"),
        ({"eta": 1.5}, r"`eta` must be in \[0, 1\]; got 1.5"),
        ({"solver": "heun", "churn": -1.0}, "`churn` must not be negative"),
        ({"solver": "heun", "churn_min": 2.0, "churn_max": 1.0}, "`churn_max` must not be below"),
        ({"guidance_scale": -1.0}, "`guidance_scale` must not be negative"),
        ({"guidance_scale": float("inf")}, "`guidance_scale` must not be .* infinite; got inf"),
        ({"guidance_rescale": 2.0}, r"`guidance_rescale` must be in \[0, 1\]"),
        ({"guidance_start": 0.8, "guidance_stop": 0.2}, "between two times"),
        ({"guidance_stop": 1.5}, "between two times"),
        ({"threshold_percentile": 99.5}, r"`threshold_percentile` must be in \[0, 1\]; got 99.5"),
        ({"solver": "heun", "eta": 0.5}, "`eta` belongs to ddim; got 0.5 with `solver` 'heun'"),
        ({"churn": 3.0}, "`churn` belongs to euler and heun"),
        ({"variance": "large"}, "`variance` belongs to ancestral"),
    ],
)
def test_meaningless_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


@pytest.mark.parametrize("start", [0.0, -0.1, 1.1, float("nan")])
def test_a_start_that_is_no_time_is_refused(start):
    with pytest.raises(ValueError, match=r"`start` must be in \(0, 1\]"):
        settings_of(SamplerConfig(), start)


def test_what_a_network_cannot_be_asked_for_is_refused():
    plain, edm = Diffusion(Process("linear", num_steps=T), "eps"), Diffusion(Process("edm"), "edm")
    most = SamplerConfig(num_steps=T + 1)
    with pytest.raises(ValueError, match=r"must not exceed .* got 21 and 20\. Choose at most 20"):
        most.check(plain, conditional=True)
    most.check(edm, conditional=True)
    learned = SamplerConfig("ancestral", num_steps=T, variance="learned")
    with pytest.raises(ValueError, match="needs a network that learns it"):
        learned.check(plain, conditional=True)
    learned.check(DIFFUSION, conditional=True)
    guided = SamplerConfig(num_steps=T, guidance_scale=2.0)
    with pytest.raises(
        ValueError, match=r"trained with and without a condition.*`guidance_scale` 2\.0"
    ):
        guided.check(plain, conditional=False)
    guided.check(plain, conditional=True)
    guided.check(plain, conditional=False, weaker=True)
    coarse = SamplerConfig(grid="karras", sigma_min=100.0)
    with pytest.raises(ValueError, match=r"must be below .* got 100\.0 and 80"):
        coarse.check(edm, conditional=True)


def test_images_and_noise_can_be_given():
    config = SamplerConfig("ddim", num_steps=5, threshold="none")
    blank = jnp.zeros((ROWS, *SHAPE))
    noise = starting_noise(KEYS, blank)
    np.testing.assert_allclose(sample(config, image=blank, noise=noise), sample(config), atol=1e-6)
    # From an image, one step says what the denoiser says of it with that noise.
    image, config = jnp.full_like(blank, 0.5), SamplerConfig(num_steps=1, threshold="none")
    for start in (0.15, 0.9):
        alpha, sigma = DIFFUSION.process.alpha_sigma(jnp.float32(start))
        x_t = alpha * image + sigma * noise
        x_0 = alpha * x_t - sigma * NETWORK(x_t, None, LABELS)[..., :1]
        found = sample(config, image=image, noise=noise, start=start)
        np.testing.assert_allclose(found, jnp.clip(x_0, -1, 1), atol=1e-5)


def test_another_solver_leaves_behind_what_belongs_to_one():
    config = SamplerConfig("ddim", eta=1.0, num_steps=7)
    assert config.with_solver("ddim") is config
    assert config.with_solver("heun") == SamplerConfig("heun", num_steps=7)
