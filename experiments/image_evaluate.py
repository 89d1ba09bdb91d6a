"""Measures what a diffusion model draws, beside real images, simple densities and controls."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import jax

from genai_jax.command_line import parse_command_line
from genai_jax.data.image_labels import ATTRIBUTES
from genai_jax.data.images import load_images
from genai_jax.diffusion.likelihood import Estimate
from genai_jax.diffusion.sampling import SOLVERS, SamplerConfig, Solver
from genai_jax.evaluation.classes import agreement, describe_attributes
from genai_jax.evaluation.density_baselines import Baseline, Splits, measure_baselines
from genai_jax.evaluation.drawing import Drawer, Told
from genai_jax.evaluation.image_likelihood import make_bound, make_ode_bits, split_bits
from genai_jax.evaluation.image_report import (
    Column,
    Draw,
    as_json,
    draw_gaussians,
    draw_training_images,
    format_bits,
    format_ode_bits,
    format_table,
    make_bars,
    measure_draws,
    save_report,
)
from genai_jax.evaluation.image_runs import (
    DiffusionRun,
    load_classifier,
    load_diffusion_run,
    require_same_images,
)
from genai_jax.evaluation.memorisation import nearest_pairs_png
from genai_jax.evaluation.solver_report import (
    SolverTable,
    format_solvers,
    measure_solvers,
    solvers_png,
)
from genai_jax.evaluation.yardstick import CLOSE_PERCENTILE, LabelledImages, make_yardstick
from genai_jax.models.classifier import Classifier
from genai_jax.parallel.cpu_devices import split_cpu
from genai_jax.parallel.huge_pages import restart_with_huge_pages
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import replicated
from genai_jax.training.json_lines import write_atomically
from genai_jax.training.run_directory import RunError
from genai_jax.training.signals import Stopped, stop_signals


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What to measure.

    Attributes:
        run: Folder of the run (the `--workdir` of image_diffusion.py); the reports go there.
        classifier: Folder of the run of image_classifier.py that judges.
        split: The held-out split that everything is measured against. Choose settings on
            validation; report test, once.
        held_out: Most images of it that are looked at; every draw has as many.
        train: Most training images that are looked at.
        draws: Draws of each way to get images, with the seeds `seed`, `seed + 1`, ...
        seed: Of the first draw.
        guidance_scales: Guidance to measure, each on its own; none takes 1 and that of the run. The
            table of solvers has the first of them.
        solver: Solver of the samples; none takes that of the run.
        num_steps: Steps of the samples; 0 takes those of the run.
        compared_solvers: Solvers of the table of solvers; none leaves it out.
        compared_steps: Steps of the table of solvers; 0 is all: those of a discrete process, else
            1,000.
        compared_draws: Draws of each of its entries.
        bits: Whether to bound the bits per dimension of the held-out images.
        ode_images: Held-out images whose bits the ODE gives too, in minutes; 0 is none.
        densities: Whether to fit simple densities, for the bits that they make of them.
        batch_size: Images that are drawn at once, over all devices.
        cpu_devices: On a CPU, number of devices to make of it; 0 is one a core.
    """

    run: str = "runs/digits"
    classifier: str = "runs/digits-classifier"
    split: Literal["validation", "test"] = "test"
    held_out: int = 10_000
    train: int = 20_000
    draws: int = 10
    seed: int = 0
    guidance_scales: tuple[float, ...] = ()
    solver: Solver | None = None
    num_steps: int = 0
    compared_solvers: tuple[Solver, ...] = SOLVERS
    compared_steps: tuple[int, ...] = (5, 10, 20, 50, 100, 0)
    compared_draws: int = 2
    bits: bool = True
    ode_images: int = 0
    densities: bool = True
    batch_size: int = 180
    cpu_devices: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, least in (("held_out", 4), ("train", 4), ("draws", 1), ("compared_draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        if self.ode_images < 0 or self.ode_images == 1:
            raise ValueError(f"`ode_images` must be 0 or at least 2; got {self.ode_images}.")
        if self.num_steps < 0 or any(steps < 0 for steps in self.compared_steps):
            raise ValueError(
                "Numbers of steps must not be negative; got `num_steps` "
                f"{self.num_steps} and `compared_steps` {self.compared_steps}."
            )


_STEPS_OF_CONTINUOUS_TIME = 1000
_KERNEL_NOTE = (
    "kernel:    unbiased for independent images; these are asked to be what the reference is, one "
    "by one, which alone puts it below zero: compare the columns"
)
_MOST_DIMENSIONS = 256  # of images that simple densities are fitted to


class Evaluation:
    """A run, its judge and the measure that its samples are held against."""

    def __init__(self, config: EvaluateConfig, check: Callable[[], None]) -> None:
        """Load all of it.

        Raises:
            RunError: If a run is missing, or was trained on other images than there are now.
        """
        self.config, self.check = config, check
        self.run = load_diffusion_run(config.run)
        self.data = load_images(self.run.data, seed=self.run.seed)
        require_same_images(config.run, self.data.content_digest)
        self.yardstick = make_yardstick(
            self.data,
            load_judge(config.classifier, self.run),
            split=config.split,
            most_held_out=config.held_out,
            most_train=config.train,
        )
        self.mesh = make_mesh()
        self.model = jax.device_put(self.run.model, replicated(self.mesh))
        size = min(config.batch_size, self.yardstick.count)
        self.drawer = Drawer(self.run.diffusion, self.data.shape, self.mesh, batch_size=size)
        of_run = self.run.sampler
        steps = config.num_steps or of_run.num_steps
        self.sampler = replace(of_run.with_solver(config.solver or of_run.solver), num_steps=steps)
        self.scales = config.guidance_scales or tuple(dict.fromkeys((1.0, of_run.guidance_scale)))
        for scale in self.scales:
            sampler = replace(self.sampler, guidance_scale=scale)
            sampler.check(self.run.diffusion, conditional=self.run.condition != "none")
        self.first_draws: dict[float, LabelledImages] = {}
        # What is asked for is what the held-out images are, so that the classes are as frequent.
        self.told: Told = None
        if self.run.condition != "none":
            told = self.data.field_of(config.split, self.run.condition)
            self.told = told[: self.yardstick.count]

    def draw(self, sampler: SamplerConfig, seed: int) -> LabelledImages:
        """Draw as many images as are held out, asked to be what those are."""
        images = self.drawer(
            self.model, self.yardstick.count, self.told, sampler, seed=seed, check=self.check
        )
        labels = None if self.told is None else self.yardstick.held_out.labels
        return LabelledImages(images, labels)

    def draw_guided(self, scale: float, seed: int) -> LabelledImages:
        """Draw with a scale of guidance; the first draw is kept, to be looked at closely."""
        drawn = self.draw(replace(self.sampler, guidance_scale=scale), seed)
        if seed == self.config.seed:
            self.first_draws[scale] = drawn
        return drawn

    @property
    def seeds(self) -> range:
        """The seeds of the draws."""
        return range(self.config.seed, self.config.seed + self.config.draws)


def load_judge(folder: str, run: DiffusionRun) -> Classifier:
    """Load the classifier that samples are judged by.

    Raises:
        RunError: Saying how to train it, where there is none.
    """
    source = run.data.source.partition(":")[0]
    preset = source if source in ("digits", "shapes") else f"--data.source {run.data.source}"
    try:
        return load_classifier(folder)[0]
    except RunError as error:
        raise RunError(
            f"samples are judged by a classifier, and {folder} has none ({error}) Train it: "
            f"python experiments/image_classifier.py {preset} --workdir {folder}"
        ) from error


def measure_bits(of: Evaluation) -> tuple[Estimate | None, Estimate | None]:
    """Measure the bits of held-out images: their bound, and what the ODE gives."""
    config, run, levels = of.config, of.run, of.data.levels
    what = of.model, of.data, config.split, run.condition
    how: dict[str, Any] = {"mesh": of.mesh, "seed": config.seed, "check": of.check}
    bound, ode = None, None
    if config.bits:
        print("bounding the bits of held-out images ...", file=sys.stderr, flush=True)
        bits_of = make_bound(run.diffusion, levels, run.bound)
        bound = split_bits(bits_of, *what, images=of.yardstick.count, **how)
    if config.ode_images:
        print("integrating the ODE ...", file=sys.stderr, flush=True)
        bits_of = make_ode_bits(run.diffusion, levels)
        ode = split_bits(bits_of, *what, images=config.ode_images, **how)
    return bound, ode


def measure_densities(of: Evaluation) -> tuple[Baseline, ...]:
    """Measure what simple densities make of the held-out images; of large images, nothing."""
    if not of.config.densities or math.prod(of.data.shape) > _MOST_DIMENSIONS:
        return ()
    print("measuring simple densities ...", file=sys.stderr, flush=True)
    levels = {
        split: of.data.levels_of(split).reshape(-1, math.prod(of.data.shape))
        for split in ("train", "validation", of.config.split)
    }
    return measure_baselines(
        Splits(
            levels["train"][: of.config.train],
            levels["validation"],
            levels[of.config.split][: of.yardstick.count],
            num_levels=of.data.levels,
            seed=of.config.seed,
        )
    )


def as_options(bits: Estimate | None) -> dict[str, float]:
    """Say to a column what held-out images cost."""
    return {} if bits is None else {"bits": bits.mean, "bits_error": bits.standard_error}


def measure_columns(
    of: Evaluation, bits: Estimate | None, densities: Sequence[Baseline]
) -> list[Column]:
    """Measure real images, samples with each guidance, and the controls."""
    yardstick, train = of.yardstick, of.yardstick.train
    seeds = of.seeds
    labels = yardstick.held_out.labels
    copies = draw_training_images(train, yardstick.count, labels)

    def measure(name: str, draw: Draw, **more: Any) -> Column:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        return measure_draws(name, draw, yardstick, more.pop("seeds", seeds), **more)

    columns = [measure("training images", copies, judged=False)]
    for scale in of.scales:
        name = "samples" if of.told is None else f"samples, w={scale:g}"
        draw = functools.partial(of.draw_guided, scale)
        columns.append(measure(name, draw, **as_options(bits)))
    gaussian = draw_gaussians(train, None, yardstick.count)
    found = next((d.bits for d in densities if d.name == "full Gaussian"), None)
    columns.append(measure("one Gaussian", gaussian, **as_options(found)))
    if labels is not None and labels.ndim == 1:
        columns.append(measure("class Gaussians", draw_gaussians(train, labels, yardstick.count)))
    # Other copies than those that set the bar. They make every held-out image impossible.
    others = range(seeds.stop, seeds.stop + len(seeds))
    return [*columns, measure("training copied", copies, seeds=others, bits=math.inf)]


def compare_solvers(of: Evaluation, real: Column) -> SolverTable:
    """Measure the Fréchet distance of every solver at every number of steps."""
    config = of.config
    everything = of.run.diffusion.process.num_steps or _STEPS_OF_CONTINUOUS_TIME
    base = replace(of.sampler, guidance_scale=of.scales[0])

    def distance(solver: str, steps: int, seed: int) -> float:
        if seed == config.seed:
            print(f"measuring {solver}, {steps:,} steps ...", file=sys.stderr, flush=True)
        sampler = replace(base.with_solver(cast(Solver, solver)), num_steps=steps)
        return of.yardstick.frechet(of.draw(sampler, seed).images)

    return measure_solvers(
        distance,
        solvers=config.compared_solvers,
        steps=[min(steps or everything, everything) for steps in config.compared_steps],
        seeds=range(config.seed, config.seed + config.compared_draws),
        evaluations=lambda solver, steps: 2 * steps - 1 if solver == "heun" else steps,
        real=real.values("frechet").tolist(),
        count=of.yardstick.count,
        reference=config.split,
        check=of.check,
    )


def describe_setting(of: Evaluation) -> str:
    """Say what was measured, on how many images, against what, and by whom."""
    config, yardstick = of.config, of.yardstick
    truth = yardstick.held_out.labels
    assert truth is not None
    right = agreement(yardstick.predict(yardstick.held_out.images), truth)
    return "\n".join(
        [
            f"model:     {config.run}, step {of.run.step:,}; {of.sampler.solver}, "
            f"{of.sampler.num_steps} steps",
            f"reference: the {config.split} split, {yardstick.count:,} images; nearness to "
            f"{len(yardstick.train.images):,} training images",
            f"draws:     {config.draws} of {yardstick.count:,} images for each column, seeds "
            f"{of.seeds[0]} to {of.seeds[-1]}; mean ± standard deviation over draws; w is the "
            "scale of guidance",
            f"judge:     {config.classifier}, right on {right:.2%} of the {yardstick.count:,} "
            "images of the split",
            *([] if of.told is None else [_KERNEL_NOTE]),
        ]
    )


def describe_one_draw(of: Evaluation, folder: Path) -> str:
    """Say how the first draw compares with captions and training images, and draw the latter."""
    lines = []
    for scale, drawn in of.first_draws.items():
        images = of.yardstick.on_levels(drawn.images)
        if drawn.labels is not None and drawn.labels.ndim == 2:
            lines.append(f"attributes of the first draw, w={scale:g}:")
            told = of.yardstick.predict(images)
            lines.append(describe_attributes(told, drawn.labels, ATTRIBUTES))
        near = of.yardstick.nearest(images)
        path = folder / f"nearest_w{scale:g}.png"
        write_atomically(path, nearest_pairs_png(images, of.yardstick.train.images, near))
        lines.append(
            f"nearest training images, w={scale:g}: {near.share_close:.1%} of {len(images):,} "
            f"samples within {near.threshold:.3g} of one, as {CLOSE_PERCENTILE:g}% of the held-out "
            f"images are; median distance {near.ratio:.2f} times theirs; {path}"
        )
    return "\n".join(lines)


def evaluate(config: EvaluateConfig, check: Callable[[], None]) -> str:
    """Measure all that was asked for, write it into the run's folder, and return the text."""
    of = Evaluation(config, check)
    samples, plots = Path(config.run) / "samples", Path(config.run) / "plots"
    for folder in (samples, plots):
        folder.mkdir(exist_ok=True)
    print(describe_setting(of), flush=True)
    bits, ode = measure_bits(of)
    densities = measure_densities(of)
    columns = measure_columns(of, bits, densities)
    bars = make_bars(columns[0], min((d.bits.mean for d in densities), default=math.nan))
    texts = [
        describe_setting(of),
        format_table(columns, bars),
        format_bits(bits, densities, config.split),
        "" if ode is None else format_ode_bits(ode, config.split),
        describe_one_draw(of, samples),
    ]
    values = as_json(columns, bars)
    values["densities"] = {density.name: density.bits._asdict() for density in densities}
    values["ode"] = None if ode is None else ode._asdict()
    text = save_report(samples / f"evaluation_{config.split}", texts, values)
    if config.compared_solvers:  # which takes longest: the rest is already written
        table = compare_solvers(of, columns[0])
        plot = plots / "solvers.png"
        write_atomically(plot, solvers_png(table, title=Path(config.run).resolve().name))
        texts.append(f"{format_solvers(table)}\nplot: {plot}")
        values["solvers"] = table.as_json()
        text = save_report(samples / f"evaluation_{config.split}", texts, values)
    return text


def main() -> int:
    """Read the command line and measure."""
    presets = {"evaluate": ("all tables", EvaluateConfig())}
    config = parse_command_line(presets, description=__doc__ or "")
    if __name__ == "__main__":  # and not imported by a test
        restart_with_huge_pages()
    split_cpu(config.cpu_devices or None)
    try:
        with stop_signals() as stop:
            try:
                print("\n" + evaluate(config, stop.check))
            except Stopped:
                return stop.exit_code
    except (RunError, ValueError, FileNotFoundError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
