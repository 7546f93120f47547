"""How alike maps stay while the model's parameters are randomised, from the output on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.sanity import ALIKE, Cascade, Measures
from ._sheet import (
    ABOVE,
    BLUE,
    GREY,
    INK,
    LEFT,
    LIGHT,
    MINUS,
    MISSING,
    SECOND_Y,
    VERMILION,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    line_style,
    number,
    points,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_sanity", "plot_sanity_measures"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 354
MIDDLE = 404  # Where the right part begins.
NAMES = 150  # Most pixels for names of stages.
# There is room for so many, of these the first that are known.
MOST = 4
MEASURES = {
    "strength": "strength",
    "entropy": "entropy",
    "elasticity": "elasticity",
    "magnitude": "state steps",
    "target_sd": "target SD",
}
# Of a picture of their own, in two columns.
ALL = (
    {"strength": "strength", "entropy": "entropy", "mean_lag": "mean lag",
     "time_share": "share of intervals"},
    {"elasticity": "elasticity", "target_sd": "target SD", "magnitude": "state steps",
     "participation": "dimensions"},
)  # fmt: skip
BAR = 20  # Pixels of height for a bar and its number …
NUMBERS = 102  # … which has so many to the right of it.
FIRST = (0, (4, 1.2, 1, 1.2))  # Dashes of the first look …
BASELINE = (0, (2, 1))  # … and of the randomised model.


def plot_sanity(
    result: Cascade,
    *,
    first: Measures | None = None,
    first_curve: npt.ArrayLike | None = None,
    method: str = "attribution",
    step: int | None = None,
) -> Figure:
    """Similarity of maps to the trained model's, stage by stage, and measures of both.

    Left, from above: the trained model, then more and more of its parameters randomised, from the
    output towards the input. Blue: rank correlation of absolute maps, vermilion: cosine; both mean
    over sequences, with whiskers that are the 95 % CI of the rank correlation. Right of the
    dotted line more than half of the variance of ranks is left: what the map shows is then mostly
    not what was learnt. Right: what is measured of the trained model (blue) and the randomised one
    (grey, and dashed through both as the baseline), each pair on a scale of its own; of cells there
    is the length of the state's steps, and else the SD of the target.

    Args:
        result: What to draw.
        first: Measures of the randomised model at the first look, dash-dotted.
        first_curve: ``(N + 1,)``, rank correlations at the first look, dash-dotted.
        method: Name of the attribution method, for the title.
        step: Training step, for the title.
    """
    sheet = Sheet()
    draw_sanity(sheet, result, first=first, first_curve=first_curve, method=method, step=step)
    return sheet.figure()


def draw_sanity(
    sheet: Sheet,
    result: Cascade,
    *,
    first: Measures | None = None,
    first_curve: npt.ArrayLike | None = None,
    method: str = "attribution",
    step: int | None = None,
) -> None:
    """:func:`plot_sanity` on a sheet."""
    sheet.palette = _palette
    sheet.title(f"sanity check of {method}", step=step)
    _cascade(sheet, result, None if first_curve is None else np.asarray(first_curve, np.float64))
    sheet.words(MIDDLE, SECOND_Y, _legend())
    sheet.text((MIDDLE + WIDTH - LEFT) / 2, 9, _lines(first), ha="center", color=GREY)
    _measures(sheet, result, first, MEASURES, MIDDLE, WIDTH - LEFT)


def plot_sanity_measures(
    result: Cascade, *, first: Measures | None = None, step: int | None = None
) -> Figure:
    """All that is measured of the trained model and of the randomised one, as pairs of bars.

    Blue: the trained model, grey: the randomised one, dashed through both as the baseline; each
    pair on a scale of its own.

    Args:
        result: What to draw.
        first: Measures of the randomised model at the first look, dash-dotted.
        step: Training step, for the title.
    """
    sheet = Sheet()
    draw_sanity_measures(sheet, result, first=first, step=step)
    return sheet.figure()


def draw_sanity_measures(
    sheet: Sheet, result: Cascade, *, first: Measures | None = None, step: int | None = None
) -> None:
    """:func:`plot_sanity_measures` on a sheet."""
    sheet.palette = _palette
    sheet.title("measures, trained and random", step=step)
    sheet.words(LEFT, SECOND_Y, _legend())
    sheet.text(WIDTH / 2, 9, _lines(first), ha="center", color=GREY)
    half = WIDTH / 2
    for left, names in zip((LEFT, half + 18), ALL, strict=True):
        _measures(sheet, result, first, names, left, left + half - LEFT - 18)


def _legend() -> list[tuple[str, str]]:
    return [("■", BLUE), ("trained", INK), ("■", MISSING), ("random", INK)]


def _lines(first: Measures | None) -> str:
    return "dashed: random" if first is None else "-- random  -· first look"


def _cascade(sheet: Sheet, result: Cascade, first: Array | None) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    curve = np.asarray(result.curve, np.float64)
    names = ["trained", *(f"+ {name}" for name in result.stages)]
    rows = np.arange(len(names))
    short = [sheet.shorten(name, NAMES, keep_end=True) for name in names]
    left = LEFT + max(map(sheet.width, short)) + 14
    right = MIDDLE - 34
    sheet.words(
        LEFT, SECOND_Y, [("■", BLUE), ("rank correlation", INK), ("■", VERMILION), ("cosine", INK)]
    )
    panel = sheet.panel(
        left, BOTTOM, right - left, TOP - BOTTOM,
        xlim=(-1.04, 1.04), ylim=(len(names) - 0.5, -0.5), spines=("bottom",),
    )  # fmt: skip
    for x in (-1.0, 0.0, 1.0):
        panel.always("axvline", x, zorder=1, **line_style(GREY if x == 0 else LIGHT, 2))
    panel.always("axvline", ALIKE, zorder=1.5, **{**line_style(INK, 2), "linestyle": (0, (1, 2))})
    panel.ticks("x", [-1, 0, 1], [number(v) for v in (-1, 0, 1)])
    panel.ticks("y", [], [])
    pitch = (TOP - BOTTOM) / len(names)
    for row, name in zip(rows, short, strict=True):
        y = TOP - (row + 0.5) * pitch
        sheet.text(left - 10, y, name, ha="right", va="center_baseline")
    if first is not None and len(first) == len(rows):
        panel.add(Line2D(first, rows, zorder=3, **{**line_style(GREY, 2.5), "linestyle": FIRST}))
    low, high = np.clip(np.asarray(result.ci, np.float64), -1.0, 1.0)
    ends = [[(low[i], i), (high[i], i)] for i in np.flatnonzero(high > low)]
    panel.add(LineCollection(ends, colors=INK, linewidths=points(2.5), zorder=3.5))
    for values, color, width, z in ((curve[1], VERMILION, 2.5, 4), (curve[0], BLUE, 4, 5)):
        panel.add(
            Line2D(
                values, rows, zorder=z,
                **{**line_style(color, width), "marker": "o", "markersize": points(9)},
                markerfacecolor=color, markeredgecolor=color, markeredgewidth=points(1.4),
            )
        )  # fmt: skip
    sheet.text((left + right) / 2, 9, "likeness of the maps", ha="center")


def _measures(
    sheet: Sheet,
    result: Cascade,
    first: Measures | None,
    names: Mapping[str, str],
    left: float,
    right: float,
) -> None:
    """Of those that are known, one below the other."""
    models = [result.trained, result.randomised]
    values = np.array([[getattr(of, name) for name in names] for of in models], np.float64)
    before = np.array([getattr(first, name, np.nan) for name in names], np.float64)
    known = [i for i in range(len(names)) if np.isfinite(values[:, i]).any()]
    pitch = (TOP - BOTTOM) / MOST
    for place, i in enumerate(known[:MOST]):
        top = TOP - place * pitch
        largest = max(np.nanmax(np.abs(values[:, i])), np.nan_to_num(before[i]), 0.0) or 1.0
        sheet.text(left, top - 20, list(names.values())[i])
        bottom = top - 27 - 2 * BAR
        for value, color, slot in ((values[0, i], BLUE, 1.5), (values[1, i], GREY, 0.5)):
            y = bottom + slot * BAR
            sheet.text(right, y, _short(value), ha="right", va="center_baseline", color=color)
        width = right - NUMBERS - left
        panel = sheet.panel(
            left, bottom, width, 2 * BAR, xlim=(0, 1), ylim=(0, 2), spines=("left",)
        )
        panel.always("tick_params", left=False, bottom=False)
        panel.ticks("x", [], [])
        panel.ticks("y", [], [])
        _bars(panel, values[:, i] / largest, before[i] / largest)


def _short(value: float) -> str:
    """Two digits, in no more room than there is."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 9950:
        return number(float(f"{value:.2g}"))
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def _bars(panel: Panel, shares: Array, first: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    for share, low, color in ((shares[0], 1.0, BLUE), (shares[1], 0.0, MISSING)):
        if np.isfinite(share):
            panel.add(
                Rectangle(
                    (0.0, low + 0.15), float(share), 0.7, facecolor=color, edgecolor="none",
                    linewidth=0, zorder=ABOVE,
                )
            )  # fmt: skip
    for share, dashes, color in ((shares[1], BASELINE, INK), (first, FIRST, GREY)):
        if np.isfinite(share):
            line = {**line_style(color, 2.5), "linestyle": dashes}
            panel.add(Line2D([share, share], [0.0, 2.0], zorder=4, **line))


def _palette() -> Colors:
    lines = [shades(color, 24) for color in (BLUE, VERMILION, GREY)]
    crossed = [
        shades(one, 8, other)
        for one, other in (
            (BLUE, GREY), (BLUE, LIGHT), (BLUE, VERMILION), (VERMILION, GREY), (INK, BLUE),
            (INK, VERMILION), (GREY, LIGHT), (VERMILION, LIGHT), (INK, MISSING), (BLUE, MISSING),
            (INK, LIGHT),
        )
    ]  # fmt: skip
    return np.concatenate([shades(INK, 32), *lines, shades(LIGHT, 6), shades(MISSING, 6), *crossed])
