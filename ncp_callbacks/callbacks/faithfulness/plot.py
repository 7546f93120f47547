"""Draw the change of the target while inputs are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import left_margin, shade, shade_ci
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DOTTED,
    GREY,
    INK,
    RIGHT,
    VERMILION,
    line,
)
from ...plotting.text import number, text_width
from .analysis import Deletion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_faithfulness", "rms_curves"]

Array = npt.NDArray[np.float64]
TOP = 354
MAX_MARKERS = 50  # With more points only the line is drawn.


@redrawable
def plot_faithfulness(
    page: Page,
    result: Deletion,
    *,
    method: str = "attribution",
    target: str | None = None,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the RMS change of the target against the share of inputs removed, in three orders.

    Blue: largest attribution first; vermilion: smallest first; grey: random orders, with their
    range. For a faithful attribution, blue is above grey and grey above vermilion. Shaded blue and
    vermilion are the 95 % CIs of the curves over sequences, clipped to the axis. With fewer than 16
    sequences they cover the true value less often, and one sequence has none. The dotted line is
    where CPD and CPP end.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The changes.
        method: Name of the attribution method, for the title.
        target: Name of the target.
        limit: The vertical axis spans 0 to ``limit``.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    curves = rms_curves(result)
    limit = checked_limit(limit, curves)
    page.title(f"removal by {method}", step)
    page.legend(
        (BLUE, "largest first"), (GREY, "at random"), (VERMILION, "smallest first"), note=target
    )
    yticks = [0.0, limit / 2, limit]
    labels = [number(y) for y in yticks]
    xticks = sorted({0.0, float(result.top), 0.5, 1.0})
    axes = page.axes(
        left_margin(labels, True), BOTTOM + 4, RIGHT - text_width("100%") / 2, TOP, xlim=(0, 1),
        ylim=(0, limit), xticks=xticks, xticklabels=[f"{x:.0%}" for x in xticks], yticks=yticks,
        yticklabels=labels, grid="y", xlabel="inputs removed", ylabel="RMS change of target",
        vlines=[(float(result.top), line(INK, 2, DOTTED))],
    )  # fmt: skip
    shares, random = np.asarray(result.shares, np.float64), curves[2:]
    if len(random) and np.isfinite(random).all():
        shade(axes, shares, random.min(axis=0), random.max(axis=0), GREY, 0.25)
        axes.plot(shares, random.mean(axis=0), zorder=3, **line(GREY, 3))
    for i, color in ((1, VERMILION), (0, BLUE)):
        shade_ci(axes, shares, result.rms_ci[:, i], color, 0.16)
    axes.plot(shares, curves[1], zorder=4, **line(VERMILION, 3))
    marker = "o" if len(shares) <= MAX_MARKERS else ""
    axes.plot(shares, curves[0], zorder=5, **line(BLUE, 4, marker=marker))


def rms_curves(result: Deletion) -> Array:
    """Return ``(2 + R, K + 1)`` RMS changes: in decreasing, increasing and random orders.

    All go from 0 to 1. They are NaN without sequences.
    """
    curves = np.stack([result.decreasing, result.increasing, *result.random]).astype(np.float64)
    if not result.sequences:
        return np.full(curves.shape[::2], np.nan)
    rms: Array = np.sqrt((curves**2).mean(axis=1))
    return rms
