"""Use of a backbone's units, as a profile of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.backbone import BackboneReport, LayerStatistics
from ._sheet import BLUE, GREY, INK, LEFT, VERMILION, WIDTH, Sheet, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_unit_activity"]

MOST_LAYERS = 3
BOTTOM, TOP = 50, 392
HEADING = 30  # Pixels for the text above each panel.
SEPARATED = 64  # Up to this many units there is a gap between their bars.
SHADE = "#F2C5A8"  # Vermilion, light enough to read as a background.
INACTIVE = {
    "relu": "zero",
    "relu6": "0 or 6",
    "tanh": "saturated",
    "lecun_tanh": "saturated",
    "sigmoid": "saturated",
    "silu": "off",
    "gelu": "off",
    "gelu_tanh": "off",
    "gelu_fast": "off",
    "elu": "saturated",
    "leaky_relu": "off",
    "softplus": "off",
    "identity": "zero",
    "unknown": "zero",
}


def plot_unit_activity(
    report: BackboneReport | Sequence[LayerStatistics] | LayerStatistics,
    *,
    step: int | None = None,
) -> Figure:
    """How often each unit is active, a panel for each of the first three layers.

    A bar is the share of samples in which a unit is neither off nor stuck, by the measure of its
    layer's activation; units are sorted, the dead ones (one value for all samples) last and shaded.

    Args:
        report: A :class:`~ncp_callbacks.analysis.BackboneReport`, or its layers.
        step: Training step, for the title.

    Raises:
        ValueError: For a report without layers.
    """
    layers = [report] if isinstance(report, LayerStatistics) else list(report)
    if not layers:
        raise ValueError("the report has no layers: give at least one LayerStatistics")
    sheet = Sheet()
    sheet.title("unit activity", step=step)
    shown = layers[:MOST_LAYERS]
    left, right = LEFT + sheet.width("100%") + 12, WIDTH - LEFT - 4
    pitch = (TOP - BOTTOM) / len(shown)
    for i, layer in enumerate(shown):
        bottom = TOP - (i + 1) * pitch + (10 if i < len(shown) - 1 else 0)
        top = TOP - i * pitch - HEADING
        axes = sheet.axes(left, bottom, right - left, top - bottom)
        _draw(axes, layer)
        sheet.ticks(axes, "y", [0, 1], ["0", "100%"])
        _heading(sheet, left, top + 8, right, layer)
    more = len(layers) - len(shown)
    note = f"+{more} more layer{'s' if more > 1 else ''}" if more else ""
    sheet.text(left, 16, "units, most active first")
    if note:
        sheet.text(right, 16, note, ha="right", color=GREY)
    return sheet.figure


def _heading(sheet: Sheet, x: float, y: float, right: float, layer: LayerStatistics) -> None:
    words: list[tuple[str, Any]] = []
    if layer.samples:
        dead = f"dead {layer.dead_units / layer.units:.0%}"
        inactive = INACTIVE.get(layer.activation, layer.sparse_means)
        words += [("·", INK), (dead, VERMILION if layer.dead_units else INK)]
        words += [("·", INK), (f"{inactive} {layer.sparsity:.0%}", INK)]
    else:
        words += [("·", INK), ("no finite samples", GREY)]

    def room() -> float:
        return right - x - sum(sheet.width(text) + sheet.space for text, _ in words)

    count = f"{layer.units:,} unit{'s' if layer.units > 1 else ''}"
    if sheet.width(f"{layer.layer} · {count}") <= room():
        words = [("·", INK), (count, INK), *words]
    # The end of a module path tells layers apart.
    sheet.words(x, y, [(sheet.shorten(layer.layer, room(), keep_end=True), INK), *words])


def _draw(axes: Axes, layer: LayerStatistics) -> None:
    from matplotlib.collections import LineCollection

    active = np.nan_to_num(np.asarray(layer.active_fraction, np.float64))
    dead = np.asarray(layer.dead, bool)
    alive = np.sort(active[~dead])[::-1]
    units = len(active)
    axes.stairs(alive, np.arange(len(alive) + 1), fill=True, facecolor=BLUE, edgecolor="none")
    if dead.any():
        axes.axvspan(len(alive), units, facecolor=SHADE, edgecolor="none")
    if units <= SEPARATED:
        inner = [[(i, 0.0), (i, 1.0)] for i in range(1, len(alive))]
        axes.add_collection(
            LineCollection(inner, colors="white", linewidths=points(2), zorder=1.5), autolim=False
        )
    axes.set_xlim(0, units)
    axes.set_ylim(0, 1)
    axes.tick_params(bottom=False)
