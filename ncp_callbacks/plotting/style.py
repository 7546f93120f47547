"""Define size, colours, fonts and line styles of all pictures.

Every style is passed to matplotlib explicitly. The global settings are neither read nor changed,
because a context that changes them would also change them for other threads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

# Twice the height of a TensorBoard card (215), so that it is scaled by exactly 1/2 or 1: cards are
# scaled without smoothing, and any other factor cuts strokes off letters.
WIDTH, HEIGHT, DPI = 640, 430, 100
LEFT, RIGHT = 8, WIDTH - 8  # Where text begins and ends, in pixels.
TITLE_Y, SECOND_Y, LABEL_Y = 404, 376, 9  # Baselines of the rows of text above and below the axes.
BOTTOM, TOP = 62, 362  # Usual ends of the axes.
LINE_HEIGHT = 25  # Pixels between baselines.
FONT, FONT_SIZE = "DejaVu Sans", 16  # The font comes with matplotlib.

INK, GREY, LIGHT, MISSING = "#1a1a1a", "#666666", "#d9d9d9", "#bdbdbd"
# Okabe and Ito's palette is safe for any colour vision.
BLUE, VERMILION, ORANGE, SKY = "#0072B2", "#D55E00", "#E69F00", "#56B4E9"
GREEN, PURPLE = "#009E73", "#CC79A7"
PALE = "#A3CBE3"  # A pale blue, for less certain values.
# Colour maps of signed and of unsigned values, both safe for the colour-blind.
SIGNED, UNSIGNED = "PuOr_r", "cividis"
RAISES, LOWERS = "#c96d0d", "#5c348e"  # Orange and purple of the signed map.
DOTTED, DASHED = (0, (1, 2)), (0, (4, 2))


def points(pixels: float) -> float:
    """Return a length in points, in which matplotlib measures lines."""
    return pixels * 72 / DPI


def line(color: Any, pixels: float, dashes: Any = "-", marker: str = "") -> dict[str, Any]:
    """Return the style of a line that is so many pixels wide."""
    return {
        "color": color,
        "linewidth": points(pixels),
        "linestyle": dashes,
        "marker": marker,
        "markersize": points(9),
        "markerfacecolor": color,
        "markeredgecolor": color,
        "markeredgewidth": points(1.4),
        "solid_capstyle": "round",
        "solid_joinstyle": "round",
        "dash_capstyle": "butt",
        "dash_joinstyle": "round",
    }


def fill(color: Any, alpha: float = 1.0) -> dict[str, Any]:
    """Return the style of a filled area without an outline."""
    return {"facecolor": color, "edgecolor": "none", "linewidth": 0, "alpha": alpha}


def marker(shape: str, color: Any, *, pixels: float = 13, edge: float = 2) -> dict[str, Any]:
    """Return the style of markers without a line between them."""
    return {
        "linestyle": "none",
        "marker": shape,
        "markersize": points(pixels * (15 / 13 if shape in "^vP*" else 1)),
        "markerfacecolor": color,
        "markeredgecolor": INK if edge else "none",
        "markeredgewidth": points(edge),
    }


def text_style() -> dict[str, Any]:
    """Return the style of all text.

    Names are the user's: a "$" in them begins no formula.
    """
    return {"fontproperties": _font(), "parse_math": False, "usetex": False}


@cache
def _font() -> FontProperties:
    from matplotlib.font_manager import FontProperties

    # Matplotlib copies it for each text.
    return FontProperties(
        family=FONT, style="normal", variant="normal", weight="normal", stretch="normal",
        size=FONT_SIZE,
    )  # fmt: skip
