"""Draw the pictures of many tags again and again, and keep their unchanged parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .page import FrameChangedError, Page
from .png import encode_png, to_png
from .sprites import Sprites

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Redrawer"]


class Redrawer:
    """Draw the pictures of many tags on one thread, each on the page of the last one.

    It keeps the page of the last picture of each tag and draws only what changed over it, as
    matplotlib's guide on faster rendering by blitting describes it. The pixels of texts are kept
    for all pages. Plot functions that were not made by :func:`~.page.redrawable` are drawn afresh.

    Args:
        max_pages: Number of pages to keep, about 2 MB each. Beyond, the pages of the tags that
            were not drawn for longest are dropped.
    """

    def __init__(self, max_pages: int = 32) -> None:
        self._max_pages = max_pages
        self._sprites = Sprites()
        self._pages: OrderedDict[str, tuple[Callable[..., Figure], Page]] = OrderedDict()

    def png(
        self, tag: str, plot: Callable[..., Figure], data: Any, options: Mapping[str, Any]
    ) -> bytes:
        """Return ``plot(data, **options)`` as a PNG, the next picture of this tag.

        Args:
            tag: Tag of the picture.
            plot: Plot function.
            data: What it draws.
            options: Its other arguments.

        Raises:
            Exception: What the plot function raises.
        """
        draw = getattr(plot, "draw_on_page", None)
        if draw is None:
            return to_png(plot(data, **options))
        # The page is kept only if all goes well: an error would leave artists on it.
        last, page = self._pages.pop(tag, (None, None))
        if page is None or last is not plot:
            page = Page(self._sprites)
        try:
            page.clear()
            draw(page, data, **options)
            page.finish()
        except FrameChangedError:
            page = Page(self._sprites)
            draw(page, data, **options)
            page.finish()
        png = encode_png(page.pixels())
        if page.keepable:
            self._pages[tag] = plot, page
        while len(self._pages) > self._max_pages:
            self._pages.popitem(last=False)
        return png
