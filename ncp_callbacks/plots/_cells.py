"""An image of few values; imports matplotlib, so it is imported where it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.image import AxesImage


class Cells(AxesImage):
    """An image whose colours are looked up for each cell and then repeated.

    What its base does, which enlarges the values and looks up a colour for each pixel, takes ten
    times as long.
    """

    def make_image(
        self, renderer: Any, magnification: float = 1.0, unsampled: bool = False
    ) -> tuple[Any, float, float, Any]:
        axes = self.axes
        if axes is None or unsampled or magnification != 1:
            image: tuple[Any, float, float, Any] = super().make_image(
                renderer, magnification, unsampled
            )
            return image
        box = axes.bbox
        left, right, bottom, top = self.get_extent()
        values: Any = np.ma.asarray(self.get_array())
        colors = np.ascontiguousarray(self.to_rgba(values, bytes=True)).view(np.uint32)[..., 0]
        rows, columns = colors.shape
        x, across = _nearest(box.x0, box.x1, axes.get_xlim(), left, right, columns)
        # Pixels are counted from below, rows from above.
        y, up = _nearest(box.y0, box.y1, axes.get_ylim(), top, bottom, rows)
        pixels = np.ascontiguousarray(colors[np.ix_(up, across)])
        return pixels.view(np.uint8).reshape(*pixels.shape, 4), x, y, None


def _nearest(
    start: float, stop: float, limits: tuple[float, float], first: float, last: float, count: int
) -> tuple[int, npt.NDArray[np.intp]]:
    """The first pixel between ``start`` and ``stop``, and the cell of each one from there on."""
    begin = int(np.floor(start))
    at = (np.arange(begin, int(np.ceil(stop))) + 0.5 - start) / (stop - start)
    share = (limits[0] + at * (limits[1] - limits[0]) - first) / (last - first)
    return begin, np.clip(np.floor(share * count), 0, count - 1).astype(np.intp)
