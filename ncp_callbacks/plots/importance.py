"""Importance of features over time, as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.attribution import TemporalImportance
from ..analysis.methods import method_name
from ._sheet import (
    ABOVE,
    GREY,
    HEIGHT,
    INK,
    LEFT,
    LINE_HEIGHT,
    MISSING,
    SECOND_Y,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    integer_ticks,
    nice_limit,
    number,
    points,
    samples,
    shades,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_feature_importance"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 62, 362
ALL_LABELS = 12  # With more features, only the most important are named …
TOP_LABELS = 5  # … and these are how many.
MOST_COLUMNS = 200
NAMES = 200  # Most pixels for names.
BARS = 64  # Pixels of a bar of 100 %.
BAR = "#a6a6a6"
# Colours of the maps that stand for their lower and upper ends.
ENDS = {True: ("#5c348e", "#c96d0d"), False: ("#00224e", "#fee838")}


def plot_feature_importance(
    importance: TemporalImportance | npt.ArrayLike,
    feature_names: Sequence[str] | None = None,
    *,
    limit: float | None = None,
    step: int | None = None,
    target: str | None = None,
) -> Figure:
    """Map of importance, features × time steps, with each feature's share.

    A result is drawn with its signs: orange raises the target, purple lowers it. An array without
    negative values is drawn from dark (0) to yellow (``limit``). NaN is grey. The bars are the
    features' shares in the mean absolute value. Above 12 features, the 5 with the largest shares
    are named; above 200 steps, columns are means over equally many steps. A line over each bar is
    the 95 % CI of the share over sequences. Below stands the share of the time intervals in
    the strength of inputs and intervals together, where the model takes them.

    Args:
        importance: A :class:`~ncp_callbacks.analysis.TemporalImportance`, or ``(T, F)`` importance.
        feature_names: ``F`` names; those of the result, or ``feature 0`` …, where not given.
        limit: Colours span ±``limit`` (0 to ``limit`` for unsigned arrays), in units of the target.
        step: Training step, for the title.
        target: Name of what the importance is of; that of the result where not given.

    Raises:
        ValueError: For an array that is not ``(T, F)``, names that are not ``F``, or a limit that
            is not above 0.
    """
    sheet = Sheet()
    draw_feature_importance(sheet, importance, feature_names, limit=limit, step=step, target=target)
    return sheet.figure()


def draw_feature_importance(
    sheet: Sheet,
    importance: TemporalImportance | npt.ArrayLike,
    feature_names: Sequence[str] | None = None,
    *,
    limit: float | None = None,
    step: int | None = None,
    target: str | None = None,
) -> None:
    """:func:`plot_feature_importance` on a sheet."""
    result = importance if isinstance(importance, TemporalImportance) else None
    values = np.array(importance if result is None else result.signed, np.float64)
    values[~np.isfinite(values)] = np.nan
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"importance has shape {values.shape}; give (T, F), steps × features, both at least 1 "
            "(the mean over sequences, if there are several)"
        )
    steps, features = values.shape
    if feature_names is None:
        feature_names = [f"feature {i}" for i in range(features)]
        feature_names = feature_names if result is None else result.feature_names
    if len(feature_names) != features:
        raise ValueError(
            f"{len(feature_names)} feature_names for {features} features (importance has shape "
            f"{values.shape}, steps × features): give one for each"
        )
    if result is None:
        signed, share = bool((values < 0).any()), _share(values)
        what, raises, lowers = "importance", "above 0", "below 0"
    else:
        signed, share = True, np.nan_to_num(np.asarray(result.feature_share, np.float64))
        what = method_name(result.method)
        raises, lowers = "raises", "lowers"
        target = result.target if target is None else target
    columns, size = _binned(values)
    limit = checked_limit(limit, columns)

    sheet.palette = _signed_palette if signed else _unsigned_palette
    sheet.title(f"{what} {'±' if signed else '0–'}{number(limit)}", step=step)
    right = WIDTH - LEFT - sheet.width("100%") - 5
    left = _draw_labels(sheet, [str(name) for name in feature_names], share)
    width = right - BARS - 10 - left
    rows = (features - 0.5, -0.5)
    panel = sheet.panel(left, BOTTOM, width, TOP - BOTTOM, xlim=(-0.5, steps - 0.5), ylim=rows)
    panel.always("tick_params", left=False)
    low, high = _draw_map(panel, columns, size, limit, signed)
    # With many features, none has a large share: full width is then that of the largest, rounded.
    many = features > ALL_LABELS
    full = min(1.0, nice_limit(float(share.max()))) if many else 1.0
    bars = sheet.panel(
        right - BARS, BOTTOM, BARS, TOP - BOTTOM, xlim=(0, full), ylim=rows, spines=["left"]
    )
    bars.always("tick_params", left=False, bottom=False)
    _draw_bars(bars, share)
    if result is not None and not many:
        _draw_whiskers(bars, np.asarray(result.share_ci, np.float64))
    sheet.text(WIDTH - LEFT, 9, "share", ha="right")
    # There is no room for a colour bar: the words wear the colours.
    words: list[tuple[str, Any]]
    if signed:
        words = [("■", high), (raises, INK), ("■", low), (lowers, INK)]
    else:
        words = [("■", low), ("0", INK), ("■", high), (number(limit), INK)]
    sheet.target(sheet.words(LEFT, SECOND_Y, words) + 12, target)
    for most in (5, 4, 3, 2, 1):
        at = integer_ticks(steps - 1, most)
        distance = (at[1] if len(at) > 1 else steps) * width / steps
        if sheet.width(f"{at[-1]:,}") + 16 <= distance:
            break
    panel.ticks("x", at, [f"{s:,}" for s in at])
    label = "time step" if size == 1 else f"time step (means of {size})"
    sheet.text(left + width / 2, 9, label, ha="center")
    when = None if result is None else result.intervals_share
    if when is not None and np.isfinite(when):
        owed = f"intervals {when:.0%}"
        if LEFT + sheet.width(owed) + 12 < left + (width - sheet.width(label)) / 2:
            sheet.text(LEFT, 9, owed, color=GREY)


def _draw_labels(sheet: Sheet, names: list[str], share: Array) -> float:
    """Names on the left, shares on the right; returns where the map may begin."""
    pitch = (TOP - BOTTOM) / len(names)
    rows = [TOP - (i + 0.5) * pitch for i in range(len(names))]
    many = len(names) > ALL_LABELS
    if many:
        shown = sorted(int(i) for i in np.argsort(-share, kind="stable")[:TOP_LABELS])
        at = spread([rows[i] for i in shown], LINE_HEIGHT, BOTTOM + 9, TOP - 9)
    else:
        shown, at = list(range(len(names))), rows
    # The margin must not depend on which features are named now, or the map would jump from one
    # picture to the next. Measuring is slow, and the longest names are most likely the widest.
    longest = sorted(range(len(names)), key=lambda i: -len(names[i]))[:ALL_LABELS]
    short = {i: sheet.shorten(names[i], NAMES) for i in {*longest, *shown}}
    end = LEFT + max(map(sheet.width, short.values()))
    for i, y in zip(shown, at, strict=True):
        sheet.text(end, y, short[i], ha="right", va="center_baseline")
        sheet.text(WIDTH - LEFT, y, f"{share[i]:.0%}", ha="right", va="center_baseline")
        if many:
            sheet.line([end + 4, end + 16, end + 21], [y, rows[i], rows[i]], GREY)
    return end + (22 if many else 8)


def _share(values: Array) -> Array:
    strength = np.nansum(np.abs(values), axis=0)
    total = strength.sum()
    share: Array = strength / total if total > 0 else np.zeros_like(strength)
    return share


def _binned(values: Array) -> tuple[Array, int]:
    """``(F, columns)`` means of ``size`` steps, not counting NaN, and ``size``."""
    steps = len(values)
    size = -(-steps // MOST_COLUMNS)
    starts = np.arange(0, steps, size)
    known = np.isfinite(values)
    count = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
    means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means.T, size


def _draw_map(
    panel: Panel, columns: Array, size: int, limit: float, signed: bool
) -> tuple[str, str]:
    """Draw the map; returns its :data:`ENDS`."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

    from ._cells import Cells

    colors = colormaps["PuOr_r" if signed else "cividis"].with_extremes(bad=MISSING)
    features, count = columns.shape
    # Fewer pixels than rows: rows are averaged, not dropped.
    few = features <= TOP - BOTTOM
    image = (Cells if few else AxesImage)(
        None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
        cmap=colors,
        norm=Normalize(-limit if signed else 0.0, limit),
        interpolation="nearest" if few else "antialiased",
        origin="upper",
        extent=(-0.5, count * size - 0.5, features - 0.5, -0.5),
        filternorm=True,
        resample=True,
        zorder=ABOVE,
    )
    image.set_data(np.ma.masked_invalid(columns))
    panel.add(image)
    return ENDS[signed]


def _draw_bars(panel: Panel, share: Array) -> None:
    """Horizontal bars, one rectangle a row."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = np.arange(len(share))
    thick = 0.35 if len(share) <= HEIGHT / 20 else 0.5
    low, high, zero = rows - thick, rows + thick, np.zeros(len(share))
    corners = np.stack(
        [np.stack([x, y], axis=-1) for x, y in ((zero, low), (share, low), (share, high),
                                                (zero, high))], axis=1,
    )  # fmt: skip
    path = Path.make_compound_path_from_polys(corners)
    panel.add(PathPatch(path, facecolor=BAR, edgecolor="none", linewidth=0, zorder=ABOVE))


def _draw_whiskers(panel: Panel, interval: Array) -> None:
    """How sure the shares are: a line from the lower to the upper bound of each."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = np.flatnonzero(np.isfinite(interval).all(axis=0))
    if not rows.size:
        return
    ends = np.stack([interval[:, rows].T, np.stack([rows, rows], axis=1)], axis=-1)
    codes = np.tile([Path.MOVETO, Path.LINETO], len(rows))
    path = Path(ends.reshape(-1, 2), codes)
    panel.add(
        PathPatch(
            path, fill=False, edgecolor=INK, linewidth=points(2), capstyle="butt",
            zorder=ABOVE + 0.1,
        )
    )  # fmt: skip


def _signed_palette() -> Colors:
    return _palette("PuOr_r")


def _unsigned_palette() -> Colors:
    return _palette("cividis")


def _palette(name: str) -> Colors:
    others = [shades(INK, 24), shades(GREY, 12), shades(BAR, 12), shades(MISSING, 2)]
    return np.concatenate([samples(name, 192), *others])
