"""Use of a backbone's units, as a profile of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.backbone import BackboneReport, LayerStatistics
from ._sheet import (
    ABOVE,
    BLUE,
    GREY,
    INK,
    LEFT,
    SEPARATED,
    VERMILION,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    points,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_unit_activity"]

MOST_LAYERS = 3
BOTTOM, TOP = 50, 392
HEADING = 30  # Pixels for the text above each panel.
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
    sheet = Sheet()
    draw_unit_activity(sheet, report, step=step)
    return sheet.figure()


def draw_unit_activity(
    sheet: Sheet,
    report: BackboneReport | Sequence[LayerStatistics] | LayerStatistics,
    *,
    step: int | None = None,
) -> None:
    """:func:`plot_unit_activity` on a sheet."""
    layers = [report] if isinstance(report, LayerStatistics) else list(report)
    if not layers:
        raise ValueError("the report has no layers: give at least one LayerStatistics")
    sheet.palette = _palette
    sheet.title("unit activity", step=step)
    shown = layers[:MOST_LAYERS]
    left, right = LEFT + sheet.width("100%") + 12, WIDTH - LEFT - 4
    pitch = (TOP - BOTTOM) / len(shown)
    for i, layer in enumerate(shown):
        bottom = TOP - (i + 1) * pitch + (10 if i < len(shown) - 1 else 0)
        top = TOP - i * pitch - HEADING
        panel = sheet.panel(
            left, bottom, right - left, top - bottom, xlim=(0, layer.units), ylim=(0, 1)
        )
        panel.ticks("y", [0, 1], ["0", "100%"])
        _draw(panel, layer)
        _heading(sheet, left, top + 8, right, layer)
    more = len(layers) - len(shown)
    note = f"+{more} more layer{'s' if more > 1 else ''}" if more else ""
    sheet.text(left, 16, "units, most active first")
    if note:
        sheet.text(right, 16, note, ha="right", color=GREY)


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


def _draw(panel: Panel, layer: LayerStatistics) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle, StepPatch

    active = np.nan_to_num(np.asarray(layer.active_fraction, np.float64))
    dead = np.asarray(layer.dead, bool)
    alive = np.sort(active[~dead])[::-1]
    units = len(active)
    style: dict[str, Any] = {"edgecolor": "none", "linewidth": 0, "zorder": ABOVE}
    panel.add(StepPatch(alive, np.arange(len(alive) + 1), fill=True, facecolor=BLUE, **style))
    if dead.any():
        width = units - len(alive)
        panel.add(Rectangle((len(alive), 0), width, 1, facecolor=SHADE, **style))
    if units <= SEPARATED:
        inner = [[(i, 0.0), (i, 1.0)] for i in range(1, len(alive))]
        panel.add(LineCollection(inner, colors="white", linewidths=points(2), zorder=ABOVE + 0.1))


def _palette() -> Colors:
    return np.concatenate(
        [
            shades(INK, 48),
            shades(GREY, 24),
            shades(VERMILION, 48),
            shades(BLUE, 48),
            shades(SHADE, 12),
            shades(INK, 12, BLUE),
            shades(INK, 12, SHADE),
        ]
    )
