"""Let a page lie on axes of somebody's figure, scaled to their size.

This module imports matplotlib, so that others import it only when they draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from .style import DPI, HEIGHT, WIDTH, points

__all__ = ["checked_axes", "figure_of", "scale"]


def checked_axes(ax: Any) -> Axes | None:
    """Return the axes that a plot function was passed, or None.

    Raises:
        TypeError: ``ax`` is something else.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(
            f"ax is a {type(ax).__name__}: pass matplotlib's axes, one of those that "
            "plt.subplots() returns, or None for a figure of its own"
        )
    return ax


def figure_of(host: Axes) -> Figure:
    """Return the figure of axes, also where they are in a part of it."""
    figure: Any = host.figure
    return figure.figure  # type: ignore[no-any-return]


def scale(host: Axes, artists: Iterable[Artist]) -> None:
    """Scale texts, lines and markers of a page as its axes were scaled.

    Args:
        host: The axes that the page lies on.
        artists: What was drawn on them, for a page of the usual size.
    """
    dpi = figure_of(host).dpi
    factor = min(host.bbox.width / dpi * DPI / WIDTH, host.bbox.height / dpi * DPI / HEIGHT)
    for artist in dict.fromkeys(part for one in artists for part in one.findobj()):
        if isinstance(artist, Axes):
            artist.tick_params(pad=points(5) * factor)
        elif isinstance(artist, Text):
            artist.set_fontsize(float(artist.get_fontsize()) * factor)
        elif isinstance(artist, Line2D):
            artist.set_linewidth(artist.get_linewidth() * factor)
            artist.set_markersize(artist.get_markersize() * factor)
            artist.set_markeredgewidth(artist.get_markeredgewidth() * factor)
        elif isinstance(artist, Patch):
            artist.set_linewidth(artist.get_linewidth() * factor)
        elif isinstance(artist, Collection):
            artist.set_linewidth([width * factor for width in np.ravel(artist.get_linewidth())])
            if isinstance(artist, PathCollection):
                artist.set_sizes(artist.get_sizes() * factor**2)
