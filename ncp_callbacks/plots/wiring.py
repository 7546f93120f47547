"""Neurons and the synapses between them, as a layered graph or as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.wiring import SENSORY, SynapticFlow
from ._sheet import (
    ABOVE,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    SECOND_Y,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    number,
    points,
    samples,
    shades,
    spread,
    strongest,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_wiring"]

Array = npt.NDArray[np.float64]
Groups = Sequence["tuple[str, npt.ArrayLike]"]

BOTTOM, TOP = 46, 356
MOST_NEURONS, MOST_SYNAPSES = 60, 240  # With more of them it becomes a matrix.
MOST_NAMES = 12  # With more inputs, they have no names.
NAMES = 150  # Most pixels for names.
WIDEST, THINNEST = 14.0, 1.0  # Pixels of a synapse.
BEND = 80.0  # Most pixels by which one is bent.
# As in the maps of importance: the ends of their colours.
RAISES, LOWERS = "#c96d0d", "#5c348e"


def plot_wiring(
    flow: SynapticFlow,
    groups: Groups,
    *,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> Figure:
    """Synapses of an LTC: who listens to whom, and is raised or lowered by it.

    A synapse is as wide as its share of the target's conductance; orange ones raise the target on
    average, purple ones lower it. The columns are the inputs, and the groups in the order in which
    they are given. Synapses within a group, and those that go back, are bent. Above 60 neurons or
    240 synapses a matrix takes the place of the graph: rows are sources, columns are targets.

    Args:
        flow: What to draw.
        groups: ``(name, columns of the state)`` of each group of neurons.
        input_names: Names of the inputs.
        limit: The share that is drawn widest, or in full colour.
        step: Training step, for the title.

    Raises:
        ValueError: For names or groups that don't fit, or a limit that is not above 0.
    """
    sheet = Sheet()
    draw_wiring(sheet, flow, groups, input_names=input_names, limit=limit, step=step)
    return sheet.figure()


def draw_wiring(
    sheet: Sheet,
    flow: SynapticFlow,
    groups: Groups,
    *,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_wiring` on a sheet."""
    share, units = np.asarray(flow.share, np.float64), len(flow.leak_share)
    features = len(share) - units
    members = [(name, np.asarray(columns, np.intp)) for name, columns in groups]
    members = [(name, columns) for name, columns in members if len(columns)]
    if sorted(np.concatenate([c for _, c in members]).tolist()) != list(range(units)):
        raise ValueError(f"groups must hold each of the {units} neurons once")
    if input_names is not None and len(input_names) != features:
        raise ValueError(f"{len(input_names)} input_names for {features} inputs: give one for each")
    limit = checked_limit(limit, share)
    signed = share * np.where(np.asarray(flow.current) < 0, -1.0, 1.0)
    signed = np.where(flow.connected, signed, np.nan)

    sheet.title(f"share of conductance 0–{number(limit)}", step=step)
    count = int(flow.connected.sum())
    if units > MOST_NEURONS or count > MOST_SYNAPSES:
        _Matrix(sheet, signed, members, limit).draw()
    else:
        names = None if input_names is None or features > MOST_NAMES else list(input_names)
        _Graph(sheet, signed, members, limit, names).draw()


def _legend(sheet: Sheet, synapses: int) -> None:
    words = [("■", RAISES), ("raises", INK), ("■", LOWERS), ("lowers", INK)]
    sheet.words(LEFT, SECOND_Y, [*words, (f"{synapses:,} synapses", GREY)])


class _Graph:
    def __init__(
        self,
        sheet: Sheet,
        signed: Array,
        members: list[tuple[str, npt.NDArray[np.intp]]],
        limit: float,
        names: list[str] | None,
    ) -> None:
        self.sheet, self.signed, self.limit, self.names = sheet, signed, limit, names
        features = len(signed) - signed.shape[1]
        # Rows of `signed`, by column of the picture.
        self.columns = [(SENSORY, np.arange(features))] if features else []
        self.columns += [(name, features + columns) for name, columns in members]
        self.features = features
        self.x: Array = np.zeros(len(signed))
        self.y: Array = np.zeros(len(signed))
        self.level = np.zeros(len(signed), np.intp)

    def draw(self) -> None:
        sheet = self.sheet
        sheet.palette = _graph_palette
        short = [sheet.shorten(name, NAMES) for name in self.names or []]
        left = LEFT + max([0.0, *map(sheet.width, short)])
        _, last = self.columns[-1]
        bent = bool(np.isfinite(self.signed[np.ix_(last, last - self.features)]).any())
        right = WIDTH - LEFT - (0.75 * BEND + 8 if bent else 34)
        panel = sheet.panel(
            0, BOTTOM, WIDTH, TOP - BOTTOM, xlim=(0, WIDTH), ylim=(BOTTOM, TOP), spines=()
        )
        panel.always("tick_params", left=False, bottom=False)
        self._place(left + 16, right)
        self._synapses(panel)
        self._neurons(panel)
        for name, y in zip(short, self.y[: self.features], strict=False):
            sheet.text(left, y, name, ha="right", va="center_baseline")
        self._headings()
        _legend(sheet, int(np.isfinite(self.signed).sum()))

    def _place(self, left: float, right: float) -> None:
        """Columns from left to right; in each, neurons near those that they listen to."""
        last = max(1, len(self.columns) - 1)
        placed: npt.NDArray[np.bool_] = np.zeros(len(self.signed), bool)
        for level, (_, rows) in enumerate(self.columns):
            self.x[rows] = left + (right - left) * level / last
            self.level[rows] = level
            order = rows
            if level:
                weight = np.nan_to_num(np.abs(self.signed[:, rows - self.features]))
                weight = (weight > 0) * placed[:, None]
                total = weight.sum(axis=0)
                near = np.where(total > 0, self.y @ weight / np.maximum(total, 1), np.nan)
                middle = (BOTTOM + TOP) / 2
                order = rows[np.argsort(-np.nan_to_num(near, nan=middle), kind="stable")]
            count = len(rows)
            gap = (TOP - BOTTOM - 2 * 14) / max(count, 2)
            self.y[order] = (
                TOP - 14 - gap * (np.arange(count) + 0.5) - (0 if count > 1 else gap / 2)
            )
            placed[rows] = True

    def _synapses(self, panel: Panel) -> None:
        from matplotlib.collections import PathCollection
        from matplotlib.path import Path

        sources, targets = np.nonzero(np.isfinite(self.signed))
        size = np.abs(self.signed[sources, targets])
        paths, colors, widths = [], [], []
        # Wide ones last, so that thin ones don't hide them.
        for i in np.argsort(size, kind="stable"):
            a, b = int(sources[i]), int(targets[i]) + self.features
            paths.append(Path(*self._route(a, b)))
            colors.append(RAISES if self.signed[a, targets[i]] >= 0 else LOWERS)
            width = WIDEST * min(1.0, float(size[i]) / self.limit)
            widths.append(points(max(THINNEST, width)))
        panel.add(
            PathCollection(
                paths, facecolors="none", edgecolors=colors, linewidths=widths, linestyles="solid",
                capstyle="butt", joinstyle="round", zorder=ABOVE,
            )
        )  # fmt: skip

    def _route(self, a: int, b: int) -> tuple[list[tuple[float, float]], list[Any]]:
        """Vertices and codes of the line from one neuron to another."""
        from matplotlib.path import Path

        x0, y0, x1, y1 = self.x[a], self.y[a], self.x[b], self.y[b]
        if self.level[b] > self.level[a]:
            return [(x0, y0), (x1, y1)], [Path.MOVETO, Path.LINETO]
        if a == b:
            away = 26
            ends = [(x0, y0), (x0 + away, y0 + away), (x0 + away, y0 - away), (x0, y0)]
        else:
            # To the right of the column, the further the longer the way.
            away = 14 + 0.32 * abs(y1 - y0) + (0.3 * abs(x1 - x0) if x0 != x1 else 0)
            # A curve goes three quarters of the way to what bends it.
            away = min(away, BEND)
            ends = [(x0, y0), (x0 + away, y0), (x1 + away, y1), (x1, y1)]
        return ends, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]

    def _neurons(self, panel: Panel) -> None:
        from matplotlib.lines import Line2D

        most = max(len(rows) for _, rows in self.columns)
        size = min(13.0, 0.7 * (TOP - BOTTOM) / most)
        for shape, rows in (("s", slice(0, self.features)), ("o", slice(self.features, None))):
            panel.add(
                Line2D(
                    self.x[rows], self.y[rows], linestyle="none", marker=shape,
                    markersize=points(size), markerfacecolor="white", markeredgecolor=INK,
                    markeredgewidth=points(2), zorder=ABOVE + 1,
                )
            )  # fmt: skip

    def _headings(self) -> None:
        sheet = self.sheet
        for level, (name, rows) in enumerate(self.columns):
            text = f"{len(rows)} {name}"
            x = float(self.x[rows[0]])
            width = sheet.width(text)
            x = min(max(x - width / 2, LEFT), WIDTH - LEFT - width)
            sheet.text(x, 9, text, color=GREY if level == 0 and self.features else INK)


class _Matrix:
    def __init__(
        self,
        sheet: Sheet,
        signed: Array,
        members: list[tuple[str, npt.NDArray[np.intp]]],
        limit: float,
    ) -> None:
        self.sheet, self.limit = sheet, limit
        units = signed.shape[1]
        features = len(signed) - units
        order = np.concatenate([columns for _, columns in members])
        rows = np.concatenate([np.arange(features), features + order])
        self.values = signed[np.ix_(rows, order)]
        self.targets = [(name, len(columns)) for name, columns in members]
        self.sources = ([(SENSORY, features)] if features else []) + self.targets

    def draw(self) -> None:
        from matplotlib.collections import LineCollection

        sheet = self.sheet
        sheet.palette = _matrix_palette
        rows, columns = self.values.shape
        left = LEFT + max(sheet.width(name) for name, _ in self.sources) + 10
        right = WIDTH - LEFT - 4
        bottom = BOTTOM + 18
        panel = sheet.panel(
            left, bottom, right - left, TOP - bottom, xlim=(0, columns), ylim=(rows, 0)
        )
        panel.always("tick_params", left=False, bottom=False)
        block = self._image(panel)
        # Between kinds of neurons.
        borders: list[list[tuple[int, int]]] = []
        height = (TOP - bottom) / rows
        wanted, at = [], 0
        for i, (_, count) in enumerate(self.sources):
            if i:
                borders.append([(0, at), (columns, at)])
            wanted.append(TOP - (at + count / 2) * height)
            at += count
        places = spread(wanted, LINE_HEIGHT - 2, bottom + 4, TOP - 4)
        for (name, _), y in zip(self.sources, places, strict=True):
            sheet.text(left - 8, y, name, ha="right", va="center_baseline")
        width, at, taken = (right - left) / columns, 0, float(LEFT)
        for i, (name, count) in enumerate(self.targets):
            if i:
                borders.append([(at, 0), (at, rows)])
            room = sheet.width(name)
            x = max(taken, left + (at + count / 2) * width - room / 2)
            x = min(x, WIDTH - LEFT - room)
            sheet.text(x, 38, name)
            taken = x + room + 10
            at += count
        panel.add(LineCollection(borders, colors=INK, linewidths=points(2), zorder=ABOVE + 0.2))
        words = "target; rows are sources"
        if block != (1, 1):
            words += f"; strongest of {block[0]} × {block[1]}"
        sheet.text((left + right) / 2, 9, words, ha="center", color=GREY)
        _legend(sheet, int(np.isfinite(self.values).sum()))

    def _image(self, panel: Panel) -> tuple[int, int]:
        """Draw the cells; returns how many rows and columns share one."""
        from matplotlib import colormaps
        from matplotlib.colors import Normalize

        from ._cells import Cells

        rows, columns = self.values.shape
        _, _, width, height = panel.box
        # Cells that are smaller are lost among the white ones.
        most_rows = rows if rows * 2 <= height else int(height / 3)
        most_columns = columns if columns * 2 <= width else int(width / 3)
        values, up, across = strongest(self.values, most_rows, most_columns)
        image = Cells(
            None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
            cmap=colormaps["PuOr_r"].with_extremes(bad="white"),
            norm=Normalize(-self.limit, self.limit),
            interpolation="nearest",
            origin="upper",
            extent=(0, values.shape[1] * across, values.shape[0] * up, 0),
            filternorm=True,
            resample=True,
            zorder=ABOVE,
        )
        image.set_data(np.ma.masked_invalid(values))
        panel.add(image)
        return up, across


def _graph_palette() -> Colors:
    crossed = [
        shades(one, 14, other) for one, other in ((RAISES, LOWERS), (RAISES, INK), (LOWERS, INK))
    ]
    return np.concatenate(
        [
            shades(INK, 40),
            shades(GREY, 24),
            shades(RAISES, 48),
            shades(LOWERS, 48),
            shades(LIGHT, 4),
            *crossed,
        ]
    )


def _matrix_palette() -> Colors:
    return np.concatenate(
        [samples("PuOr_r", 192), shades(INK, 24), shades(GREY, 12), shades(LIGHT, 4)]
    )
