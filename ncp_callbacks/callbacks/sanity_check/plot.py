"""Draw how similar maps stay while the model's parameters are randomised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.page import Page, redrawable
from ...plotting.parts import whiskers
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DOTTED,
    GREY,
    INK,
    LABEL_Y,
    LEFT,
    LIGHT,
    MISSING,
    RIGHT,
    VERMILION,
    WIDTH,
    fill,
    line,
)
from ...plotting.text import MINUS, number, short_names, text_width
from .analysis import ALIKE, Cascade, Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_sanity", "plot_sanity_measures"]

Array = npt.NDArray[np.float64]

TOP = 354
MIDDLE = 404  # Where the right part begins.
NAMES = 150  # Pixels for names of stages, at most.
# Number of measures that there is room for; the first that are known are drawn.
MAX_MEASURES = 4
MEASURES = {
    "strength": "strength",
    "entropy": "entropy",
    "elasticity": "elasticity",
    "magnitude": "state steps",
    "target_sd": "target SD",
}
# The two columns of the picture of all measures.
ALL = (
    {"strength": "strength", "entropy": "entropy", "mean_lag": "mean lag",
     "time_share": "share of Δt"},
    {"elasticity": "elasticity", "target_sd": "target SD", "magnitude": "state steps",
     "participation": "dimensions"},
)  # fmt: skip
BAR = 20  # Pixels of height for a bar and its number.
NUMBERS = 102  # Pixels of width for the numbers.
FIRST = (0, (4, 1.2, 1, 1.2))  # Dashes of the first snapshot.
BASELINE = (0, (2, 1))  # Dashes of the randomised model.


@redrawable
def plot_sanity(
    page: Page,
    result: Cascade,
    *,
    first: Measures | None = None,
    first_curve: npt.ArrayLike | None = None,
    method: str = "attribution",
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw how similar maps stay to the trained model's, stage by stage, and measures of both.

    Left: the first row is the trained model; the rows below have more of its parameters randomised,
    from the output towards the input. Blue: mean rank correlation of absolute maps, with its 95 %
    CI; vermilion: mean cosine. Right of the dotted line more than half of the variance of ranks is
    left: the map then shows mostly something else than what was learnt. Right: measures of the
    trained model (blue) and of the randomised one (grey, and dashed as the baseline), each pair on
    a scale of its own. For models with cells the length of the state's steps is among them, and
    otherwise the SD of the target.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The similarities and measures.
        first: Measures of the randomised model at the first snapshot, dash-dotted.
        first_curve: ``(N + 1,)``, rank correlations at the first snapshot, dash-dotted.
        method: Name of the attribution method, for the title.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.
    """
    page.title(f"sanity check of {method}", step)
    _cascade(page, result, None if first_curve is None else np.asarray(first_curve, np.float64))
    page.legend((BLUE, "trained"), (MISSING, "random"), x=MIDDLE)
    page.text((MIDDLE + RIGHT) / 2, LABEL_Y, _lines(first), ha="center", color=GREY)
    _measures(page, result, first, MEASURES, MIDDLE, RIGHT)


@redrawable
def plot_sanity_measures(
    page: Page,
    result: Cascade,
    *,
    first: Measures | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw all measures of the trained model and of the randomised one, as pairs of bars.

    Blue: the trained model, grey: the randomised one, dashed through both as the baseline; each
    pair on a scale of its own.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The similarities and measures.
        first: Measures of the randomised model at the first snapshot, dash-dotted.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.
    """
    page.title("measures, trained and random", step)
    page.legend((BLUE, "trained"), (MISSING, "random"))
    page.text(WIDTH / 2, LABEL_Y, _lines(first), ha="center", color=GREY)
    half = WIDTH / 2
    for left, names in zip((LEFT, half + 18), ALL, strict=True):
        _measures(page, result, first, names, left, left + half - LEFT - 18)


def _lines(first: Measures | None) -> str:
    return "dashed: random" if first is None else "-- random  -· first"


def _cascade(page: Page, result: Cascade, first: Array | None) -> None:
    curve = np.asarray(result.curve, np.float64)
    stages = short_names(result.stages, NAMES - text_width("+ "))
    names = ["trained", *(f"+ {name}" for name in stages)]
    rows = np.arange(len(names))
    left, right = LEFT + max(map(text_width, names)) + 14, MIDDLE - 34
    page.legend((BLUE, "rank correlation"), (VERMILION, "cosine"))
    pitch = (TOP - BOTTOM - 4) / len(names)
    for row, name in zip(rows, names, strict=True):
        page.text(left - 10, TOP - (row + 0.5) * pitch, name, ha="right", va="center_baseline")
    axes = page.axes(
        left, BOTTOM + 4, right, TOP, xlim=(-1.04, 1.04), ylim=(len(names) - 0.5, -0.5),
        spines=("bottom",), xticks=[-1, 0, 1], xticklabels=[number(v) for v in (-1, 0, 1)],
        grid="x", xlabel="similarity of the maps",
        vlines=[(0.0, line(GREY, 2)), (ALIKE, line(INK, 2, DOTTED))],
    )  # fmt: skip
    axes.axvspan(ALIKE, 1.04, zorder=0.5, **fill(LIGHT, 0.5))
    if first is not None and len(first) == len(rows):
        axes.plot(first, rows, zorder=3, **line(GREY, 2.5, FIRST))
    whiskers(axes, rows, np.clip(np.asarray(result.ci), -1.0, 1.0), horizontal=True)
    for values, color, width, z in ((curve[1], VERMILION, 2.5, 4), (curve[0], BLUE, 4, 5)):
        axes.plot(values, rows, zorder=z, **line(color, width, marker="o"))


def _measures(
    page: Page,
    result: Cascade,
    first: Measures | None,
    names: Mapping[str, str],
    left: float,
    right: float,
) -> None:
    """Draw the measures that are known, one below the other."""
    from matplotlib.patches import Rectangle

    models = (result.trained, result.randomised)
    pitch = (TOP - BOTTOM - 4) / MAX_MEASURES
    place = 0
    for name, words in names.items():
        values = [float(getattr(model, name)) for model in models]
        before = float(getattr(first, name, np.nan))
        if place == MAX_MEASURES or not np.isfinite(values).any():
            continue
        top = TOP - place * pitch
        place += 1
        largest = float(np.nanmax(np.abs([*values, np.nan_to_num(before)]))) or 1.0
        page.text(left, top - 20, words)
        bottom = top - 27 - 2 * BAR
        axes = page.axes(
            left, bottom, right - NUMBERS, bottom + 2 * BAR, xlim=(0, 1), ylim=(0, 2),
            spines=("left",), ticks="",
        )  # fmt: skip
        for i, (value, bar, color) in enumerate(
            zip(values, (BLUE, MISSING), (BLUE, GREY), strict=True)
        ):
            y = bottom + (1.5 - i) * BAR
            page.text(right, y, _short(value), ha="right", va="center_baseline", color=color)
            if np.isfinite(value):
                corner = 0.0, 1.15 - i
                axes.add_patch(Rectangle(corner, value / largest, 0.7, **fill(bar)))
        for value, dashes, color in ((values[1], BASELINE, INK), (before, FIRST, GREY)):
            if np.isfinite(value):
                axes.plot([value / largest] * 2, [0, 2], zorder=4, **line(color, 2.5, dashes))


def _short(value: float) -> str:
    """Return a number with two digits, short enough for its place."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 9950:
        return number(value, 2)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
