"""Draw what was found at a snapshot, as a small report."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from ..plotting.page import Page, redrawable
from ..plotting.parts import bars, sorted_bars, time_steps, whiskers
from ..plotting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEFT,
    LINE_HEIGHT,
    ORANGE,
    PURPLE,
    RIGHT,
    SECOND_Y,
    VERMILION,
)
from ..plotting.text import short_names, shorten, text_width, wrap
from .facts import Number
from .finding import Severity
from .overview import Light, Overview

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["fitted", "plot_overview"]

_ROWS, _MAX_NAME = 4, 176  # Bars, and pixels of a name.
_HEADS, _BARS, _LIGHTS, _TEXT = 350, 341, 214, 133  # Heights of the parts.
_MIDDLE, _SPLIT = 324, 388  # Where the right column of lights, and the profile, begin.
_MARKS: dict[Severity | None, tuple[str, str]] = {
    Severity.PROBLEM: ("✘", VERMILION),
    Severity.WARNING: ("▲", ORANGE),
    Severity.INFO: ("–", INK),
    Severity.GOOD: ("✔", GREEN),
    None: ("○", GREY),
}


@redrawable
def plot_overview(
    page: Page,
    found: Overview,
    *,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw a small report: metric, shares, time profile, what was checked, and what to do.

    The bars are shares of the attribution to inputs, with lines for their 95 % CIs; that of elapsed
    time (Δt) is its share of inputs and time together. Beside them is the share of each time step.
    A mark and words answer each question: ✔ checks were passed, – no fault was found, ▲ a warning,
    ✘ a problem, ○ nothing was measured that a rule could check. Below are the most serious findings
    and what to do.

    Args:
        page: The page to draw on.
        found: What to show; parts that are missing are named.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.
    """
    page.title(found.verdict, step)
    metric = found.metric or "no loss was logged"
    page.text(LEFT, SECOND_Y, shorten(metric, RIGHT - LEFT), color=INK if found.metric else GREY)
    _draw_shares(page, found)
    _draw_profile(page, found)
    for place, light in enumerate(found.lights):
        _draw_light(page, (LEFT, _MIDDLE)[place % 2], _LIGHTS - place // 2 * LINE_HEIGHT, light)
    _draw_texts(page, found)


def _draw_shares(page: Page, found: Overview) -> None:
    if not found.shares and found.time_share is None:
        page.text(LEFT, _HEADS, "no attribution is known", color=GREY)
        return
    page.text(
        LEFT,
        _HEADS,
        f"share{found.measured}" if found.measured else "share of the attribution",
        color=GREY,
    )
    room = _ROWS - (found.time_share is not None)
    kept = list(found.shares[: room if len(found.shares) <= room else room - 1])
    rest = found.shares[len(kept) :]
    names = short_names([name for name, _ in kept], _MAX_NAME)
    numbers, colors = [number for _, number in kept], [BLUE] * len(kept)
    if rest:
        names.append(f"{len(rest)} others")
        numbers.append(Number(sum(number.value for _, number in rest)))
        colors.append(GREY)
    if found.time_share is not None:
        names.append("Δt, of all")
        numbers.append(found.time_share)
        colors.append(PURPLE)
    left = LEFT + max(map(text_width, [*names, "Δt, of all"])) + 8
    right = _SPLIT - 30 - text_width("100%")
    count = len(names)
    bottom = _BARS - count * LINE_HEIGHT
    axes = page.axes(
        left, bottom, right, _BARS, xlim=(0, 1), ylim=(count - 0.5, -0.5), spines=["left"], ticks=""
    )
    values = np.array([number.value for number in numbers])
    bars(axes, np.zeros(count), values, colors, 0.62)
    ci = np.array([[n.low, n.high] if n.has_ci else [math.nan] * 2 for n in numbers]).T
    whiskers(axes, np.arange(count), ci, horizontal=True)
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        y = _BARS - (row + 0.5) * LINE_HEIGHT
        page.text(left - 8, y, name, ha="right", va="center_baseline")
        page.text(_SPLIT - 24, y, f"{value:.0%}", ha="right", va="center_baseline")


def _draw_profile(page: Page, found: Overview) -> None:
    profile = found.profile
    if profile is None or len(profile) < 2:
        page.text(_SPLIT, _HEADS, "no time profile", color=GREY)
        return
    disputed = found.profile_disputed
    head = "of each time step, disputed" if disputed else "of each time step"
    page.text(_SPLIT, _HEADS, shorten(head, RIGHT - _SPLIT), color=VERMILION if disputed else GREY)
    top = max(float(profile.max()), 1e-9)
    label = f"{top:.0%}" if top >= 0.01 else f"{top:.1%}"
    left, right = _SPLIT + text_width("100%") + 10, RIGHT - 6
    bottom = _BARS - 2.8 * LINE_HEIGHT
    axes = page.axes(
        left, bottom, right, _BARS - 4, xlim=(0, len(profile)), ylim=(0, 1.0),
        yticks=[1.0], yticklabels=[""],
    )  # fmt: skip
    sorted_bars(axes, 0.0, profile / top, BLUE)
    page.text(left - 10, _BARS - 4, label, ha="right", va="center_baseline")
    ticks = time_steps(len(profile) - 1, right - left, 4)
    width = (right - left) / len(profile)
    for tick, text in zip(ticks["xticks"], ticks["xticklabels"], strict=True):
        page.text(left + (tick + 0.5) * width, bottom - LINE_HEIGHT + 3, text, ha="center")


def _draw_light(page: Page, x: float, y: float, light: Light) -> None:
    mark, color = _MARKS[light.severity]
    page.text(x, y, mark, color=color)
    begin = x + text_width("✔") + 6
    end = _MIDDLE - 12 if x < _MIDDLE else RIGHT
    color = GREY if light.severity is None else INK
    page.text(begin, y, shorten(f"{light.name}: {light.words}", end - begin), color=color)


def _draw_texts(page: Page, found: Overview) -> None:
    """Write sentences and actions that fit as a whole, and how many more findings there are."""
    y = float(_TEXT)
    rows = int((_TEXT - 6) // LINE_HEIGHT) + 1
    begin = LEFT + text_width("✔") + 6
    for place, (severity, sentence, action) in enumerate(found.texts):
        left = len(found.texts) - place
        action = "" if severity is Severity.INFO else action
        parts = fitted(sentence, action, RIGHT - begin, rows - (left > 1))
        if place and parts is None:
            if rows > 0:
                page.text(begin, y, f"and {left} more: Text, findings/summary", color=GREY)
            return
        # The first one is shown in any case, if need be without the line on the others.
        parts = parts or fitted(sentence, action, RIGHT - begin, rows)
        parts = parts or (wrap(sentence, RIGHT - begin, rows), [])
        mark, color = _MARKS[severity] if severity is not Severity.INFO else ("•", INK)
        page.text(LEFT, y, mark, color=color)
        for lines, ink in zip(parts, (INK, BLUE), strict=True):
            for line in lines:
                page.text(begin, y, line, color=ink)
                y -= LINE_HEIGHT
            rows -= len(lines)


def fitted(
    sentence: str, action: str, width: float, rows: int
) -> tuple[list[str], list[str]] | None:
    """Return lines of a sentence and of the first clauses of its action; None without room.

    Args:
        sentence: It is kept as a whole.
        action: It ends after the last clause that fits; "" for none.
        width: Of a line, in pixels.
        rows: Number of lines there is room for.
    """
    kept = wrap(sentence, width, rows + 1)
    if len(kept) > rows:
        return None
    if not action:
        return kept, []
    ends = [m.end() for m in re.finditer(r"[.;](?= |$)", action)]
    for end in reversed(ends):
        lines = wrap(f"→ {action[:end].rstrip('.;')}.", width, rows + 1)
        if len(kept) + len(lines) <= rows:
            return kept, lines
    return None
