"""Draw neurons and the synapses between them, as a layered graph or as a matrix.

Synapses are shown by width and hue, and neurons are darker the larger their attribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import heat_map, strongest
from ...plotting.style import (
    GREY,
    INK,
    LABEL_Y,
    LEFT,
    LINE_HEIGHT,
    LOWERS,
    RAISES,
    RIGHT,
    SECOND_Y,
    SIGNED,
    WIDTH,
    fill,
    line,
    marker,
    points,
)
from ...plotting.text import number, short_names, space_width, spread, text_width
from ...results import Indices
from .analysis import SENSORY, SynapticFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_wiring"]

Array = npt.NDArray[np.float64]
Words = Sequence[tuple[str, str]]
Members = Mapping[str, Indices]

BOTTOM, TOP = 46, 356
MAX_NEURONS, MAX_SYNAPSES = 60, 240  # With more of them it becomes a matrix.
MAX_NAMES = 12  # With more inputs, they have no names.
MAX_NAME_WIDTH = 150  # In pixels.
WIDEST, THINNEST = 14.0, 1.0  # Pixels of a synapse.
MAX_BEND = 80.0  # Pixels by which a synapse is bent.
GAP = 10  # Pixels between texts in a row.
MAX_BELOW = 20  # Neurons without synapses in a column, one below the other.
CORNERS = 24  # Corners of the polygon that is drawn as a circle.
STRIP, STRIP_HEIGHT = "attribution", 14


@redrawable
def plot_wiring(
    page: Page,
    flow: SynapticFlow | None,
    groups: Sequence[tuple[str, npt.ArrayLike]],
    *,
    input_names: Sequence[str] | None = None,
    limit: float | None = None,
    attribution: npt.ArrayLike | None = None,
    attribution_limit: float | None = None,
    attribution_cis: Mapping[str, tuple[float, float]] | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the synapses of an LTC: which neurons listen to which, and are raised or lowered.

    A synapse is as wide as its share of the target's conductance; orange ones raise the target on
    average, purple ones lower it. The columns are the inputs and the groups in their order.
    Synapses within a group, and those that go back, are bent. Above 60 neurons or 240 synapses a
    matrix takes the place of the graph: rows are sources, columns are targets.

    The darker a neuron, the larger its share in the attribution. The sum of a group's shares stands
    at its name, with its 95 % CI where there is one. A matrix has a row of its own for the
    attribution. Inputs have no attribution here, because it is to states.

    Args:
        page: The page to draw on.
        flow: The synapses; None for a cell without any, whose neurons are drawn alone.
        groups: ``(name, columns of the state)`` of each group of neurons.
        input_names: Names of the inputs.
        limit: The share that is drawn widest, or in full colour.
        attribution: ``(H,)``, share of each neuron in the attribution of the target.
        attribution_limit: The share that is drawn darkest.
        attribution_cis: For groups, the ends of the 95 % CI of the share of all neurons.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For names, groups or attribution that don't fit, or a limit that is not above 0.
    """
    members = {name: np.asarray(columns, np.intp) for name, columns in groups}
    members = {name: columns for name, columns in members.items() if len(columns)}
    units = sum(map(len, members.values())) if flow is None else len(flow.leak_share)
    if sorted(np.concatenate(list(members.values())).tolist()) != list(range(units)):
        raise ValueError(f"groups: pass each of the {units} neurons once")
    ink = None
    if attribution is not None:
        share = np.asarray(attribution, np.float64)
        if share.shape != (units,):
            raise ValueError(
                f"attribution has shape {share.shape}: pass a share for each of the {units} neurons"
            )
        darkest = checked_limit(attribution_limit, share)
        ink = _Ink(share, darkest, members, attribution_cis or {})
    if flow is None:
        if ink is None:
            raise ValueError("there is nothing to draw: pass flow, attribution or both")
        page.title("attribution by neuron", step)
        end = _darkest(page, LEFT, ink, "●")
        page.words(end + 14, SECOND_Y, ("no synapses", GREY))
        _draw_neurons(page, members, ink)
        return
    share = np.asarray(flow.share, np.float64)
    features = len(share) - units
    if input_names is not None and len(input_names) != features:
        raise ValueError(f"{len(input_names)} input_names for {features} inputs: pass one for each")
    limit = checked_limit(limit, share)
    signed = share * np.where(np.asarray(flow.current) < 0, -1.0, 1.0)
    signed = np.where(flow.connected, signed, np.nan)
    count = int(flow.connected.sum())
    matrix = units > MAX_NEURONS or count > MAX_SYNAPSES
    shown = "colour" if matrix else "width"
    page.title(f"{shown}: share of conductance, up to {number(100 * limit)}%", step)
    end = page.legend((RAISES, "raises"), (LOWERS, "lowers"))
    end = page.words(end + space_width(), SECOND_Y, (f"{count:,} synapses", GREY))
    if ink is not None:
        _darkest(page, end + 14, ink, "■" if matrix else "●")
    if matrix:
        _draw_matrix(page, signed, members, limit, ink)
    else:
        names = list(input_names or []) if features <= MAX_NAMES else []
        _draw_graph(page, signed, members, limit, names, ink)


@dataclass(frozen=True, eq=False)
class _Ink:
    """Hold shares of neurons in the attribution, and how dark the largest is."""

    share: Array
    limit: float
    members: Members
    cis: Mapping[str, tuple[float, float]]

    @property
    def darkness(self) -> Array:
        return np.clip(np.nan_to_num(self.share) / self.limit, 0.0, 1.0)

    def words(self, group: str) -> list[tuple[str, str]]:
        """Return the share of a group, and its CI; a single group has none."""
        share = float(self.share[self.members[group]].sum())
        if len(self.members) < 2 or not np.isfinite(share):
            return []
        low, high = self.cis.get(group, (np.nan, np.nan))
        known = [(f"{100 * low:.0f}–{100 * high:.0f}", GREY)] if np.isfinite(low + high) else []
        return [(f"{share:.0%}", INK), *known]


def _to_ink() -> Any:
    """Return a colour map from white for no attribution to ink for the most."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ink", ["white", INK])


def _darkest(page: Page, x: float, ink: _Ink, mark: str) -> float:
    most = f"{number(100 * ink.limit)}% of attribution"
    return page.words(x, SECOND_Y, (mark, INK), (most, INK))


def _in_a_row(page: Page, y: float, texts: Sequence[tuple[float, Words]]) -> None:
    """Write words centred at their places, aside where they would touch.

    The last words of each are skipped where there is no room.
    """
    words = [list(each) for _, each in texts]

    def widths() -> list[float]:
        space = space_width()
        return [sum(text_width(t) + space for t, _ in each) - space for each in words]

    while sum(widths()) + GAP * (len(words) - 1) > RIGHT - LEFT:
        longest = max(map(len, words))
        if longest == 1:
            break
        words = [each[: longest - 1] for each in words]
    begin, taken = [], float(LEFT)
    for (middle, _), width in zip(texts, widths(), strict=True):
        begin.append(max(taken, middle - width / 2))
        taken = begin[-1] + width + GAP
    end = float(RIGHT)
    for i, width in reversed(list(enumerate(widths()))):
        begin[i] = min(begin[i], end - width)
        end = begin[i] - GAP
    for x, each in zip(begin, words, strict=True):
        page.words(x, y, *each)


# ---- graph


def _draw_graph(
    page: Page, signed: Array, members: Members, limit: float, names: list[str], ink: _Ink | None
) -> None:
    features = len(signed) - signed.shape[1]
    # Rows of `signed`, by column of the picture.
    columns = {SENSORY: np.arange(features)} if features else {}
    columns |= {name: features + rows for name, rows in members.items()}
    short = short_names(names, MAX_NAME_WIDTH)
    left = LEFT + max(map(text_width, short), default=0.0)
    last = list(columns.values())[-1]
    bent = bool(np.isfinite(signed[np.ix_(last, last - features)]).any())
    right = RIGHT - (0.75 * MAX_BEND + 8 if bent else 34)
    xy, level = _layers(signed, columns, left + 16, right)
    axes = _paper(page, left + 4)
    _draw_synapses(axes, signed, xy, level, limit)
    tallest = max(map(len, columns.values()))
    _draw_dots(axes, xy, features, min(13.0, 0.7 * (TOP - BOTTOM) / tallest), ink)
    for name, y in zip(short, xy[:features, 1], strict=False):
        page.text(left, y, name, ha="right", va="center_baseline")
    _headings(page, columns, xy, ink)


def _paper(page: Page, left: float) -> Axes:
    """Return axes whose unit is pixels of the page."""
    return page.axes(
        left, BOTTOM, WIDTH, TOP, xlim=(left, WIDTH), ylim=(BOTTOM, TOP), spines=(), ticks=""
    )


def _layers(signed: Array, columns: Members, left: float, right: float) -> tuple[Array, Indices]:
    """Return the places of neurons, each near those that it listens to, and their columns."""
    features = len(signed) - signed.shape[1]
    xy, level = np.zeros((len(signed), 2)), np.zeros(len(signed), np.intp)
    placed = np.zeros(len(signed), bool)
    middle = (BOTTOM + TOP) / 2
    for number_, rows in enumerate(columns.values()):
        order = rows
        if number_:
            weight = np.nan_to_num(np.abs(signed[:, rows - features]))
            weight = (weight > 0) * placed[:, None]
            total = weight.sum(axis=0)
            near = np.where(total > 0, xy[:, 1] @ weight / np.maximum(total, 1), middle)
            order = rows[np.argsort(-near, kind="stable")]
        count = len(rows)
        gap = (TOP - BOTTOM - 28) / max(count, 2)
        xy[rows, 0] = left + (right - left) * number_ / max(1, len(columns) - 1)
        xy[order, 1] = TOP - 14 - gap * (np.arange(count) + (0.5 if count > 1 else 1.0))
        level[rows], placed[rows] = number_, True
    return xy, level


def _draw_synapses(axes: Axes, signed: Array, xy: Array, level: Indices, limit: float) -> None:
    from matplotlib.collections import PathCollection

    sources, targets = np.nonzero(np.isfinite(signed))
    sizes = signed[sources, targets]
    # Wide ones last, so that thin ones don't hide them.
    order = np.argsort(np.abs(sizes), kind="stable")
    sources, targets, sizes = sources[order], targets[order], sizes[order]
    features = len(signed) - signed.shape[1]
    paths = [_route(xy, level, int(a), int(b) + features)
             for a, b in zip(sources, targets, strict=True)]  # fmt: skip
    widths = np.maximum(THINNEST, WIDEST * np.minimum(1.0, np.abs(sizes) / limit))
    lines = PathCollection(
        paths, facecolors="none", edgecolors=[RAISES if s >= 0 else LOWERS for s in sizes],
        linewidths=[points(w) for w in widths], linestyles="solid", capstyle="butt",
        joinstyle="round", zorder=2,
    )  # fmt: skip
    axes.add_collection(lines, autolim=False)


def _route(xy: Array, level: Indices, a: int, b: int) -> Any:
    """Return the path of the line from one neuron to another."""
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = xy[a], xy[b]
    if level[b] > level[a]:
        return Path([(x0, y0), (x1, y1)])
    if a == b:
        away = 26.0
        ends = [(x0, y0), (x0 + away, y0 + away), (x0 + away, y0 - away), (x0, y0)]
    else:
        # To the right of the column, by more the longer the way.
        away = 14 + 0.32 * abs(y1 - y0) + (0.3 * abs(x1 - x0) if x0 != x1 else 0)
        # A curve goes three quarters of the way to what bends it.
        away = min(away, MAX_BEND)
        ends = [(x0, y0), (x0 + away, y0), (x1 + away, y1), (x1, y1)]
    return Path(ends, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def _draw_dots(axes: Axes, xy: Array, features: int, size: float, ink: _Ink | None) -> None:
    """Draw inputs as squares and neurons as circles, as dark as their attribution."""
    from matplotlib.collections import PolyCollection

    if ink is not None:
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        # Up to the middle of the outline.
        circle = size / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        style = fill("white") | {"facecolor": _to_ink()(ink.darkness)}
        discs = PolyCollection(list(xy[features:, None] + circle), zorder=2.9, **style)
        axes.add_collection(discs, autolim=False)
    for shape, rows, color in (
        ("s", xy[:features], "white"), ("o", xy[features:], "white" if ink is None else "none")
    ):  # fmt: skip
        style = marker(shape, color, pixels=size, edge=min(2.0, size / 4))
        axes.plot(rows[:, 0], rows[:, 1], zorder=3, **style)


def _headings(page: Page, columns: Members, xy: Array, ink: _Ink | None) -> None:
    """Write the name of each column below it, and its share in the attribution between."""
    names: list[tuple[float, Words]] = []
    shares: list[tuple[float, Words]] = []
    for name, rows in columns.items():
        middle = float(xy[rows, 0].mean())
        names.append((middle, [(f"{len(rows)} {name}", GREY if name == SENSORY else INK)]))
        if ink is not None and name != SENSORY:
            shares.append((middle, ink.words(name)))
    _in_a_row(page, LABEL_Y, names)
    _in_a_row(page, 30, [each for each in shares if each[1]])


def _draw_neurons(page: Page, members: Members, ink: _Ink) -> None:
    """Draw neurons of a cell without synapses, each group in columns of its own."""
    xy = np.zeros((len(ink.share), 2))
    pitch = (RIGHT - LEFT) / len(members)
    tallest, widest = 1, 1
    for place, rows in enumerate(members.values()):
        across = -(-len(rows) // MAX_BELOW)
        tall = -(-len(rows) // across)
        tallest, widest = max(tallest, tall), max(widest, across)
        column, row = np.divmod(np.arange(len(rows)), tall)
        gap = min(32.0, (pitch - 16) / across)
        xy[rows, 0] = LEFT + pitch * (place + 0.5) + gap * (column - (across - 1) / 2)
        xy[rows, 1] = TOP - 14 - (TOP - BOTTOM - 28) * (row + 0.5) / max(tall, 2)
    size = min(20.0, 0.7 * (TOP - BOTTOM) / tallest, 0.8 * (pitch - 16) / widest)
    _draw_dots(_paper(page, 0.0), xy, 0, size, ink)
    _headings(page, members, xy, ink)


# ---- matrix


def _draw_matrix(
    page: Page, signed: Array, members: Members, limit: float, ink: _Ink | None
) -> None:
    features = len(signed) - signed.shape[1]
    order = np.concatenate(list(members.values()))
    values = signed[np.ix_(np.concatenate([np.arange(features), features + order]), order)]
    rows, columns = values.shape
    targets = {name: len(each) for name, each in members.items()}
    sources = ({SENSORY: features} if features else {}) | targets
    left = LEFT + max(map(text_width, [*sources, *([] if ink is None else [STRIP])])) + 10
    right, bottom = RIGHT - 4, BOTTOM + 18
    top = TOP if ink is None else TOP - STRIP_HEIGHT - 10
    axes = page.axes(left, bottom, right, top, xlim=(0, columns), ylim=(rows, 0), ticks="")
    block = _draw_cells(axes, values, SIGNED, -limit, limit)
    if ink is not None:
        strip = page.axes(
            left, TOP - STRIP_HEIGHT, right, TOP, xlim=(0, columns), ylim=(1, 0), ticks="",
            spines=("left", "right", "top", "bottom"),
        )  # fmt: skip
        _draw_cells(strip, ink.darkness[order][None], _to_ink(), 0.0, 1.0)
        page.text(left - 8, TOP - STRIP_HEIGHT / 2, STRIP, ha="right", va="center_baseline")
    height, at, wanted = (top - bottom) / rows, 0, []
    for count in sources.values():
        if at:
            axes.axhline(at, **line(INK, 2))
        wanted.append(top - (at + count / 2) * height)
        at += count
    places = spread(wanted, LINE_HEIGHT - 2, bottom + 4, top - 4)
    for name, y in zip(sources, places, strict=True):
        page.text(left - 8, y, name, ha="right", va="center_baseline")
    width, at = (right - left) / columns, 0
    names: list[tuple[float, Words]] = []
    for name, count in targets.items():
        if at:
            axes.axvline(at, **line(INK, 2))
        words = [(name, INK), *([] if ink is None else ink.words(name))]
        names.append((left + (at + count / 2) * width, words))
        at += count
    _in_a_row(page, 38, names)
    label = "target; rows are sources"
    if block != (1, 1):
        label += f"; strongest of {block[0]} × {block[1]}"
    page.text((left + right) / 2, LABEL_Y, label, ha="center", color=GREY)


def _draw_cells(axes: Axes, values: Array, cmap: Any, low: float, high: float) -> tuple[int, int]:
    """Draw cells, and return how many rows and columns share one."""
    rows, columns = values.shape
    box = axes.bbox
    # Smaller cells would be lost among the white ones.
    max_rows = rows if rows * 2 <= box.height else int(box.height / 3)
    max_columns = columns if columns * 2 <= box.width else int(box.width / 3)
    cells, up, across = strongest(values, max_rows, max_columns)
    extent = (0, cells.shape[1] * across, cells.shape[0] * up, 0)
    heat_map(axes, cells, low, high, cmap=cmap, bad="white", extent=extent)
    return up, across
