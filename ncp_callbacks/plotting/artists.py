"""Make matplotlib's artists faster where a page needs less than they can do.

This module imports matplotlib, so that others import it only when they draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.transforms import Bbox, IdentityTransform

__all__ = ["CellImage", "PageAxes"]


class PageAxes(Axes):
    """Axes that measure artists only when something asks for the limits of the data.

    Matplotlib takes up to 30 ms to find the extremes of one filled step line. Axes that were made
    with ``xlim`` and ``ylim`` don't need them, unless autoscaling or a logarithmic scale does.

    Attributes:
        unmeasured: Calls of matplotlib's methods that widen the limits of the data, put off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.unmeasured: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._measuring = False
        super().__init__(*args, **kwargs)

    @property
    def dataLim(self) -> Bbox:
        """Return the limits of the data."""
        if self.unmeasured and not self._measuring:
            self._measuring, calls, self.unmeasured = True, self.unmeasured, []
            try:
                for name, args, kwargs in calls:
                    # Artists that were removed count no more.
                    if all(a.axes is self for a in args if isinstance(a, Artist)):
                        getattr(super(), name)(*args, **kwargs)
            finally:
                self._measuring = False
        return self._data_limits

    @dataLim.setter
    def dataLim(self, limits: Bbox) -> None:
        self._data_limits = limits

    def autoscale_view(self, *args: Any, **kwargs: Any) -> None:
        """Set the limits that follow the artists; without any, nothing is measured."""
        if self.get_autoscalex_on() or self.get_autoscaley_on():
            super().autoscale_view(*args, **kwargs)

    def update_datalim(self, *args: Any, **kwargs: Any) -> None:
        """Widen the limits of the data, now or when they are asked for."""
        self._widen("update_datalim", *args, **kwargs)

    def _update_line_limits(self, line: Any) -> None:
        self._widen("_update_line_limits", line)

    def _update_patch_limits(self, patch: Any) -> None:
        self._widen("_update_patch_limits", patch)

    def _update_collection_limits(self, collection: Any) -> None:
        self._widen("_update_collection_limits", collection)

    def _widen(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._measuring or self.get_autoscalex_on() or self.get_autoscaley_on():
            getattr(super(), name)(*args, **kwargs)
        else:
            self.unmeasured.append((name, args, kwargs))


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
