"""Draw how far back along a sequence the target's gradient reaches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...plotting.limits import decade_ticks, integer_ticks
from ...plotting.page import Page, redrawable
from ...plotting.parts import end_labels, left_margin, shade_ci
from ...plotting.style import BLUE, BOTTOM, DOTTED, GREY, INK, RIGHT, TOP, line
from ...plotting.text import number, text_width
from ..dynamics.plot import logarithm, needed_decades
from .analysis import GradientReachCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gradient_reach"]


@redrawable
def plot_gradient_reach(
    page: Page,
    result: GradientReachCurve,
    *,
    decades: tuple[int, int] | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the norm of the target's gradient by the state, against the number of time steps back.

    The norm is relative to that of the last state. Its 95 % CI over sequences is shaded, and the
    dotted line is 1/e.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The curve.
        decades: The axis spans so many powers of ten below and above 1; None for those needed.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.
    """
    below, above = needed_decades(result.curve) if decades is None else decades
    back = number(result.steps, 3)
    page.title(
        f"the gradient {f'fades to 1/e in {back}' if result.fades else f'spans {back}'} steps", step
    )
    page.legend((BLUE, "norm of the gradient"), note=result.target)
    powers = decade_ticks(-below, above, 5)
    labels = [number(float(f"1e{power}")) for power in powers]
    last = max(1, len(result.curve) - 1)
    xticks = integer_ticks(last, 5)
    at_e = -1 / math.log(10)
    left, right = left_margin(labels), RIGHT - 16 - text_width("1/e")
    axes = page.axes(
        left, BOTTOM, right, TOP, xlim=(0, last), ylim=(-below, above), xticks=xticks,
        xticklabels=[number(x) for x in xticks], yticks=powers, yticklabels=labels, grid="y",
        hlines=[(0.0, line(GREY, 2)), (at_e, line(INK, 2, DOTTED))],
        xlabel="time steps back",
    )  # fmt: skip
    lags = np.arange(len(result.curve))
    shade_ci(axes, lags, np.clip(logarithm(result.ci), -below, above), BLUE, 0.16)
    axes.plot(lags, np.clip(logarithm(result.curve), -below, above), zorder=4, **line(BLUE, 4))
    end_labels(page, right + 8, axes, [("1/e", INK, at_e)])
