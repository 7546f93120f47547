"""Draw how target and loss change when a unit is clamped to its mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars, whiskers
from ...plotting.style import BLUE, BOTTOM, GREY, LEFT, PALE, RIGHT, TOP, VERMILION, line
from ...plotting.text import number, short_names, text_width
from .analysis import UnitAblations

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_unit_ablation"]

MAX_NAME_WIDTH = 124  # Pixels.
GAP = 14  # Pixels between the labels of the two axes.
MAX_ROWS = 12


@redrawable
def plot_unit_ablation(
    page: Page,
    result: UnitAblations,
    *,
    limit: float | None = None,
    loss_limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the change of target and loss for the 12 units whose clamping changes most.

    Left, blue: mean absolute change of the target; pale: what its slope predicts, which is the
    attribution to the unit. Right: mean change of the loss, vermilion for units without which it is
    larger beyond chance. Lines are 95 % CIs over sequences.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The changes.
        limit: The left axis spans 0 to ``limit``, in units of the target.
        loss_limit: The right axis spans ``-loss_limit`` to ``loss_limit``.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    change = np.nan_to_num(np.asarray(result.change, np.float64))
    names = short_names(list(result.names), MAX_NAME_WIDTH)
    page.title(_title(result, change, names), step)
    entries = [(BLUE, "clamped to mean")]
    if result.predicted is not None:
        entries.append((PALE, "by slope"))
    if result.needed is not None and result.needed.any():
        entries.append((VERMILION, "needed"))
    page.legend(*entries, note=result.target)
    strongest = np.argsort(-change, kind="stable")[:MAX_ROWS]
    rows, end = len(strongest), LEFT + max(map(text_width, names))
    pitch = (TOP - BOTTOM) / rows
    for row, unit in enumerate(strongest.tolist()):
        y = TOP - (row + 0.5) * pitch
        page.text(end, y, names[unit], ha="right", va="center_baseline")
    left, right = end + 8, float(RIGHT - 20)
    slopes = np.full(len(change), np.nan)
    if result.predicted is not None:
        slopes = np.asarray(result.predicted, np.float64)
    limit = checked_limit(limit, np.concatenate([change, slopes]))
    ticks = [0.0, limit / 2, limit]
    labels = [number(tick, 3) for tick in ticks]
    loss_limit = checked_limit(loss_limit, () if result.loss_change is None else result.loss_change)
    gap = (text_width(labels[-1]) + text_width(number(-loss_limit, 3))) / 2 + GAP
    if result.loss_change is not None:
        right = (left + RIGHT - gap) / 2
    both = result.predicted is not None
    # Three lines for each unit: clamped, by slope, and a gap.
    shared: dict[str, Any] = {"ylim": (3 * rows - 1, -1), "grid": "x"}
    axes = page.axes(
        left, BOTTOM, right, TOP, xlim=(0, limit), spines=["left"], xticks=ticks,
        xticklabels=labels, xlabel="change of target", **shared,
    )  # fmt: skip
    at, thick = 3 * np.arange(rows) + (0.0 if both else 0.5), (0.9 if both else 1.6)
    bars(axes, 0, change[strongest], BLUE, thick, at=at)
    bars(axes, 0, slopes[strongest], PALE, thick, at=at + 1)
    whiskers(axes, at, result.change_ci[:, strongest], horizontal=True)
    if result.loss_change is not None:
        _draw_losses(page, result, strongest, loss_limit, right + gap, shared)


def _title(result: UnitAblations, change: np.ndarray, names: list[str]) -> str:
    """Return the finding."""
    if not change.any():
        return "clamping a unit changes nothing"
    if result.needed is not None and result.loss_change is not None and result.needed.any():
        most = int(np.where(result.needed, result.loss_change, -np.inf).argmax())
        return f"the loss needs {names[most]} most, of {int(result.needed.sum())} units"
    return f"clamping {names[int(change.argmax())]} changes most"


def _draw_losses(
    page: Page,
    result: UnitAblations,
    units: npt.NDArray[np.intp],
    limit: float,
    left: float,
    shared: dict[str, Any],
) -> None:
    """Draw the change of the loss of each unit."""
    loss = np.asarray(result.loss_change, np.float64)[units]
    needed = np.asarray(result.needed, bool)[units]
    ticks = [-limit, 0.0, limit]
    axes = page.axes(
        left, BOTTOM, RIGHT - 24, TOP, xlim=(-limit, limit), spines=[], xticks=ticks,
        xticklabels=[number(tick, 3) for tick in ticks], xlabel="change of loss",
        vlines=[(0.0, line(GREY, 2))], **shared,
    )  # fmt: skip
    at = 3 * np.arange(len(loss)) + 0.5
    bars(axes, 0, np.where(needed, np.nan, loss), PALE, 1.6, at=at)
    bars(axes, 0, np.where(needed, loss, np.nan), VERMILION, 1.6, at=at)
    whiskers(axes, at, np.asarray(result.loss_ci)[:, units], horizontal=True)
