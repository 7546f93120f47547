"""Draw how the target changes when time steps are dropped or merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars, whiskers
from ...plotting.style import BLUE, BOTTOM, LEFT, ORANGE, RIGHT, TOP
from ...plotting.text import number, text_width
from .analysis import SamplingChanges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_sampling_rate"]


@redrawable
def plot_sampling_rate(
    page: Page,
    result: SamplingChanges,
    *,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the mean absolute change of the target with fewer time steps, in SDs of the target.

    Blue: time steps are dropped; orange: they are merged with the next one that is left. Lines are
    95 % CIs over sequences.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The changes.
        limit: The axis spans 0 to ``limit``.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    first = next(iter(result.change.values()))
    page.title(f"{result.factors[0]} times fewer steps: {number(float(first[0]), 2)} SD", step)
    colors = {"dropped": BLUE, "merged": ORANGE}
    page.legend(*((colors[way], way) for way in result.change), note=result.target)
    limit = checked_limit(limit, np.concatenate(list(result.change.values())))
    rows = len(result.factors)
    names = [f"1 of {factor} steps" for factor in result.factors]
    end = LEFT + max(map(text_width, names))
    pitch = (TOP - BOTTOM) / rows
    for row, name in enumerate(names):
        page.text(end, TOP - (row + 0.5) * pitch, name, ha="right", va="center_baseline")
    ticks = [0.0, limit / 2, limit]
    labels = [number(tick, 3) for tick in ticks]
    right = RIGHT - max(24, text_width(labels[-1]) / 2)
    axes = page.axes(
        end + 10, BOTTOM, right, TOP, xlim=(0, limit), ylim=(rows - 0.5, -0.5),
        spines=["left"], xticks=ticks, xticklabels=labels, grid="x",
        xlabel="change of target, SD",
    )  # fmt: skip
    thick = min(0.24, 24 / pitch)
    for way, shift in zip(result.change, (-thick / 2, thick / 2), strict=False):
        at = np.arange(rows) + shift
        bars(axes, 0, result.change[way], colors[way], thick, at=at)
        whiskers(axes, at, result.ci[way], horizontal=True)
