"""Sampling as a whole: settings, guidance, solver and grid, over all devices, in one executable.

A sampler is compiled once for a solver and a shape. All that a `SamplerConfig` says besides the
solver is traced.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from genai_jax.diffusion.denoiser import Denoise, Diffusion
from genai_jax.diffusion.grids import GRIDS, Grid, GridKind, make_grid
from genai_jax.diffusion.guidance import (
    THRESHOLDS,
    Guidance,
    Threshold,
    keep_in_range,
    make_guided_denoiser,
)
from genai_jax.diffusion.predictions import Prediction
from genai_jax.diffusion.process import Process
from genai_jax.diffusion.samplers import (
    VARIANCES,
    Churn,
    Variance,
    ancestral,
    ddim,
    dpm_solver_2m,
    euler,
    heun,
)
from genai_jax.diffusion.steps import Samples, level_at, start_from, starting_noise
from genai_jax.parallel.sharding import over_rows
from genai_jax.types import PyTree

Solver = Literal["ancestral", "ddim", "euler", "heun", "dpm_solver_2m"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
_BELONGS = {"eta": ("ddim",), "churn": ("euler", "heun"), "variance": ("ancestral",)}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How images are sampled.

    Attributes:
        solver: ancestral (DDPM), ddim, euler, heun (two calls of the network a step) or
            dpm_solver_2m.
        num_steps: Steps; of a discrete process at most its own.
        grid: Which times: uniform (of a discrete process DDIM's, which leave its last steps out),
            quadratic, karras, log_snr or trailing (from the last step on).
        rho: Of the grid karras: the higher, the denser near the data.
        sigma_min: Of the grids karras and log_snr: sigma / alpha of the last time before the data.
        eta: Noise of ddim, in [0, 1]: 0 is deterministic, 1 as ancestral.
        variance: Of the noise of ancestral: small, large, or learned by the network.
        churn: S_churn of euler and heun: how much noise is added in all, as a logarithm; 0 is none.
        churn_min: sigma / alpha from which on it is added.
        churn_max: Up to which.
        churn_noise: Standard deviation of what is added; 1 keeps the noise as it should be.
        guidance_scale: w in x_u + w (x_c - x_u); 1 is no guidance.
        guidance_start: Least time, in [0, 1], at which guidance acts; sampling goes from 1 to 0.
        guidance_stop: Largest time at which it does.
        guidance_rescale: Part, in [0, 1], of a guided estimate that keeps the contrast of the
            unguided one.
        threshold: What keeps every estimate of the image within [-1, 1]: nothing, clipping
            (static), or division by its own largest values (dynamic, for strong guidance).
        threshold_percentile: Which of the absolute values of an image counts as largest, as a
            fraction.
    """

    solver: Solver = "ddim"
    num_steps: int = 50
    grid: GridKind = "trailing"
    rho: float = 7.0
    sigma_min: float = 0.002
    eta: float = 0.0
    variance: Variance = "small"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0
    guidance_scale: float = 1.0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    guidance_rescale: float = 0.0
    threshold: Threshold = "static"
    threshold_percentile: float = 0.995

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1; got {self.num_steps}. Choose 50.")
        for name in ("rho", "sigma_min", "churn_noise", "threshold_percentile"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` must be positive; got {getattr(self, name)}. "
                    f"Choose {_default(name)}."
                )
        for name in ("churn", "churn_min", "guidance_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` must not be negative, nor infinite; got {getattr(self, name)}. "
                    f"{_default(name):g} is none."
                )
        for name in ("eta", "guidance_rescale", "threshold_percentile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1]; got {getattr(self, name)}. "
                    f"Choose {_default(name)}."
                )
        if not 0 <= self.guidance_start <= self.guidance_stop <= 1:
            raise ValueError(
                "Guidance must act between two times in [0, 1]; got `guidance_start` "
                f"{self.guidance_start} and `guidance_stop` {self.guidance_stop}. 0 is the data."
            )
        if not self.churn_min <= self.churn_max:
            raise ValueError(
                "`churn_max` must not be below `churn_min`; got "
                f"{self.churn_max} and {self.churn_min}. Leave it infinite."
            )
        for name, solvers in _BELONGS.items():
            value, default = getattr(self, name), _default(name)
            if value != default and self.solver not in solvers:
                raise ValueError(
                    f"`{name}` belongs to {' and '.join(solvers)}; got {value!r} with `solver` "
                    f"{self.solver!r}. Choose another solver, or leave it at {default!r}."
                )

    def with_solver(self, solver: Solver) -> "SamplerConfig":
        """Choose a solver; what belongs to the one before goes back to its default."""
        if solver == self.solver:
            return self
        defaults: dict[str, Any] = {name: _default(name) for name in _BELONGS}
        return dataclasses.replace(self, solver=solver, **defaults)

    def check(self, diffusion: Diffusion, *, conditional: bool, weaker: bool = False) -> None:
        """Refuse what a network cannot be asked for.

        Args:
            diffusion: What the network means.
            conditional: Whether it was trained with a condition, and without it now and then.
            weaker: Whether there is a weaker network to guide by.

        Raises:
            ValueError: Saying what does not fit.
        """
        steps = diffusion.process.num_steps
        if steps and self.num_steps > steps:
            raise ValueError(
                "`num_steps` must not exceed those of a discrete process; got "
                f"{self.num_steps} and {steps}. Choose at most {steps}."
            )
        if self.variance == "learned" and not diffusion.learned_variance:
            raise ValueError(
                "`variance` 'learned' needs a network that learns it; got one with "
                "`learned_variance` False. Choose small or large, or train with it."
            )
        if self.guidance_scale != 1 and not (conditional or weaker):
            raise ValueError(
                "Guidance needs a network that was trained with and without a condition, or a "
                f"weaker one; got `guidance_scale` {self.guidance_scale} and neither. "
                "Choose guidance_scale 1."
            )
        largest = math.exp(-diffusion.process.last_log_snr / 2)
        if self.grid in ("karras", "log_snr") and self.sigma_min >= largest:
            raise ValueError(
                "`sigma_min` must be below the sigma / alpha that the process starts from; got "
                f"{self.sigma_min} and {largest:.4g}. Choose 0.002."
            )


def _default(name: str) -> Any:
    return SamplerConfig.__dataclass_fields__[name].default


class Settings(NamedTuple):
    """A `SamplerConfig`, but for its solver, as scalars that may be traced."""

    num_steps: Int[Any, ""]
    grid: Int[Any, ""]
    rho: Float[Any, ""]
    sigma_min: Float[Any, ""]
    start: Float[Any, ""]
    eta: Float[Any, ""]
    variance: Int[Any, ""]
    churn: Churn
    guidance: Guidance
    threshold: Int[Any, ""]
    threshold_percentile: Float[Any, ""]


def settings_of(config: SamplerConfig, start: float = 1.0) -> Settings:
    """Put a configuration into scalars.

    Args:
        config: The configuration.
        start: Time at which sampling starts, in (0, 1]; below 1 where it starts from an image: the
            lower, the more of the image stays.

    Raises:
        ValueError: If the start is not in (0, 1].
    """
    if not 0 < start <= 1:
        raise ValueError(f"`start` must be in (0, 1]; got {start}. 1 keeps nothing of an image.")
    number = np.float32
    return Settings(
        num_steps=np.int32(config.num_steps),
        grid=np.int32(GRIDS.index(config.grid)),
        rho=number(config.rho),
        sigma_min=number(config.sigma_min),
        start=number(start),
        eta=number(config.eta),
        variance=np.int32(VARIANCES.index(config.variance)),
        churn=Churn(
            number(config.churn),
            number(config.churn_min),
            number(config.churn_max),
            number(config.churn_noise),
        ),
        guidance=Guidance(
            number(config.guidance_scale),
            number(config.guidance_start),
            number(config.guidance_stop),
            number(config.guidance_rescale),
        ),
        threshold=np.int32(THRESHOLDS.index(config.threshold)),
        threshold_percentile=number(config.threshold_percentile),
    )


def grid_of(process: Process, settings: Settings) -> Grid:
    """Make the grid that the settings name."""
    return make_grid(
        process,
        settings.grid,
        start=settings.start,
        rho=settings.rho,
        sigma_min=settings.sigma_min,
    )


def denoiser_of(
    diffusion: Diffusion, model: Any, condition: PyTree, settings: Settings, weaker: Any = None
) -> Denoise:
    """Make the denoiser that is sampled from: guided, and kept in range."""
    guided = make_guided_denoiser(diffusion, model, condition, settings.guidance, weaker)

    def denoise(x_t: Array, t: Array) -> Prediction:
        said = guided(x_t, t)
        x_0 = keep_in_range(said.x_0, settings.threshold, settings.threshold_percentile)
        return said._replace(x_0=x_0)

    return denoise


def solve(
    solver: Solver,
    denoise: Denoise,
    x: Float[Array, "b ..."],
    key: Key[Array, " b"],
    process: Process,
    settings: Settings,
    frames: int | None = None,
) -> Samples:
    """Run a solver over the grid of the settings."""
    run: dict[str, Any] = {
        "process": process,
        "num_steps": settings.num_steps,
        "frames": frames,
    }
    grid = grid_of(process, settings)
    match solver:
        case "ancestral":
            return ancestral(denoise, x, grid, key, variance=settings.variance, **run)
        case "ddim":
            return ddim(denoise, x, grid, key, eta=settings.eta, **run)
        case "euler":
            return euler(denoise, x, grid, key, churn=settings.churn, **run)
        case "heun":
            return heun(denoise, x, grid, key, churn=settings.churn, **run)
        case "dpm_solver_2m":
            return dpm_solver_2m(denoise, x, grid, key, **run)


@runtime_checkable
class Sampler(Protocol):
    """A jitted function that samples images."""

    def __call__(
        self,
        model: Any,
        key: Key[Array, " b"],
        condition: PyTree,
        settings: Settings,
        *,
        weaker: Any = None,
        image: Float[Array, "b h w c"] | None = None,
        noise: Float[Array, "b h w c"] | None = None,
    ) -> Samples:
        """Sample one image a key.

        Args:
            model: The network.
            key: One a row: rows with the same key, condition and settings are the same.
            condition: Of the rows, or None.
            settings: From `settings_of`.
            weaker: A network to guide by; None guides by the condition that says nothing.
            image: What the samples should resemble, where `settings.start` is below 1.
            noise: What they start from, of standard deviation 1; None draws it by the keys.
        """


def make_sampler(
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    solver: Solver,
    mesh: Mesh | None = None,
    *,
    frames: int | None = None,
) -> Sampler:
    """Make the jitted sampler: one executable for every setting.

    Args:
        diffusion: What the network means.
        shape: Height, width and channels of an image.
        solver: Which solver.
        mesh: Rows are dealt out over all of its devices, which divide them; None is one device.
        frames: Estimates of the image on the way that are returned, too; None returns none.

    Returns:
        A function that gives images in [-1, 1].
    """

    def sample(
        model: Any,
        key: Array,
        condition: PyTree,
        settings: Settings,
        weaker: Any,
        image: Array | None,
        noise: Array | None,
    ) -> Samples:
        process = diffusion.process
        blank = jnp.zeros((key.shape[0], *shape))
        image = blank if image is None else image
        noise = starting_noise(key, blank) if noise is None else noise
        start = level_at(process, grid_of(process, settings)(0, settings.num_steps))
        x = start_from(image, noise, start)
        denoise = denoiser_of(diffusion, model, condition, settings, weaker)
        samples = solve(solver, denoise, x, key, process, settings, frames)
        return jax.tree.map(lambda x: jnp.clip(x, -1, 1), samples)

    dealt = (False, True, True, False, False, True, True)

    @jax.jit
    def sampler(
        model: Any,
        key: Array,
        condition: PyTree,
        settings: Settings,
        *,
        weaker: Any = None,
        image: Array | None = None,
        noise: Array | None = None,
    ) -> Samples:
        check_rows(key.shape[0], mesh)
        run = sample if mesh is None else over_rows(sample, mesh, dealt)
        return run(model, key, condition, settings, weaker, image, noise)

    return sampler


def check_rows(rows: int, mesh: Mesh | None) -> None:
    """Refuse a number of images that the devices do not divide.

    Raises:
        ValueError: Saying which would do.
    """
    if mesh is not None and rows % mesh.size:
        raise ValueError(
            f"The devices must divide the images that are sampled at once; got {rows} images and "
            f"{mesh.size} devices. Choose {-(-rows // mesh.size) * mesh.size}."
        )
