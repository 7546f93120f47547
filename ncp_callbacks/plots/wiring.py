"""Neurons and the synapses between them, as a layered graph or as a matrix.

Two things by two means: synapses by their width and hue, attribution by how dark neurons are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
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
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["plot_wiring"]

Array = npt.NDArray[np.float64]
Words = Sequence["tuple[str, str]"]
Groups = Sequence["tuple[str, npt.ArrayLike]"]

BOTTOM, TOP = 46, 356
MOST_NEURONS, MOST_SYNAPSES = 60, 240  # With more of them it becomes a matrix.
MOST_NAMES = 12  # With more inputs, they have no names.
NAMES = 150  # Most pixels for names.
WIDEST, THINNEST = 14.0, 1.0  # Pixels of a synapse.
BEND = 80.0  # Most pixels by which one is bent.
APART = 10  # Pixels between texts in a row.
MOST_BELOW = 20  # Neurons without synapses in a column, one below the other.
CORNERS = 24  # Of what is a circle to the eye.
STRIP, STRIP_HEIGHT = "attribution", 14
# As in the maps of importance: the ends of their colours.
RAISES, LOWERS = "#c96d0d", "#5c348e"


def plot_wiring(
    flow: SynapticFlow | None,
    groups: Groups,
    *,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    attribution: npt.ArrayLike | None = None,
    attribution_limit: float | None = None,
    attribution_cis: Mapping[str, tuple[float, float]] | None = None,
    step: int | None = None,
) -> Figure:
    """Synapses of an LTC: who listens to whom, and is raised or lowered by it.

    A synapse is as wide as its share of the target's conductance; orange ones raise the target on
    average, purple ones lower it. The columns are the inputs, and the groups in the order in which
    they are given. Synapses within a group, and those that go back, are bent. Above 60 neurons or
    240 synapses a matrix takes the place of the graph: rows are sources, columns are targets.

    The darker a neuron, the larger its share in the attribution; those of a group add up to what
    stands at its name, with its interval where there is one. A matrix has a row of its own for it.
    Inputs have none: attribution is of states.

    Args:
        flow: What to draw; None for a cell without synapses, of which neurons are drawn alone.
        groups: ``(name, columns of the state)`` of each group of neurons.
        input_names: Names of the inputs.
        limit: The share that is drawn widest, or in full colour.
        attribution: ``(H,)``, share of each neuron in the attribution of the target.
        attribution_limit: The share that is drawn darkest.
        attribution_cis: For groups, the 95 % CI of the share of all neurons.
        step: Training step, for the title.

    Raises:
        ValueError: For names, groups or attribution that don't fit, or a limit that is not above 0.
    """
    sheet = Sheet()
    draw_wiring(
        sheet, flow, groups, input_names=input_names, limit=limit, attribution=attribution,
        attribution_limit=attribution_limit, attribution_cis=attribution_cis,
        step=step,
    )  # fmt: skip
    return sheet.figure()


def draw_wiring(
    sheet: Sheet,
    flow: SynapticFlow | None,
    groups: Groups,
    *,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    attribution: npt.ArrayLike | None = None,
    attribution_limit: float | None = None,
    attribution_cis: Mapping[str, tuple[float, float]] | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_wiring` on a sheet."""
    members = [(name, np.asarray(columns, np.intp)) for name, columns in groups]
    members = [(name, columns) for name, columns in members if len(columns)]
    units = sum(len(c) for _, c in members) if flow is None else len(flow.leak_share)
    if sorted(np.concatenate([c for _, c in members]).tolist()) != list(range(units)):
        raise ValueError(f"groups must hold each of the {units} neurons once")
    ink = None
    if attribution is not None:
        owed = np.asarray(attribution, np.float64)
        if owed.shape != (units,):
            raise ValueError(
                f"attribution has shape {owed.shape}: give a share for each of the {units} neurons"
            )
        darkest = checked_limit(attribution_limit, owed)
        ink = _Ink(owed, darkest, dict(members), attribution_cis or {})
    if flow is None:
        if ink is None:
            raise ValueError("neither flow nor attribution is given: there is nothing to draw")
        sheet.title("attribution by neuron", step=step)
        end = _darkest(sheet, LEFT, ink, "●")
        sheet.words(end + 14, SECOND_Y, [("no synapses", GREY)])
        _Neurons(sheet, members, ink).draw()
        return

    share = np.asarray(flow.share, np.float64)
    features = len(share) - units
    if input_names is not None and len(input_names) != features:
        raise ValueError(f"{len(input_names)} input_names for {features} inputs: give one for each")
    limit = checked_limit(limit, share)
    signed = share * np.where(np.asarray(flow.current) < 0, -1.0, 1.0)
    signed = np.where(flow.connected, signed, np.nan)
    sheet.title(f"share of conductance 0–{number(limit)}", step=step)
    count = int(flow.connected.sum())
    if units > MOST_NEURONS or count > MOST_SYNAPSES:
        _Matrix(sheet, signed, members, limit, ink).draw()
    else:
        names = None if input_names is None or features > MOST_NAMES else list(input_names)
        _Graph(sheet, signed, members, limit, names, ink).draw()


@dataclass(frozen=True, eq=False)
class _Ink:
    """Shares of neurons in the attribution, and how dark the largest is."""

    share: Array
    limit: float
    members: Mapping[str, npt.NDArray[np.intp]]
    intervals: Mapping[str, tuple[float, float]]

    @property
    def darkness(self) -> Array:
        return np.clip(self.share / self.limit, 0.0, 1.0)

    def words(self, group: str) -> list[tuple[str, str]]:
        """The share of a group, and its interval; of a single group there is none."""
        share = float(self.share[self.members[group]].sum())
        if len(self.members) < 2 or not np.isfinite(share):
            return []
        low, high = self.intervals.get(group, (np.nan, np.nan))
        known = [(f"{100 * low:.0f}–{100 * high:.0f}", GREY)] if np.isfinite(low + high) else []
        return [(f"{share:.0%}", INK), *known]


@cache
def _to_ink() -> Colormap:
    """From white for no attribution to ink for the most."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ink", ["white", INK])


def _legend(sheet: Sheet, synapses: int, ink: _Ink | None, mark: str) -> None:
    words = [("■", RAISES), ("raises", INK), ("■", LOWERS), ("lowers", INK)]
    end = sheet.words(LEFT, SECOND_Y, [*words, (f"{synapses:,} synapses", GREY)])
    if ink is not None:
        _darkest(sheet, end + 14, ink, mark)


def _darkest(sheet: Sheet, x: float, ink: _Ink, mark: str) -> float:
    most = f"{number(100 * ink.limit)}% of attribution"
    return sheet.words(x, SECOND_Y, [(mark, INK), (most, INK)])


def _in_a_row(sheet: Sheet, y: float, texts: Sequence[tuple[float, Words]]) -> None:
    """Words centred at their places, aside where they would touch, the last ones left out where
    there is no room.
    """
    words = [list(each) for _, each in texts]

    def widths() -> list[float]:
        return [sum(sheet.width(t) + sheet.space for t, _ in each) - sheet.space for each in words]

    while sum(widths()) + APART * (len(words) - 1) > WIDTH - 2 * LEFT:
        longest = max(map(len, words))
        if longest == 1:
            break
        words = [each[: longest - 1] for each in words]
    begin, taken = [], float(LEFT)
    for (middle, _), width in zip(texts, widths(), strict=True):
        begin.append(max(taken, middle - width / 2))
        taken = begin[-1] + width + APART
    end = float(WIDTH - LEFT)
    for i, width in reversed(list(enumerate(widths()))):
        begin[i] = min(begin[i], end - width)
        end = begin[i] - APART
    for x, each in zip(begin, words, strict=True):
        sheet.words(x, y, each)


class _Graph:
    def __init__(
        self,
        sheet: Sheet,
        signed: Array,
        members: list[tuple[str, npt.NDArray[np.intp]]],
        limit: float,
        names: list[str] | None,
        ink: _Ink | None,
    ) -> None:
        self.sheet, self.signed, self.limit, self.names = sheet, signed, limit, names
        self.ink = ink
        features = len(signed) - signed.shape[1]
        # Rows of `signed`, by column of the picture.
        self.columns = [(SENSORY, np.arange(features))] if features else []
        self.columns += [(name, features + columns) for name, columns in members]
        self.features = features
        self.x: Array = np.zeros(len(signed))
        self.y: Array = np.zeros(len(signed))
        self.level = np.zeros(len(signed), np.intp)
        most = max(len(rows) for _, rows in self.columns)
        self.size = min(13.0, 0.7 * (TOP - BOTTOM) / most)

    def draw(self) -> None:
        sheet = self.sheet
        sheet.palette = _graph_palette
        short = [sheet.shorten(name, NAMES) for name in self.names or []]
        left = LEFT + max([0.0, *map(sheet.width, short)])
        _, last = self.columns[-1]
        bent = bool(np.isfinite(self.signed[np.ix_(last, last - self.features)]).any())
        right = WIDTH - LEFT - (0.75 * BEND + 8 if bent else 34)
        panel = self._panel()
        self._place(left + 16, right)
        self._synapses(panel)
        self._neurons(panel)
        for name, y in zip(short, self.y[: self.features], strict=False):
            sheet.text(left, y, name, ha="right", va="center_baseline")
        self._headings()
        _legend(sheet, int(np.isfinite(self.signed).sum()), self.ink, "●")

    def _panel(self) -> Panel:
        panel = self.sheet.panel(
            0, BOTTOM, WIDTH, TOP - BOTTOM, xlim=(0, WIDTH), ylim=(BOTTOM, TOP), spines=()
        )
        panel.always("tick_params", left=False, bottom=False)
        return panel

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

        face = "white"
        if self.ink is not None:
            face = "none"
            self._fill(panel, np.nan_to_num(self.ink.darkness))
        inputs, neurons = slice(0, self.features), slice(self.features, None)
        for shape, rows, inside in (("s", inputs, "white"), ("o", neurons, face)):
            panel.add(
                Line2D(
                    self.x[rows], self.y[rows], linestyle="none", marker=shape,
                    markersize=points(self.size), markerfacecolor=inside, markeredgecolor=INK,
                    markeredgewidth=points(min(2.0, self.size / 4)), zorder=ABOVE + 1,
                )
            )  # fmt: skip

    def _fill(self, panel: Panel, darkness: Array) -> None:
        from matplotlib.collections import PolyCollection

        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        # Up to the middle of the outline.
        circle = self.size / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        places = np.stack([self.x, self.y], axis=1)[self.features :]
        panel.add(
            PolyCollection(
                list(places[:, None] + circle), facecolors=_to_ink()(darkness),
                edgecolor="none", linewidth=0, zorder=ABOVE + 0.9,
            )
        )  # fmt: skip

    def _headings(self) -> None:
        """Below each column its name, and above that its share in the attribution."""
        names: list[tuple[float, Words]] = []
        shares: list[tuple[float, Words]] = []
        for level, (name, rows) in enumerate(self.columns):
            middle = float(self.x[rows].mean())
            sensory = level == 0 and self.features > 0
            names.append((middle, [(f"{len(rows)} {name}", GREY if sensory else INK)]))
            if self.ink is not None and not sensory:
                shares.append((middle, self.ink.words(name)))
        _in_a_row(self.sheet, 9, names)
        _in_a_row(self.sheet, 30, [each for each in shares if each[1]])


class _Neurons(_Graph):
    """Those of a cell without synapses, as many as there may be."""

    def __init__(
        self, sheet: Sheet, members: list[tuple[str, npt.NDArray[np.intp]]], ink: _Ink
    ) -> None:
        units = sum(len(columns) for _, columns in members)
        super().__init__(sheet, np.full((units, units), np.nan), members, 1.0, None, ink)

    def draw(self) -> None:
        self.sheet.palette = _graph_palette
        panel = self._panel()
        self._blocks()
        self._neurons(panel)
        self._headings()

    def _blocks(self) -> None:
        """Each group in columns of its own, filled from above in the order of the state."""
        pitch = (WIDTH - 2 * LEFT) / len(self.columns)
        tallest, widest = 1, 1
        for level, (_, rows) in enumerate(self.columns):
            across = -(-len(rows) // MOST_BELOW)
            tall = -(-len(rows) // across)
            tallest, widest = max(tallest, tall), max(widest, across)
            column, row = np.divmod(np.arange(len(rows)), tall)
            gap = min(32.0, (pitch - 16) / across)
            self.x[rows] = LEFT + pitch * (level + 0.5) + gap * (column - (across - 1) / 2)
            self.y[rows] = TOP - 14 - (TOP - BOTTOM - 28) * (row + 0.5) / max(tall, 2)
        self.size = min(20.0, 0.7 * (TOP - BOTTOM) / tallest, 0.8 * (pitch - 16) / widest)


class _Matrix:
    def __init__(
        self,
        sheet: Sheet,
        signed: Array,
        members: list[tuple[str, npt.NDArray[np.intp]]],
        limit: float,
        ink: _Ink | None,
    ) -> None:
        self.sheet, self.limit, self.ink = sheet, limit, ink
        units = signed.shape[1]
        features = len(signed) - units
        order = np.concatenate([columns for _, columns in members])
        rows = np.concatenate([np.arange(features), features + order])
        self.values = signed[np.ix_(rows, order)]
        self.darkness = None if ink is None else ink.darkness[order][None]
        self.targets = [(name, len(columns)) for name, columns in members]
        self.sources = ([(SENSORY, features)] if features else []) + self.targets

    def draw(self) -> None:
        from matplotlib import colormaps
        from matplotlib.collections import LineCollection

        sheet = self.sheet
        sheet.palette = _matrix_palette
        rows, columns = self.values.shape
        beside = [name for name, _ in self.sources] + [STRIP] * (self.darkness is not None)
        left = LEFT + max(map(sheet.width, beside)) + 10
        right = WIDTH - LEFT - 4
        bottom, top = BOTTOM + 18, TOP
        if self.darkness is not None:
            top -= STRIP_HEIGHT + 10
        panel = sheet.panel(
            left, bottom, right - left, top - bottom, xlim=(0, columns), ylim=(rows, 0)
        )
        panel.always("tick_params", left=False, bottom=False)
        block = self._image(panel, self.values, colormaps["PuOr_r"], -self.limit, self.limit)
        if self.darkness is not None:
            self._strip(left, right, self.darkness)
        # Between kinds of neurons.
        borders: list[list[tuple[int, int]]] = []
        height = (top - bottom) / rows
        wanted, at = [], 0
        for i, (_, count) in enumerate(self.sources):
            if i:
                borders.append([(0, at), (columns, at)])
            wanted.append(top - (at + count / 2) * height)
            at += count
        places = spread(wanted, LINE_HEIGHT - 2, bottom + 4, top - 4)
        for (name, _), y in zip(self.sources, places, strict=True):
            sheet.text(left - 8, y, name, ha="right", va="center_baseline")
        width, at = (right - left) / columns, 0
        names: list[tuple[float, Words]] = []
        for i, (name, count) in enumerate(self.targets):
            if i:
                borders.append([(at, 0), (at, rows)])
            words = [(name, INK), *([] if self.ink is None else self.ink.words(name))]
            names.append((left + (at + count / 2) * width, words))
            at += count
        _in_a_row(sheet, 38, names)
        panel.add(LineCollection(borders, colors=INK, linewidths=points(2), zorder=ABOVE + 0.2))
        axes = "target; rows are sources"
        if block != (1, 1):
            axes += f"; strongest of {block[0]} × {block[1]}"
        sheet.text((left + right) / 2, 9, axes, ha="center", color=GREY)
        _legend(sheet, int(np.isfinite(self.values).sum()), self.ink, "■")

    def _strip(self, left: float, right: float, darkness: Array) -> None:
        panel = self.sheet.panel(
            left, TOP - STRIP_HEIGHT, right - left, STRIP_HEIGHT,
            xlim=(0, darkness.shape[1]), ylim=(1, 0), spines=("left", "right", "top", "bottom"),
        )  # fmt: skip
        panel.always("tick_params", left=False, bottom=False)
        self._image(panel, darkness, _to_ink(), 0.0, 1.0)
        self.sheet.text(left - 8, TOP - STRIP_HEIGHT / 2, STRIP, ha="right", va="center_baseline")

    @staticmethod
    def _image(
        panel: Panel, all_values: Array, colors: Colormap, low: float, high: float
    ) -> tuple[int, int]:
        """Draw the cells; returns how many rows and columns share one."""
        from matplotlib.colors import Normalize

        from ._cells import Cells

        rows, columns = all_values.shape
        _, _, width, height = panel.box
        # Cells that are smaller are lost among the white ones.
        most_rows = rows if rows * 2 <= height else int(height / 3)
        most_columns = columns if columns * 2 <= width else int(width / 3)
        values, up, across = strongest(all_values, most_rows, most_columns)
        image = Cells(
            None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
            cmap=colors.with_extremes(bad="white"),
            norm=Normalize(low, high),
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
