"""Pictures of a run, drawn from its metrics.jsonl."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from genai_jax.training.json_lines import Record, read_json_lines, write_atomically

_TRAIN, _VALIDATION = "#4C78A8", "#E45756"
_INK, _GRID = "#333333", "#E4E4E4"
_MOST_POINTS = 2000


def _curve(records: list[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points], dtype=float)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Average every value with its neighbours; those too near to an end to have all are left out.

    Args:
        values: A curve.
        width: Length of the window in points, odd.

    Returns:
        A curve that is shorter by `width - 1`, half of it on each side.
    """
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def _style(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#B0B0B0")


def _draw_validation(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    axes.plot(steps, values, "-o", color=_VALIDATION, markersize=4, label="validation", zorder=3)
    # Beside the last point, where there is room to its right.
    axes.annotate(
        f"{values[-1]:.3f}",
        (steps[-1], values[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=_VALIDATION,
        fontweight="bold",
        annotation_clip=False,
    )


def _draw_loss(axes: Axes, records: list[Record], loss_unit: str) -> None:
    steps, loss = _curve(records, "train/loss")
    if len(steps):
        stride = -(-len(steps) // _MOST_POINTS)
        axes.plot(steps[::stride], loss[::stride], color=_TRAIN, alpha=0.25, linewidth=0.8)
        reach = len(loss) // 60
        inner = slice(reach, len(loss) - reach, stride)
        smoothed = smooth(loss, 2 * reach + 1)[::stride]
        axes.plot(steps[inner], smoothed, color=_TRAIN, linewidth=1.8, label="train")
    seen = [loss]
    steps, validation = _curve(records, "val/loss")
    if len(steps):
        _draw_validation(axes, steps, validation)
        seen.append(validation)
    # The first steps fall from far above; what is worth looking at comes after them.
    values = np.concatenate(seen)
    if len(values) > 20:
        low, high = values.min(), np.quantile(values, 0.99)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9)
    _style(axes, f"loss ({loss_unit})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right")


def draw_losses(
    metrics: Path, picture: Path, *, title: str, loss_unit: str = "nats per token"
) -> None:
    """Draw training and validation loss, and bits per byte where they were measured, as PNG.

    Args:
        metrics: A `metrics.jsonl`.
        picture: Where to write; its folder is made.
        title: Above the picture.
        loss_unit: Of the loss, for its axis.
    """
    records = read_json_lines(metrics)
    steps, bits = _curve(records, "val/bits_per_byte")
    panels = 2 if len(steps) else 1
    figure = Figure(figsize=(6.4 * panels, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_loss(axes[0], records, loss_unit)
    if len(steps):
        _draw_validation(axes[1], steps, bits)
        _style(axes[1], "validation (bits per byte)")
    figure.suptitle(title, color=_INK, fontweight="bold", x=0.02, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, buffer.getvalue())
