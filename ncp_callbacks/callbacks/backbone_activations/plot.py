"""Draw how the units of a backbone are used, as a profile of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...plotting.page import Page, redrawable
from ...plotting.parts import left_margin, sorted_bars
from ...plotting.style import BLUE, GREY, INK, RIGHT, VERMILION, fill
from ...plotting.text import shorten, space_width, text_width
from .analysis import BackboneReport, LayerStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_unit_activity"]

MAX_LAYERS = 3
BOTTOM, TOP = 50, 392
HEADING = 30  # Pixels for the text above each panel.
SHADE = "#F2C5A8"  # Vermilion, light enough to read as a background.
INACTIVE = {
    "relu6": "0 or 6",
    **dict.fromkeys(("tanh", "lecun_tanh", "sigmoid", "elu"), "saturated"),
    **dict.fromkeys(("silu", "gelu", "gelu_tanh", "gelu_fast", "leaky_relu", "softplus"), "off"),
    **dict.fromkeys(("relu", "identity", "unknown"), "zero"),
}


@redrawable
def plot_unit_activity(
    page: Page,
    report: BackboneReport | Sequence[LayerStatistics] | LayerStatistics,
    *,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw how often each unit is active, in a panel for each of the first three layers.

    A bar is the share of all time steps and sequences in which a unit is neither off nor stuck;
    what counts as off depends on the activation function. Units are sorted. Dead units, which have
    one value everywhere, come last and are shaded.

    Args:
        page: The page to draw on.
        report: A :class:`~ncp_callbacks.analysis.BackboneReport`, or its layers.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: If the report has no layers.
    """
    layers = [report] if isinstance(report, LayerStatistics) else list(report)
    if not layers:
        raise ValueError("the report has no layers: pass at least one LayerStatistics")
    dead = sum(layer.dead_units for layer in layers)
    units = sum(layer.units for layer in layers)
    known = any(layer.samples for layer in layers)
    finding = f"{dead:,} of {units:,} unit{'s' if units > 1 else ''} dead"
    page.title(finding if known else "unit activity: no finite values", step)
    shown = layers[:MAX_LAYERS]
    left, right = left_margin(["100%"]), RIGHT - 4
    pitch = (TOP - BOTTOM) / len(shown)
    for i, layer in enumerate(shown):
        bottom = TOP - (i + 1) * pitch + (10 if i < len(shown) - 1 else 0)
        top = TOP - i * pitch - HEADING
        axes = page.axes(
            left, bottom, right, top, xlim=(0, layer.units), ylim=(0, 1), ticks="y",
            yticks=[0, 1], yticklabels=["0", "100%"],
        )  # fmt: skip
        alive = np.nan_to_num(np.asarray(layer.active_fraction, np.float64))
        alive = np.sort(alive[~np.asarray(layer.dead, bool)])[::-1]
        if len(alive) < layer.units:
            axes.axvspan(len(alive), layer.units, **fill(SHADE))
        if len(alive):
            sorted_bars(axes, 0.0, alive, BLUE)
        _heading(page, left, top + 8, right, layer)
    page.text(left, 16, "units, most active first")
    more = len(layers) - len(shown)
    if more:
        page.text(right, 16, f"+{more} more layer{'s'[: more - 1]}", ha="right", color=GREY)


def _heading(page: Page, x: float, y: float, right: float, layer: LayerStatistics) -> None:
    """Write the name of a layer and its numbers, as far as there is room."""
    words = [("·", INK), ("no finite values", GREY)]
    if layer.samples:
        dead = f"dead {layer.dead_units / layer.units:.0%}"
        inactive = INACTIVE.get(layer.activation, layer.sparse_means)
        words = [("·", INK), (dead, VERMILION if layer.dead_units else INK)]
        words += [("·", INK), (f"{inactive} {layer.sparsity:.0%}", INK)]

    def room() -> float:
        return right - x - sum(text_width(text) + space_width() for text, _ in words)

    count = f"{layer.units:,} unit{'s' if layer.units > 1 else ''}"
    if text_width(f"{layer.layer} · {count}") <= room():
        words = [("·", INK), (count, INK), *words]
    page.words(x, y, (shorten(layer.layer, room()), INK), *words)
