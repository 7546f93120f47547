"""Make matplotlib's artists faster where a page needs less than they can do.

This module imports matplotlib, so that others import it only when they draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.transforms import IdentityTransform

__all__ = ["CellImage", "PageAxes"]


class PageAxes(Axes):
    """Axes that measure artists only when limits depend on them.

    Matplotlib takes up to 30 ms to find the extremes of one filled step line. Axes that were made
    with ``xlim`` and ``ylim`` don't need them, unless autoscaling is switched on later.
    """

    _unmeasured = False

    def _update_line_limits(self, line: Any) -> None:
        if not self._skips():
            super()._update_line_limits(line)  # type: ignore[misc]

    def _update_patch_limits(self, patch: Any) -> None:
        if not self._skips():
            super()._update_patch_limits(patch)  # type: ignore[misc]

    def _update_collection_limits(self, collection: Any) -> None:
        if not self._skips():
            super()._update_collection_limits(collection)  # type: ignore[misc]

    def _skips(self) -> bool:
        skips = not (self.get_autoscalex_on() or self.get_autoscaley_on())
        self._unmeasured |= skips
        return skips

    def autoscale_view(self, *args: Any, **kwargs: Any) -> None:
        """Set limits that are not fixed to those of the artists, as matplotlib does."""
        if self._skips():
            return
        if self._unmeasured:
            self._unmeasured = False
            for line in self.lines:
                self._update_line_limits(line)
            for patch in self.patches:
                self._update_patch_limits(patch)
            for collection in self.collections:
                self._update_collection_limits(collection)
        super().autoscale_view(*args, **kwargs)


class CellImage(AxesImage):
    """An image of cells that are larger than pixels, in a tenth of the time.

    It finds the cell of each pixel, where matplotlib resamples the values and colours every pixel.
    """

    def make_image(
        self, renderer: Any, magnification: float = 1.0, unsampled: bool = False
    ) -> tuple[Any, float, float, Any]:
        """Return the pixels, their lower left corner, and a transformation, as matplotlib does."""
        axes = self.axes
        if unsampled or axes is None or not axes.transData.is_affine:
            return super().make_image(renderer, magnification, unsampled)
        left, right, bottom, top = self.get_extent()
        begin, stop = np.floor(axes.bbox.get_points() * magnification + 0.5).astype(int)
        rows = _cells_at(axes.get_ylim(), stop[1] - begin[1], top, bottom, self.get_size()[0])
        columns = _cells_at(axes.get_xlim(), stop[0] - begin[0], left, right, self.get_size()[1])
        colors = self.to_rgba(np.ma.asarray(self.get_array()), self.get_alpha(), bytes=True)
        # Around the cells nothing is drawn.
        padded = np.zeros((colors.shape[0] + 2, colors.shape[1] + 2), np.uint32)
        padded[1:-1, 1:-1] = colors.view(np.uint32)[..., 0]
        pixels = padded[:, columns][rows]
        x, y = begin / magnification
        return pixels.view(np.uint8).reshape(*pixels.shape, 4), x, y, IdentityTransform()


def _cells_at(limits: Any, pixels: int, first: float, last: float, count: int) -> Any:
    """Return the cells at the middles of pixels: 1 to ``count``, 0 before and ``count`` + 1 after.

    Args:
        limits: Limits of the axis.
        pixels: Its length in pixels.
        first: Where the first cell begins.
        last: Where the last cell ends.
        count: Number of cells.
    """
    low, high = limits
    middles = np.linspace(low, high, 2 * pixels + 1)[1::2]
    cells = np.floor((middles - first) / (last - first) * count)
    return np.clip(cells, -1, count).astype(np.intp) + 1
