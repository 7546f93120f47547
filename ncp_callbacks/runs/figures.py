"""Draw several runs in one picture: 640 × 430 pixels, a colour for each side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..plotting.style import BLUE, GREEN, INK, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from .reader import Binned, Scalars
from .render import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "plot_histograms", "plot_scalar"]

FloatArray = npt.NDArray[np.float64]
Points = tuple[npt.ArrayLike, npt.ArrayLike]

COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#888888", "#8C510A")  # Grey, brown.
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 1.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "grid.color": LIGHT,
    "grid.linewidth": 1.0,
    "xtick.major.width": 1.4,
    "ytick.major.width": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 13,
    "legend.borderaxespad": 0.2,
    "text.parse_math": False,  # A "$" in a tag is no formula.
}
_MAX_POINTS = 300
_MAX_NAMED = 12
_LONGEST_NAME = 24


@contextmanager
def _styled() -> Iterator[None]:
    """Set matplotlib's defaults and the style above, whatever the user's matplotlibrc has."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _page(title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.3), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_title(_short(title, 52))
    return figure, axes


def _short(text: str, longest: int = _LONGEST_NAME) -> str:
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _draw_runs(
    title: str,
    names: Sequence[str],
    sides: Sequence[Sequence[Points]],
    xlabel: str,
    **style: Any,
) -> tuple[Figure, Axes]:
    """Draw the points of each run as a line in the colour of its side, with a legend of sides."""
    from matplotlib.lines import Line2D

    figure, axes = _page(title)
    colors = [COLORS[side % len(COLORS)] for side in range(len(sides))]
    for color, runs in zip(colors, sides, strict=True):
        for x, y in runs:
            axes.plot(x, y, color=color, linewidth=2.4 if len(runs) == 1 else 1.4, **style)
    axes.set_xlabel(xlabel)
    if len(names) > len(COLORS):  # Colours repeat, and the legend would take all the room.
        names = [*names[: len(COLORS) - 1], f"and {len(names) - len(COLORS) + 1} more"]
    handles = [Line2D([], [], color=c, linewidth=4) for c in colors[: len(names)]]
    figure.legend(
        handles, [_short(name) for name in names], loc="outside upper left",
        ncols=min(len(names), 3), handlelength=1.0, columnspacing=1.2,
    )  # fmt: skip
    return figure, axes


def plot_scalar(
    tag: str, names: Sequence[str], sides: Sequence[Sequence[Scalars]], span: tuple[int, int]
) -> Figure:
    """Draw a scalar of all runs over training; the averaged steps, ``span``, are shaded."""
    lines = [[_thinned(series) for series in runs] for runs in sides]
    few = all(len(steps) <= 12 for runs in lines for steps, _ in runs)
    values = np.concatenate([series.values for runs in sides for series in runs])
    values = values[np.isfinite(values)]
    with _styled():
        figure, axes = _draw_runs(
            tag, names, lines, "training step (shaded: averaged)",
            marker="o" if few else "", markersize=5,
        )  # fmt: skip
        axes.axvspan(*span, color=LIGHT, alpha=0.5, linewidth=0)
        if values.size:
            # A few wild points at the start would flatten all that follows.
            low, high = np.quantile(values, [0.005, 0.995])
            margin = 0.06 * (high - low) or 0.5
            axes.set_ylim(low - margin, high + margin)
        return figure


def _thinned(series: Scalars) -> tuple[FloatArray, FloatArray]:
    """Return at most 300 points, means of equally many."""
    size = -(-len(series.values) // _MAX_POINTS)
    starts = np.arange(0, len(series.values), size)
    counts = np.diff([*starts, len(series.values)])
    return (
        np.add.reduceat(series.steps.astype(np.float64), starts) / counts,
        np.add.reduceat(series.values, starts) / counts,
    )


def plot_histograms(tag: str, names: Sequence[str], sides: Sequence[Sequence[Binned]]) -> Figure:
    """Draw the histograms of all runs over each other."""
    lines = [[_outline(histogram) for histogram in runs] for runs in sides]
    with _styled():
        figure, axes = _draw_runs(f"{tag}: density", names, lines, "value")
        for side, runs in enumerate(lines):
            if len(runs) == 1:
                axes.fill_between(*runs[0], color=COLORS[side % len(COLORS)], alpha=0.12, lw=0)
        axes.set_ylim(bottom=0)
        return figure


def _outline(histogram: Binned) -> tuple[FloatArray, FloatArray]:
    """Return the outline of the density; a spike where all counts are at single values."""
    wide = histogram.right > histogram.left
    if not wide.any():
        at = histogram.left[histogram.counts > 0]
        return np.repeat(at, 3), np.tile([0.0, 1.0, 0.0], at.size)
    left, right = histogram.left[wide], histogram.right[wide]
    density = histogram.counts[wide] / histogram.counts.sum() / (right - left)
    x = np.stack([left, right], axis=1).ravel()
    return (
        np.concatenate([x[:1], x, x[-1:]]),
        np.concatenate([[0.0], np.repeat(density, 2), [0.0]]),
    )
