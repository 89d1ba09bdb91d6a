"""Distance against cost: every solver at several numbers of steps, as a table and as a plot."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_COLOURS = ("#4C78A8", "#E45756", "#54A24B", "#B279A2", "#F58518", "#72B7B2")
_INK, _GRID = "#333333", "#E4E4E4"


@dataclasses.dataclass(frozen=True)
class SolverTable:
    """Fréchet distances of one model by solver and number of steps.

    Attributes:
        solvers: Names, in order.
        steps: Numbers of steps, rising.
        distances: [solvers, steps, draws].
        evaluations: How often the network is asked, [solvers, steps].
        real: The same distance of training images, over draws.
        count: Images of a draw, and of the reference.
        reference: Name of the held-out split.
    """

    solvers: tuple[str, ...]
    steps: tuple[int, ...]
    distances: np.ndarray
    evaluations: np.ndarray
    real: np.ndarray
    count: int
    reference: str

    def as_json(self) -> dict[str, Any]:
        """Give every distance of every draw as JSON values."""
        return {
            "steps": list(self.steps),
            "count": self.count,
            "reference": self.reference,
            "training_images": self.real.tolist(),
            "distances": dict(zip(self.solvers, self.distances.tolist(), strict=True)),
            "evaluations": dict(zip(self.solvers, self.evaluations.tolist(), strict=True)),
        }


def measure_solvers(
    distance: Callable[[str, int, int], float],
    *,
    solvers: Sequence[str],
    steps: Sequence[int],
    seeds: Sequence[int],
    evaluations: Callable[[str, int], int],
    real: Sequence[float],
    count: int,
    reference: str,
    check: Callable[[], None] = lambda: None,
) -> SolverTable:
    """Measure every solver at every number of steps, with every seed.

    Args:
        distance: `(solver, steps, seed) -> Fréchet distance`.
        solvers: Names.
        steps: Numbers of steps.
        seeds: Of the draws; the same for all, so that only the solvers differ.
        evaluations: `(solver, steps) -> how often the network is asked`.
        real: The distance of training images.
        count: Images of a draw.
        reference: Name of the held-out split.
        check: Called before each draw; may raise to stop.
    """
    ordered = tuple(sorted(set(steps)))
    distances = np.empty((len(solvers), len(ordered), len(seeds)))
    for i, solver in enumerate(solvers):
        for j, n in enumerate(ordered):
            for k, seed in enumerate(seeds):
                check()
                distances[i, j, k] = distance(solver, n, seed)
    asked = np.array([[evaluations(solver, n) for n in ordered] for solver in solvers])
    return SolverTable(
        tuple(solvers), ordered, distances, asked, np.asarray(real), count, reference
    )


def format_solvers(table: SolverTable) -> str:
    """Write the table: mean ± standard deviation over the draws."""
    draws = table.distances.shape[-1]
    lines = [["solver", *(f"{n} steps" for n in table.steps)]]
    for solver, distances in zip(table.solvers, table.distances, strict=True):
        lines.append([solver, *(_mean_and_spread(values) for values in distances)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    title = (
        f"Fréchet distance on classifier features by solver and steps: {draws} "
        f"draw{'s' * (draws > 1)} of {table.count:,} images against the {table.reference} split; "
        f"training images {_mean_and_spread(table.real)}"
    )
    return "\n".join([title, *text])


def _mean_and_spread(values: np.ndarray) -> str:
    mean = f"{np.mean(values):.3g}" if np.mean(values) >= 100 else f"{np.mean(values):.2f}"
    return mean + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def solvers_png(table: SolverTable, *, title: str) -> bytes:
    """Draw distance against how often the network is asked, both logarithmic.

    Args:
        table: What was measured.
        title: Above the picture.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(6.8, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    means = table.distances.mean(-1)
    draws = table.distances.shape[-1]
    spreads = np.minimum(table.distances.std(-1, ddof=1), 0.9 * means) if draws > 1 else means
    for i, solver in enumerate(table.solvers):
        axes.errorbar(
            table.evaluations[i],
            means[i],
            yerr=spreads[i] if draws > 1 else None,
            marker="o",
            markersize=4,
            linewidth=1.6,
            # Those that coincide show through each other.
            linestyle=("-", (0, (4, 3)))[i % 2],
            capsize=2,
            color=_COLOURS[i % len(_COLOURS)],
            label=solver,
        )
    axes.axhline(
        float(np.mean(table.real)),
        color=_INK,
        linewidth=1,
        linestyle=":",
        label=f"training images, {_mean_and_spread(table.real)}",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(table.steps)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("evaluations of the network")
    axes.set_ylabel(f"Fréchet distance ({table.count:,} images)")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#B0B0B0")
    axes.legend(frameon=False)
    figure.suptitle(title, color=_INK, fontweight="bold", x=0.02, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
