"""PNG files of few colours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["encode_png", "to_png"]

# Fewer colours are fine while less than this share of pixels changes by more than this of 255
# levels; at the edges of lines and letters nobody sees it.
MAX_CHANGED, VISIBLE = 0.002, 24
MAX_COLORS = 256
# Above so many times this number, the palette is chosen in larger boxes, or there is none.
MANY_HUES, MANY = 8, 32


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 256 colours, a third of the bytes of one with all of them.

    Where more than a few pixels would visibly change (photographs, many hues), all are kept.

    Args:
        figure: Any ``matplotlib.figure.Figure``; it is drawn at its own size and resolution.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    canvas = FigureCanvasAgg(figure)
    try:
        canvas.draw()  # type: ignore[no-untyped-call]
        return encode_png(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    finally:
        figure.set_canvas(before)


def encode_png(rgba: npt.NDArray[np.uint8]) -> bytes:
    """Return ``(height, width, 4)`` opaque pixels as a PNG.

    Colours are sorted into boxes of 6 bits per channel. The fullest boxes make the palette, and
    all others take the nearest colour of it. With very many colours, such as those of a picture
    with many hues, boxes of 5 bits choose the palette, so that rare hues are in it too.
    """
    from PIL import Image

    pixels = np.ascontiguousarray(rgba).view("<u4").ravel()
    # Most pixels are those of their left neighbours: runs are a tenth as many.
    begins = np.ones(len(pixels), bool)
    np.not_equal(pixels[1:], pixels[:-1], out=begins[1:])
    start = np.flatnonzero(begins)
    length, runs = np.diff(start, append=len(pixels)), pixels[start]
    box = (runs >> 2 & 0x3F) | (runs >> 4 & 0xFC0) | (runs >> 6 & 0x3F000)
    count = np.bincount(box, length, minlength=1 << 18)
    used = np.flatnonzero(count > 0)
    # A box has the colour of its longest run, of flat areas rather than of edges.
    order = np.argsort(np.minimum(length, 0xFFFF).astype(np.uint16), kind="stable")
    color = np.zeros(1 << 18, "<u4")
    color[box[order]] = runs[order]
    colors = color[used].view(np.uint8).reshape(-1, 4)[:, :3]
    if (found := _nearest(colors, count[used])) is None:
        image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    else:
        palette, nearest = found
        index = np.zeros(1 << 18, np.uint8)
        index[used] = nearest
        image = Image.fromarray(np.repeat(index[box], length).reshape(rgba.shape[:2]))
        image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _nearest(
    colors: npt.NDArray[np.uint8], count: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]] | None:
    """Return a palette and the index in it of each colour; None if too much would change.

    Args:
        colors: ``(N, 3)`` colours, one for each box.
        count: ``(N,)``, how many pixels each stands for.
    """
    fullest = np.argsort(-count, kind="stable")
    if len(colors) <= MAX_COLORS:
        return colors[fullest], np.argsort(fullest)
    if len(colors) > MANY * MAX_COLORS:
        return None
    if len(colors) > MANY_HUES * MAX_COLORS:
        halves = colors >> 3
        larger = halves[:, 0] | halves[:, 1].astype(np.intp) << 5 | halves[:, 2].astype(np.intp) << 10
        total = np.bincount(larger, count)[larger]
        _, first = np.unique(larger[fullest], return_index=True)
        fullest = fullest[first]
        fullest = fullest[np.argsort(-total[fullest], kind="stable")]
    from scipy.spatial import cKDTree

    palette = colors[fullest[:MAX_COLORS]]
    nearest = np.asarray(cKDTree(palette).query(colors)[1])
    change = np.abs(palette[nearest].astype(np.int16) - colors).max(axis=1)
    if count[change > VISIBLE].sum() >= MAX_CHANGED * count.sum():
        return None
    return palette, nearest
