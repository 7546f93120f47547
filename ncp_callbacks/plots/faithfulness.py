"""What happens to the target while inputs are removed, as curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.faithfulness import Deletion
from ._sheet import (
    ABOVE,
    BLUE,
    GREY,
    INK,
    LEFT,
    LIGHT,
    SECOND_Y,
    VERMILION,
    WIDTH,
    Colors,
    Sheet,
    checked_limit,
    line_style,
    number,
    points,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

__all__ = ["plot_faithfulness", "rms_curves"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 354
OPAQUE, OPAQUE_RANDOM = 0.16, 0.25  # Of bands.
MOST_MARKERS = 50  # Of more points only the line is drawn.


def plot_faithfulness(
    result: Deletion,
    *,
    method: str = "attribution",
    target: str | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> Figure:
    """RMS change of the target against the share of inputs removed, in three orders.

    Blue: those of largest attribution first; vermilion: the smallest first; grey: in random order,
    with the range of the orders. A map that knows what matters has blue above grey above
    vermilion. Shaded blue and vermilion are the 95 % CIs of their curves over sequences, cut
    where the axis ends; below 16 sequences they are unreliable, and of one there are none. The
    dotted line is where CPD and CPP end.

    Args:
        result: What to draw.
        method: Name of the attribution method, for the title.
        target: Name of the target.
        limit: The vertical axis spans 0 to ``limit``.
        step: Training step, for the title.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    sheet = Sheet()
    draw_faithfulness(sheet, result, method=method, target=target, limit=limit, step=step)
    return sheet.figure()


def rms_curves(result: Deletion) -> Array:
    """``(2 + R, K + 1)``, RMS over sequences: by decreasing, by increasing, in random orders.

    All go from 0 to 1; NaN without sequences.
    """
    curves = np.stack([result.decreasing, result.increasing, *result.random]).astype(np.float64)
    if not result.sequences:
        return np.full(curves.shape[::2], np.nan)
    rms: Array = np.sqrt((curves**2).mean(axis=1))
    return rms


def draw_faithfulness(
    sheet: Sheet,
    result: Deletion,
    *,
    method: str = "attribution",
    target: str | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_faithfulness` on a sheet."""
    from matplotlib.lines import Line2D

    curves = rms_curves(result)
    limit = checked_limit(limit, curves)
    sheet.palette = _palette
    sheet.title(f"removal by {method}", step=step)
    end = sheet.words(
        LEFT,
        SECOND_Y,
        [
            ("■", BLUE), ("largest first", INK), ("■", GREY), ("at random", INK),
            ("■", VERMILION), ("smallest first", INK),
        ],
    )  # fmt: skip
    sheet.target(end + 14, target)

    y_ticks = [0.0, limit / 2, limit]
    y_labels = [number(v) for v in y_ticks]
    left = LEFT + 33 + max(map(sheet.width, y_labels)) + 12
    right = WIDTH - LEFT - sheet.width("100%") / 2
    panel = sheet.panel(
        left, BOTTOM, right - left, TOP - BOTTOM, xlim=(0.0, 1.0), ylim=(0.0, limit)
    )
    for y in y_ticks[1:]:
        panel.always("axhline", y, zorder=1, **line_style(LIGHT, 2))
    dotted = {**line_style(INK, 2), "linestyle": (0, (1, 2))}
    panel.always("axvline", float(result.top), zorder=1.5, **dotted)
    shares = np.asarray(result.shares, np.float64)
    random = curves[2:]
    if len(random) and np.isfinite(random).all():
        between = np.stack([random.min(axis=0), random.max(axis=0)])
        panel.add(_band(shares, between, GREY, OPAQUE_RANDOM, ABOVE))
        panel.add(Line2D(shares, random.mean(axis=0), zorder=3, **line_style(GREY, 3)))
    # Far beyond the axis coordinates of pixels overflow.
    intervals = np.minimum(result.rms_ci, 100 * limit)
    for i, color, z in ((1, VERMILION, ABOVE + 0.1), (0, BLUE, ABOVE + 0.2)):
        if np.isfinite(intervals[:, i]).all():
            panel.add(_band(shares, intervals[:, i], color, OPAQUE, z))
    panel.add(Line2D(shares, curves[1], zorder=4, **line_style(VERMILION, 3)))
    marker = "o" if len(shares) <= MOST_MARKERS else ""
    panel.add(
        Line2D(
            shares, curves[0], zorder=5,
            **{**line_style(BLUE, 4), "marker": marker, "markersize": points(8)},
            markerfacecolor=BLUE, markeredgecolor=BLUE, markeredgewidth=points(1.4),
        )
    )  # fmt: skip
    at = sorted({0.0, float(result.top), 0.5, 1.0})
    panel.ticks("x", at, [f"{share:.0%}" for share in at])
    panel.ticks("y", y_ticks, y_labels)
    sheet.text(
        LEFT + 18, (BOTTOM + TOP) / 2, "RMS change of target", ha="center", va="center",
        rotation=90,
    )  # fmt: skip
    sheet.text((left + right) / 2, 9, "inputs removed", ha="center")


def _band(shares: Array, ends: Array, color: str, opaque: float, z: float) -> PolyCollection:
    from matplotlib.collections import PolyCollection

    low, high = ends
    outline = np.stack([np.append(shares, shares[::-1]), np.append(low, high[::-1])], axis=1)
    return PolyCollection(
        [outline], facecolor=color, edgecolor="none", linewidth=0, alpha=opaque, zorder=z
    )


def _palette() -> Colors:
    white = np.ones(3)
    ground = [white]  # Bands, also where they are one above the other.
    for color, opaque in ((GREY, OPAQUE_RANDOM), (VERMILION, OPAQUE), (BLUE, OPAQUE)):
        ground += [shades(color, 1)[0] * opaque + below * (1 - opaque) for below in ground]
    lines = [shades(color, 16) for color in (BLUE, VERMILION, GREY)]
    on_bands = [
        shades(color, count, band)
        for band in ground[1:]
        for color, count in ((BLUE, 5), (VERMILION, 5), (GREY, 4), (LIGHT, 1), (INK, 2))
    ]
    crossed = [
        shades(one, 4, other)
        for one, other in (
            (BLUE, GREY), (BLUE, VERMILION), (VERMILION, GREY), (INK, BLUE), (INK, VERMILION),
        )
    ]  # fmt: skip
    return np.concatenate(
        [shades(INK, 32), *lines, shades(LIGHT, 4), ground[1:], *on_bands, *crossed]
    )
