"""Write PNG files of few colours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["encode_png", "to_png"]

# Fewer colours are fine while less than this share of pixels changes by more than this of 255
# levels; at the edges of lines and letters nobody sees it.
MAX_CHANGED, VISIBLE = 0.002, 24
MAX_COLORS = 256
MANY_HUES = 2048  # Boxes of 6 bits; above, they are of 5 bits.


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG of 256 colours, which has a third of the bytes of a full one.

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

    Colours are sorted into boxes of 6 bits per channel, or 5 where there are many hues. The fullest
    boxes make the palette, and all others take the nearest colour of it.
    """
    from PIL import Image

    pixels = np.ascontiguousarray(rgba).view("<u4").ravel()
    # Most pixels are those of their left neighbours: runs are a tenth as many.
    begins = np.ones(len(pixels), bool)
    np.not_equal(pixels[1:], pixels[:-1], out=begins[1:])
    start = np.flatnonzero(begins)
    length, runs = np.diff(start, append=len(pixels)), pixels[start]
    for bits in (6, 5):
        low, most = 8 - bits, (1 << bits) - 1
        red, green, blue = (runs >> low + place & most for place in (0, 8, 16))
        box = red | green << bits | blue << 2 * bits
        count = np.bincount(box, length, minlength=1 << 3 * bits)
        used = np.flatnonzero(count > 0)
        if len(used) <= MANY_HUES:
            break
    # A box has the colour of its longest run, of flat areas rather than of edges.
    order = np.argsort(np.minimum(length, 0xFFFF).astype(np.uint16), kind="stable")
    color = np.zeros(len(count), "<u4")
    color[box[order]] = runs[order]
    colors = color[used].view(np.uint8).reshape(-1, 4)[:, :3]
    if (found := _nearest(colors, count[used])) is None:
        image = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    else:
        palette, nearest = found
        index = np.zeros(len(count), np.uint8)
        index[used] = nearest
        image = Image.fromarray(np.repeat(index[box], length).reshape(rgba.shape[:2]))
        image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    return file.getvalue()


def _nearest(
    colors: npt.NDArray[np.uint8], count: npt.NDArray[np.number[Any]]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]] | None:
    """Return a palette and the index in it of each colour; None if too much would change.

    Args:
        colors: ``(N, 3)`` colours, one for each box.
        count: ``(N,)``, how many pixels each stands for.
    """
    fullest = np.argsort(-count, kind="stable")
    palette = colors[fullest[:MAX_COLORS]]
    if len(colors) <= MAX_COLORS:
        return palette, np.argsort(fullest)
    if len(colors) > 4 * MANY_HUES:
        return None
    from scipy.spatial import cKDTree

    nearest = np.asarray(cKDTree(palette).query(colors)[1])
    change = np.abs(palette[nearest].astype(np.int16) - colors).max(axis=1)
    if count[change > VISIBLE].sum() >= MAX_CHANGED * count.sum():
        return None
    return palette, nearest
