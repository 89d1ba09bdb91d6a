"""Draws images with a model that image_diffusion.py has trained."""

import dataclasses
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genai_jax.command_line import parse_command_line
from genai_jax.data.shape_captions import encode_caption
from genai_jax.diffusion.grids import GridKind
from genai_jax.diffusion.guidance import Threshold
from genai_jax.diffusion.samplers import Variance
from genai_jax.diffusion.sampling import SamplerConfig, Solver
from genai_jax.evaluation.drawing import Drawer, Told, picture_of
from genai_jax.evaluation.image_runs import DiffusionRun, load_diffusion_run
from genai_jax.evaluation.pictures import grid_png
from genai_jax.parallel.cpu_devices import split_cpu
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import replicated
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.run_directory import RunError


@dataclasses.dataclass(frozen=True)
class ImageSampleConfig:
    """What to draw. Settings that are not given are those of the run.

    Attributes:
        run: Folder of the run (the `--workdir` of its training).
        out: Picture to write; none is `samples/drawn.png` in the run's folder.
        count: Images to draw with each setting.
        labels: Classes to draw, in turn; none draws every class.
        prompts: Captions to draw, in turn, where the model reads captions.
        solver: ancestral, ddim, euler, heun or dpm_solver_2m.
        num_steps: Steps; with several, one picture each, without compiling again.
        guidance_scale: w in x_u + w (x_c - x_u); with several, one picture each, likewise.
        guidance_start: Least time, in [0, 1], at which guidance acts; 0 is the data.
        guidance_stop: Largest time at which it does.
        guidance_rescale: Part of a guided estimate that keeps the contrast of the unguided one.
        grid: Which times: uniform, quadratic, karras, log_snr or trailing.
        eta: Noise of ddim: 0 is deterministic.
        variance: Of ancestral: small, large or learned.
        churn: Noise that euler and heun add in all, as a logarithm.
        threshold: What keeps estimates within [-1, 1]: none, static or dynamic.
        weaker: Folder of a run of a weaker model to guide by.
        frames: Draw so many estimates of each image on the way, from left to right; 0 the images.
        seed: Of the noise: the same seed gives the same images.
        ema_sigma_rel: Length of an average of the parameters (standard deviation over steps so
            far) to make from the snapshots of a run that was trained with --ema-traces; 0 takes
            the average that the run itself has used.
        cpu_devices: On a CPU, number of devices to make of it; 0 is one a core.
    """

    run: str = "runs/digits"
    out: str = ""
    count: int = 40
    labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    solver: Solver | None = None
    num_steps: tuple[int, ...] = ()
    guidance_scale: tuple[float, ...] = ()
    guidance_start: float | None = None
    guidance_stop: float | None = None
    guidance_rescale: float | None = None
    grid: GridKind | None = None
    eta: float | None = None
    variance: Variance | None = None
    churn: float | None = None
    threshold: Threshold | None = None
    weaker: str = ""
    frames: int = 0
    seed: int = 0
    ema_sigma_rel: float = 0.0
    cpu_devices: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.count < 1:
            raise ValueError(f"`count` must be at least 1; got {self.count}.")
        if self.frames < 0:
            raise ValueError(f"`frames` must not be negative; got {self.frames}. 0 draws images.")


def samplers_of(config: ImageSampleConfig, run: DiffusionRun) -> list[SamplerConfig]:
    """Put what is given on top of the run's own settings: one for every combination.

    Raises:
        ValueError: If the network cannot be asked for it.
    """
    base = run.sampler.with_solver(config.solver or run.sampler.solver)
    names = ("guidance_start", "guidance_stop", "guidance_rescale", "grid", "eta", "variance")
    settings = {name: getattr(config, name) for name in (*names, "churn", "threshold")}
    given: dict[str, Any] = {name: x for name, x in settings.items() if x is not None}
    every = itertools.product(
        config.num_steps or (base.num_steps,), config.guidance_scale or (base.guidance_scale,)
    )
    samplers = [
        replace(base, **given, num_steps=steps, guidance_scale=scale) for steps, scale in every
    ]
    for sampler in samplers:
        conditional = run.condition != "none"
        sampler.check(run.diffusion, conditional=conditional, weaker=bool(config.weaker))
    return samplers


def told_of(config: ImageSampleConfig, run: DiffusionRun) -> Told:
    """Say what each image should be.

    Raises:
        ValueError: If the model cannot be told that.
    """
    for name, condition in (("labels", "label"), ("prompts", "tokens")):
        if getattr(config, name) and run.condition != condition:
            raise ValueError(
                f"`{name}` need a model that is told them; {config.run} has condition "
                f"{run.condition!r}. Leave them out."
            )
    if run.condition == "label":
        classes = run.network.num_classes
        unknown = [label for label in config.labels if not 0 <= label < classes]
        if unknown:
            raise ValueError(
                f"`labels` must be classes 0 to {classes - 1} of the model; got "
                f"{', '.join(map(str, unknown))}."
            )
        chosen = config.labels or range(classes)
        return np.resize(np.array(chosen, np.int32), config.count)
    if run.condition == "tokens":
        if not config.prompts:
            raise ValueError(
                'the model reads captions: give --prompts "a small red circle at the top left".'
            )
        tokens = np.stack([encode_caption(prompt) for prompt in config.prompts])
        return tokens[np.arange(config.count) % len(tokens)]
    return None


def draw(config: ImageSampleConfig) -> None:
    """Draw, and write the pictures."""
    run = load_diffusion_run(config.run, config.ema_sigma_rel)
    weaker = load_diffusion_run(config.weaker).model if config.weaker else None
    samplers, told = samplers_of(config, run), told_of(config, run)
    mesh = make_mesh()
    model, weaker = jax.device_put((run.model, weaker), replicated(mesh))
    size = run.network.image_size
    drawer = Drawer(
        run.diffusion, (size, size, run.network.channels), mesh, batch_size=min(config.count, 80)
    )
    print(f"{config.run}, step {run.step}", file=sys.stderr)
    out = Path(config.out or Path(config.run) / "samples" / "drawn.png")
    for sampler in samplers:
        began = time.perf_counter()
        frames = config.frames or None
        more: dict[str, Any] = {"seed": config.seed, "weaker": weaker, "frames": frames}
        images = drawer(model, config.count, told, sampler, **more)
        seconds = time.perf_counter() - began
        path = out
        if len(samplers) > 1:
            name = f"{out.stem}-{sampler.num_steps}-steps-w{sampler.guidance_scale:g}{out.suffix}"
            path = out.with_name(name)
        if frames:
            png = grid_png(images.reshape(-1, *images.shape[2:]), columns=frames)
        else:
            classes = run.network.num_classes if told is not None and not config.labels else 0
            png = picture_of(images, told, classes)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png)
        print(
            f"{path}: {config.count} images, {sampler.solver}, {sampler.num_steps} steps, guidance "
            f"{sampler.guidance_scale:g}: {seconds:.1f} s",
            flush=True,
        )


def main() -> int:
    """Read the command line and draw."""
    presets = {"sample": ("images", ImageSampleConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    split_cpu(config.cpu_devices or None)
    try:
        draw(config)
    except KeyboardInterrupt:
        return 130
    except (RunError, ValueError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
