"""What samples are worth: every measure of several draws, beside real images and controls.

Every draw has as many images as the held-out split, the reference of all of them. A column of the
table is one way to get images (a model, the training split, a control), a line one measure.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genai_jax.diffusion.likelihood import Estimate
from genai_jax.evaluation.density_baselines import Baseline
from genai_jax.evaluation.features import pixels
from genai_jax.evaluation.frechet import moments_of
from genai_jax.evaluation.yardstick import (
    CLOSE_PERCENTILE,
    MEASURES,
    LabelledImages,
    Measure,
    Yardstick,
)
from genai_jax.training.json_lines import write_atomically

Draw = Callable[[int], LabelledImages]
"""`seed -> images`."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One way to get images, measured.

    Attributes:
        name: Of the column.
        draws: What each draw was measured to be.
        bits: Bits per dimension of the held-out images; NaN where it was not measured, infinite
            where they are impossible.
        bits_error: Standard error of the bits; 0 where there is none.
        judged: Whether it is held against the bars; the training images, which set one, are not.
    """

    name: str
    draws: list[dict[str, float]]
    bits: float = math.nan
    bits_error: float = 0.0
    judged: bool = True

    def values(self, measure: str) -> np.ndarray:
        """List a measure over the draws."""
        return np.array([draw[measure] for draw in self.draws])

    def mean(self, measure: str) -> float:
        """Average a measure over the draws; bits have one value."""
        return self.bits if measure == "bits" else float(self.values(measure).mean())

    def spread(self, measure: str) -> float:
        """Compute the standard deviation over the draws; of bits it is their standard error."""
        if measure == "bits":
            return self.bits_error
        values = self.values(measure)
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def measure_draws(
    name: str,
    draw: Draw,
    yardstick: Yardstick,
    seeds: Sequence[int],
    *,
    bits: float = math.nan,
    bits_error: float = 0.0,
    judged: bool = True,
) -> Column:
    """Draw with every seed and measure."""
    draws = [yardstick.measure(draw(seed)) for seed in seeds]
    return Column(name, draws, bits, bits_error, judged)


def draw_training_images(
    train: LabelledImages, count: int, labels: np.ndarray | None = None
) -> Draw:
    """Make draws of training images, all different as far as there are enough.

    Args:
        train: What to draw from.
        count: Images of a draw.
        labels: Classes of the images of a draw, one each, so that classes are as frequent as where
            these come from; None draws from all alike, and so do several labels an image.
    """
    groups, asked = np.zeros(len(train.images), np.int64), np.zeros(count, np.int64)
    if labels is not None and labels.ndim == 1 and train.labels is not None:
        groups, asked = train.labels, labels[:count]

    def draw(seed: int) -> LabelledImages:
        random = np.random.default_rng(seed)
        chosen = np.empty(count, np.int64)
        for group in np.unique(asked):
            places, members = np.flatnonzero(asked == group), np.flatnonzero(groups == group)
            few = len(members) < len(places)
            chosen[places] = random.choice(members, len(places), replace=few)
        found = None if train.labels is None else train.labels[chosen]
        return LabelledImages(train.images[chosen], found)

    return draw


def draw_gaussians(train: LabelledImages, labels: np.ndarray | None, count: int) -> Draw:
    """Make draws from a Gaussian with the mean and covariance of the training images.

    Args:
        train: What it is fitted to.
        labels: One Gaussian is fitted to each class, and draws have these labels; None fits one
            Gaussian to all.
        count: Images of a draw.
    """
    groups = np.zeros(len(train.images), np.int64) if labels is None else train.labels
    asked = np.zeros(count, np.int64) if labels is None else labels[:count]
    assert groups is not None
    flat = pixels(train.images)
    fits = {}
    for group in np.unique(asked):
        moments = moments_of(flat[groups == group])
        fits[group] = moments.mean, moments.root

    def draw(seed: int) -> LabelledImages:
        random = np.random.default_rng(seed)
        drawn = np.empty((count, flat.shape[1]))
        for group, (mean, root) in fits.items():
            normal = random.standard_normal((np.sum(asked == group), len(root)))
            drawn[asked == group] = mean + normal @ root
        images = drawn.reshape(count, *train.images.shape[1:]).astype(np.float32)
        return LabelledImages(images, None if labels is None else asked)

    return draw


_LINES = {**MEASURES, "bits": Measure("bits per dimension", 1.0, 3)}


class Bar(NamedTuple):
    """What a measure must come to.

    Attributes:
        measure: Which.
        limit: The bar.
        at_least: Whether it must be reached; else it must not be passed.
    """

    measure: str
    limit: float
    at_least: bool = False

    def fails(self, column: Column) -> bool:
        """Whether a column fails it; what was not measured does not fail."""
        value = column.mean(self.measure)
        return value < self.limit if self.at_least else value > self.limit

    def words(self) -> str:
        """Say it, as `<= 60.0`."""
        written = _LINES[self.measure].write(self.limit)
        return f"{'>=' if self.at_least else '<='} {written}"


def make_bars(real: Column, best_density_bits: float = math.nan) -> list[Bar]:
    """Say what samples must come to.

    Args:
        real: The training images, measured: the Fréchet distance of samples may be twice theirs.
        best_density_bits: Bits per dimension of the best simple density, to be beaten; NaN sets no
            such bar.
    """
    bars = [
        Bar("agreement", 0.97, at_least=True),
        Bar("frechet", 2 * real.mean("frechet")),
        Bar("two_sample", 0.60),
        # Twice as often as held-out images are.
        Bar("close", 2 * CLOSE_PERCENTILE / 100),
    ]
    if not math.isnan(best_density_bits):
        # To be below it, not at it.
        bars.append(Bar("bits", float(np.nextafter(best_density_bits, -math.inf))))
    return bars


def format_table(columns: Sequence[Column], bars: Sequence[Bar]) -> str:
    """Write the table, and under it which bars each column fails.

    Values are means over the draws ± their standard deviation; bits ± their standard error.
    """
    bar_of = {bar.measure: bar for bar in bars}
    lines = [["", *(column.name for column in columns), "bar"]]
    for measure, line in _LINES.items():
        cells = [_cell(column, measure) for column in columns]
        if any(cell != "-" for cell in cells):
            bar = bar_of[measure].words() if measure in bar_of else ""
            lines.append([line.name, *cells, bar])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join([*text, "", *(_verdict(c, bars) for c in columns if c.judged)])


def _cell(column: Column, measure: str) -> str:
    mean, spread = column.mean(measure), column.spread(measure)
    if math.isnan(mean):
        return "-"
    write = _LINES[measure].write
    return write(mean) + (f" ± {write(spread)}" if spread > 0 else "")


def _verdict(column: Column, bars: Sequence[Bar]) -> str:
    failed = []
    for bar in bars:
        line = _LINES[bar.measure]
        if bar.fails(column):
            failed.append(f"{line.name} {line.write(column.mean(bar.measure))}, not {bar.words()}")
    if failed:
        return f"{column.name}: fails {'; '.join(failed)}"
    measured = sum(not math.isnan(column.mean(bar.measure)) for bar in bars)
    return f"{column.name}: passes all {measured} bars that it was measured by"


def format_ode_bits(bits: Estimate, split: str) -> str:
    """Write what held-out images cost by the ODE."""
    return (
        f"by the probability-flow ODE {bits.mean:.3f} ± {bits.standard_error:.3f} bits per "
        f"dimension of {bits.images:,} images of the {split} split, dequantised uniformly: not "
        "comparable with those of bins"
    )


def format_bits(model: Estimate | None, baselines: Sequence[Baseline], split: str) -> str:
    """Write what held-out images cost: under the model at most, and under simple densities."""
    lines = [] if model is None else [("the model, at most", model, "")]
    for baseline in baselines:
        tuned = ", ".join(f"{name} {value:g}" for name, value in baseline.tuned.items())
        lines.append((baseline.name, baseline.bits, f"{tuned}, chosen on validation"))
    if not lines:
        return ""
    width = max(len(name) for name, _, _ in lines)
    count = lines[0][1].images
    title = (
        f"bits per dimension of {count:,} images of the {split} split, in discretised bins; mean ± "
        "standard error over images"
    )
    return "\n".join(
        [
            title,
            *(
                f"{name:{width}}  {bits.mean:.3f} ± {bits.standard_error:.3f}  {tuned}".rstrip()
                for name, bits, tuned in lines
            ),
        ]
    )


def as_json(columns: Sequence[Column], bars: Sequence[Bar]) -> dict[str, Any]:
    """Give every value of every draw, and every bar, as JSON values; NaN is null."""

    def finite(value: float) -> float | str | None:
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)

    def of(draw: Mapping[str, float]) -> dict[str, float | str | None]:
        return {name: finite(value) for name, value in draw.items()}

    return {
        "columns": {
            column.name: {
                "draws": [of(draw) for draw in column.draws],
                "bits_per_dimension": finite(column.bits),
                "bits_standard_error": column.bits_error,
                "fails": [bar.measure for bar in bars if column.judged and bar.fails(column)],
            }
            for column in columns
        },
        "bars": {bar.measure: {"limit": bar.limit, "at_least": bar.at_least} for bar in bars},
    }


def save_report(path: Path, texts: Sequence[str], values: dict[str, Any]) -> str:
    """Write a report beside `path`, as .txt and as .json; returns the text."""
    text = "\n\n".join(filter(None, texts))
    write_atomically(path.with_suffix(".txt"), text + "\n")
    write_atomically(path.with_suffix(".json"), json.dumps(values, indent=2, allow_nan=False))
    return text
