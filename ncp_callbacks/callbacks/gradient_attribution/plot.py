"""Draw the importance of features over time, as a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...attribution import TemporalImportance
from ...plotting.limits import checked_limit, nice_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars, color_bar, heat_map, name_strongest, time_steps, whiskers
from ...plotting.style import BOTTOM, GREY, LABEL_Y, LEFT, RIGHT, SIGNED, TOP, UNSIGNED
from ...plotting.text import number, short_names, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_feature_importance"]

Array = npt.NDArray[np.float64]

ALL_LABELS, TOP_LABELS = 12, 5  # Up to 12 features are all named; of more, the top 5.
MAX_COLUMNS = 200
MAX_NAME_WIDTH = 200  # Pixels.
BAR_WIDTH = 64  # Pixels of a bar of 100 %.
BAR = "#a6a6a6"
_PALE = 0.25  # Of the limit: where the largest value is below, a note says so.


@redrawable
def plot_feature_importance(
    page: Page,
    importance: TemporalImportance | npt.ArrayLike,
    feature_names: Sequence[str] | None = None,
    *,
    limit: float | None = None,
    step: int | None = None,
    target: str | None = None,
    removed: Mapping[str, float] | None = None,
    removed_at: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw a map of importance, features × time steps, with each feature's share.

    A result is drawn with its signs: orange raises the target, purple lowers it. An array without
    negative values is drawn from dark (0) to yellow (``limit``). NaN is grey. The bars are the
    features' shares: of a result those of their contributions, of an array those of absolute
    values. A line over each bar is the 95 % CI of the share over sequences. Above 12 features, the
    5 with the largest shares are named. Above 200 time steps, a column is the mean of several of
    them. If the model takes elapsed time (Δt), its share in the contributions of features and
    elapsed time is written below the map.

    Args:
        page: The page to draw on.
        importance: A :class:`~ncp_callbacks.attribution.TemporalImportance`, or importance
            ``(T, F)``.
        feature_names: ``F`` names; None for the names of the result, or ``feature 0`` and so on.
        limit: Colours span ±``limit`` (0 to ``limit`` for unsigned arrays), in units of the target.
        step: Training step, for the title.
        target: Name of the target; None for the name in the result.
        removed: Shares by removal, in those of all features, where it disagrees with the map, the
            largest difference first; the title then names both shares of the first.
        removed_at: Training step of these shares, which is written where it isn't ``step``.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: If the array is not ``(T, F)``, the number of names is not ``F``, or the limit
            is not above 0.
    """
    result = importance if isinstance(importance, TemporalImportance) else None
    values = np.array(importance if result is None else result.signed, np.float64)
    values[~np.isfinite(values)] = np.nan
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"importance has shape {values.shape}: pass (T, F), time steps × features, both at "
            "least 1; average over sequences first, if there are several"
        )
    steps, features = values.shape
    if feature_names is None:
        feature_names = [f"feature {i}" for i in range(features)]
        feature_names = feature_names if result is None else result.feature_names
    if len(feature_names) != features:
        raise ValueError(
            f"{len(feature_names)} feature_names for {features} features (importance has shape "
            f"{values.shape}, time steps × features): pass one for each"
        )
    if result is None:
        signed, share, what = bool((values < 0).any()), _share(values), "importance"
    else:
        signed, share = True, np.nan_to_num(np.asarray(result.feature_share, np.float64))
        what, target = result.label, result.target if target is None else target
    columns, size = _binned(values)
    limit = checked_limit(limit, columns)

    names = short_names([str(name) for name in feature_names], MAX_NAME_WIDTH)
    many = features > ALL_LABELS
    # The margin depends on all names, not on the few named now, or else the map would jump.
    end = LEFT + max(map(text_width, names))
    left, right = end + (22 if many else 8), RIGHT - text_width("100%") - 5
    for i, y in name_strongest(
        page, names, share, end, (BOTTOM, TOP), all_labels=ALL_LABELS, few=TOP_LABELS
    ):
        page.text(RIGHT, y, f"{share[i]:.0%}", ha="right", va="center_baseline")
    rows = (features - 0.5, -0.5)
    stop = right - BAR_WIDTH - 10
    xlabel = "time step" if size == 1 else f"time step (means of {size})"
    axes = page.axes(
        left, BOTTOM, stop, TOP, xlim=(-0.5, steps - 0.5), ylim=rows, ticks="x", xlabel=xlabel,
        **time_steps(steps - 1, stop - left, 5),
    )  # fmt: skip
    extent = (-0.5, columns.shape[1] * size - 0.5, features - 0.5, -0.5)
    cmap, low = (SIGNED, -limit) if signed else (UNSIGNED, 0.0)
    heat_map(axes, columns, low, limit, cmap=cmap, extent=extent)
    # Many features have small shares: the full width is then the largest share, rounded.
    full = min(1.0, nice_limit(float(share.max()))) if many else 1.0
    beside = page.axes(
        right - BAR_WIDTH, BOTTOM, right, TOP, xlim=(0, full), ylim=rows, spines=["left"], ticks=""
    )
    bars(beside, np.zeros(features), share, BAR, 0.7)
    if result is not None and not many:
        whiskers(beside, np.arange(features), result.share_ci, horizontal=True)
    page.text(RIGHT, LABEL_Y, "share", ha="right")
    disputed = next((name for name in removed or () if name in feature_names), "")
    if disputed and removed and share.any():
        which = list(feature_names).index(disputed)
        both = f": {share[which]:.0%}, by removal {removed[disputed]:.0%}"
        room = RIGHT - LEFT - text_width(f"{both} · step {step or 0:,}0")
        page.title(short_names([disputed], room)[0] + both, step)
    elif share.any():
        carries = f" carries {share.max():.0%}"
        room = RIGHT - LEFT - text_width(f"{carries} · step {step or 0:,}0")
        top = short_names([str(name) for name in feature_names], room)[int(share.argmax())]
        page.title(top + carries, step)
    else:
        known = np.isfinite(values).any() if result is None else result.sequences
        page.title(f"{what}: {'0 everywhere' if known else 'no finite values'}", step)
    sign = "+" if signed else ""
    note = f"{what} of {target}" if target else what
    largest = float(np.nan_to_num(np.abs(columns)).max())
    if 0 < largest < _PALE * limit:
        # The limit is that of the largest step so far, and the colours of this one are pale.
        note = f"pale: now up to {'±' if signed else ''}{number(largest, 2)}"
    if disputed and removed_at is not None and removed_at != step:
        note = f"removal is that of step {removed_at:,}"
    color_bar(page, number(low), sign + number(limit), cmap=cmap, note=note)
    when = None if result is None else result.time_delta_share
    if when is not None and np.isfinite(when):
        text = f"Δt {when:.0%}"
        if LEFT + text_width(text) + 12 < left + (stop - left - text_width(xlabel)) / 2:
            page.text(LEFT, LABEL_Y, text, color=GREY)


def _share(values: Array) -> Array:
    """Return the features' shares ``(F,)`` in the absolute values ``(T, F)``."""
    strength = np.nansum(np.abs(values), axis=0)
    total = strength.sum()
    share: Array = strength / total if total > 0 else np.zeros_like(strength)
    return share


def _binned(values: Array) -> tuple[Array, int]:
    """Return ``(F, columns)``, means without NaN of ``size`` time steps, and ``size``."""
    size = -(-len(values) // MAX_COLUMNS)
    starts = np.arange(0, len(values), size)
    known = np.isfinite(values)
    count = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
    means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means.T, size
