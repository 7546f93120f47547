"""Draw shares by removal beside those of an attribution, and blocks of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...plotting.limits import checked_limit, nice_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars, name_strongest, segments, time_steps, whiskers
from ...plotting.style import BLUE, BOTTOM, LEFT, PALE, RIGHT, TOP, VERMILION, fill
from ...plotting.text import number, short_names, text_width
from .analysis import RemovalShares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_feature_removal"]

MAX_NAME_WIDTH = 130  # Pixels.
BLOCKS_LEFT = 446  # Where the axes of time begin, in pixels.
ALL_LABELS = 13


@redrawable
def plot_feature_removal(
    page: Page,
    result: RemovalShares,
    *,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw each feature's share by removal, beside its share by attribution, and blocks of time.

    Blue: share of a feature in the changes of the target when it is replaced by that of other
    sequences. Pale: its share in the attribution; vermilion where the two disagree. On the right:
    change of the target when all inputs of a block of time steps are replaced. Lines are 95 % CIs
    over sequences.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The shares.
        limit: The axis of changes spans 0 to ``limit``, in units of the target.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    share, count = np.asarray(result.share, np.float64), len(result.names)
    names = short_names(list(result.names), MAX_NAME_WIDTH)
    end = LEFT + max(map(text_width, names))
    if not share.any():
        page.title("removing a feature changes nothing", step)
    elif result.disputed and result.attributed is not None:
        which = result.disputed[0]
        both = f"{share[which]:.0%} by removal, not {float(result.attributed[which]):.0%}"
        page.title(f"{names[which]}: {both}", step)
    else:
        page.title(f"removing {names[int(share.argmax())]} changes most", step)
    entries = [(BLUE, "by removal")]
    if result.attributed is not None:
        entries.append((PALE, "by attribution"))
    if result.disputed:
        entries.append((VERMILION, "disputed"))
    page.legend(*entries, note=result.target)
    left, right = end + 8, (BLOCKS_LEFT - 96 if result.blocks else RIGHT - 20)
    name_strongest(page, names, share, end, (BOTTOM, TOP), all_labels=ALL_LABELS, few=ALL_LABELS)
    attributed = result.attributed
    attributed = np.full(count, np.nan) if attributed is None else np.asarray(attributed)
    largest = float(np.nan_to_num(np.stack([share, attributed])).max())
    full = min(1.0, nice_limit(largest)) if largest > 0 else 1.0
    ticks = [0.0, full / 2, full]
    # Three rows for each feature: by removal, by attribution, and a gap.
    axes = page.axes(
        left, BOTTOM, right, TOP, xlim=(0, full), ylim=(3 * count - 1, -1), spines=["left"],
        xticks=ticks, xticklabels=[f"{tick:.3g}" for tick in ticks], grid="x", xlabel="share",
    )  # fmt: skip
    at = 3 * np.arange(count) + (0.5 if result.attributed is None else 0.0)
    thick = 1.6 if result.attributed is None else 0.9
    disputed = np.isin(np.arange(count), result.disputed)
    bars(axes, 0, share, BLUE, thick, at=at)
    bars(axes, 0, np.where(disputed, np.nan, attributed), PALE, thick, at=at + 1)
    bars(axes, 0, np.where(disputed, attributed, np.nan), VERMILION, thick, at=at + 1)
    whiskers(axes, at, result.share_ci, horizontal=True)
    if result.blocks:
        _draw_blocks(page, result, limit)


def _draw_blocks(page: Page, result: RemovalShares, limit: float | None) -> None:
    """Draw the change of the target when each block of time is replaced."""
    change = np.asarray(result.block_change, np.float64)
    limit = checked_limit(limit, change)
    last = result.blocks[-1][1]
    ticks = [0.0, limit / 2, limit]
    labels = [number(tick, 3) for tick in ticks]
    axes = page.axes(
        BLOCKS_LEFT, BOTTOM, RIGHT - 8, TOP, xlim=(-0.5, last + 0.5), ylim=(0, limit),
        yticks=ticks, yticklabels=labels, grid="y",
        xlabel="time step", **time_steps(last, RIGHT - BLOCKS_LEFT, 3),
    )  # fmt: skip
    left = BLOCKS_LEFT - max(map(text_width, labels)) - 22
    page.text(left, (BOTTOM + TOP) / 2, "change of target", ha="center", va="center", rotation=90)
    edges = [first - 0.5 for first, _ in result.blocks] + [last + 0.5]
    axes.stairs(np.nan_to_num(change), edges, fill=True, **fill(BLUE))
    middles = np.array([(first + end) / 2 for first, end in result.blocks])
    segments(axes, edges[1:-1], 0, edges[1:-1], limit, "white", 2, zorder=1.5)
    whiskers(axes, middles, result.block_ci)
