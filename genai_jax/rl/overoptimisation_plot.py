"""Draws gold and proxy reward by distance from the initial policy, with the fitted curves."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from genai_jax.rl.overoptimisation import Curve, Fitted
from genai_jax.training.json_lines import write_atomically

_GOLD, _PROXY = "#D9A400", "#4C78A8"
_INK, _GRID = "#333333", "#E4E4E4"
_MARKERS = "osD^v<>P"


def draw_curves(panels: Sequence[tuple[Sequence[Curve], Fitted | None]], picture: Path) -> None:
    """Draw a panel for each form: points of both rewards, and the fit of the gold one.

    Args:
        panels: Curves of one form, and their fit where there is one.
        picture: Where to write, as PNG; its folder is made.
    """
    figure = Figure(figsize=(5.6 * len(panels), 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (curves, fitted) in zip(all_axes, panels, strict=True):
        _draw_panel(axes, curves, fitted)
    all_axes[0].set_ylabel("reward above the initial policy's")
    figure.suptitle(
        "Over-optimisation of a proxy reward", color=_INK, fontweight="bold", x=0.02, ha="left"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, buffer.getvalue())


def _draw_panel(axes: Axes, curves: Sequence[Curve], fitted: Fitted | None) -> None:
    farthest = 0.0
    for curve, marker in zip(curves, _MARKERS * len(curves), strict=False):
        distance = np.sqrt(np.maximum(curve.kl, 0.0))
        farthest = max(farthest, float(distance.max()))
        label = "" if len(curves) == 1 else f", {curve.name}"
        axes.plot(
            *(distance, curve.proxy, marker),
            color=_PROXY,
            markersize=4,
            fillstyle="none",
            label="proxy" + label,
        )
        axes.plot(*(distance, curve.gold, marker), color=_GOLD, markersize=4, label="gold" + label)
    if fitted is not None:
        line = np.linspace(0, farthest, 200)
        rule = "d (α - β d)" if fitted.form == "best of n" else "d (α - β log d)"
        label = f"{rule}: α = {fitted.alpha:.2f}, β = {fitted.beta:.2f}"
        axes.plot(line, fitted(line), color=_GOLD, linewidth=1.8, label=label)
        if fitted.peak < farthest:
            axes.axvline(fitted.peak, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_title(curves[0].form, color=_INK, fontsize=11)
    axes.set_xlabel("d = √KL from the initial policy (√nat)")
    axes.axhline(0, color="#B0B0B0", linewidth=0.8)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#B0B0B0")
    axes.legend(frameon=False, loc="upper left", fontsize=8)
