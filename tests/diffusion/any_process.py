"""Every process, and a solver compiled once for all of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genai_jax.diffusion.denoiser import Diffusion
from genai_jax.diffusion.predictions import Prediction, make_target
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.samplers import ancestral, ddim, dpm_solver_2m, euler, heun
from tests.diffusion.known_scores import AnyOf, make_denoiser

SOLVERS = {f.__name__: f for f in (ancestral, ddim, euler, heun, dpm_solver_2m)}
TARGETS = ("v", "x_0", "flow", "edm", "eps")

PROCESSES = {
    "linear": Process("linear"),
    "cosine": Process("cosine"),
    "cosine with some signal": Process("cosine", log_snr_min=-15.0),
    "sigmoid": Process("sigmoid"),
    "edm": Process("edm"),
    "flow": Process("flow"),
    "DDPM": Process("linear", num_steps=1000),
    "improved DDPM": Process("cosine", num_steps=100),
    "sigmoid, discrete": Process("sigmoid", num_steps=1000),
    "zero terminal SNR": Process("linear", num_steps=1000, zero_terminal_snr=True),
}
MOST_STEPS = 1024
EXACT = (
    "linear",
    "cosine",
    "sigmoid",
    "edm",
    "flow",
    "DDPM",
)  # tried in float64; only one has steps


class Unchecked(Diffusion):
    """A `Diffusion` whose process may be traced; what it would refuse is not finite."""

    def __post_init__(self):
        pass


@dataclasses.dataclass(frozen=True, eq=False)
class AtOneTime(Process):
    """A process that is asked about a single time, whose level was found before."""

    level: Any = ()

    def alpha_sigma(self, t):
        return self.level


def through_targets(denoise, process, rows):
    """Send what a denoiser says of each group of rows through another target and back."""

    def answers(x_t, t):
        x_0 = denoise(x_t, t).x_0
        alpha, sigma = process.alpha_sigma(t)
        eps = (x_t - alpha * x_0) / sigma
        found, first = [], 0
        for target, count in zip(TARGETS, rows, strict=True):
            own = slice(first, first + count)
            first += count

            def network(x, noise_level, condition, key, own=own, target=target):
                return make_target(target, x_0[own], eps[own], alpha, sigma, 0.5)

            network.null_condition = lambda condition: condition
            diffusion = Unchecked(AtOneTime(level=(alpha, sigma)), target)
            found.append(diffusion.make_denoiser(network)(x_t[own], t).x_0)
        return Prediction(jnp.concatenate(found))

    return answers


@functools.cache
def compiled(
    solver: str, names: tuple[str, ...] = tuple(PROCESSES), *, groups: tuple[int, ...] = ()
):
    """Compile `(name, distribution, x [rows, d], keys, times [n + 1], n, **options) -> x`.

    Args:
        solver: Its name.
        names: Of the processes that it may be asked for.
        groups: Rows of each target in turn, where answers are sent through one; else directly.
    """
    processes = tuple(PROCESSES[name] for name in names)

    @jax.jit
    def run(index, distribution, x, keys, times, num_steps, options):
        process = AnyOf(processes=processes, index=index)
        denoise = make_denoiser(distribution, process)
        if groups:
            denoise = through_targets(denoise, process, groups)
        samples = SOLVERS[solver](
            denoise,
            x[:, None, None],
            lambda i, n: times[i],
            keys,
            process=process,
            num_steps=num_steps,
            **options,
        )
        return samples.x[:, 0, 0]

    def call(name, distribution, x, keys, times, num_steps=None, **options):
        n = len(times) - 1 if num_steps is None else num_steps
        times = jnp.pad(jnp.asarray(times), (0, MOST_STEPS + 1 - len(times)))
        return run(names.index(name), distribution, x, keys, times, n, options)

    return call


def row_keys(rows: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), rows)


def levels(process, times):
    """alpha and sigma at times, float64."""
    with jax.enable_x64(True):
        return [np.asarray(x) for x in process.alpha_sigma(jnp.asarray(times, jnp.float64))]
