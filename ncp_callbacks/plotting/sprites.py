"""Keep the pixels of texts, so that equal texts are drawn only once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Sprites"]

WHITE = 0xFFFFFFFF


class _Sprite(NamedTuple):
    """Hold pixels of a text, and where they are from its place: columns, and rows downwards."""

    across: int
    down: int
    pixels: npt.NDArray[np.uint32]


class Sprites:
    """Draw texts by copying the pixels of equal texts drawn before.

    Matplotlib takes 0.1 ms for each letter. Texts at whole pixels of a white page have equal pixels
    everywhere, so that copying them gives what drawing them gives, exactly. A text over anything
    else is drawn by matplotlib.

    Args:
        max_bytes: Pixels to keep. Beyond, those of the texts that were not drawn for longest are
            dropped.
    """

    def __init__(self, max_bytes: int = 4 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._sprites: OrderedDict[Any, _Sprite] = OrderedDict()

    def draw(self, text: Any, x: int, y: int, style: Any, reach: int, renderer: Any) -> None:
        """Draw a text.

        Args:
            text: The artist.
            x: Its place from the left of the page, in pixels.
            y: Its place from the lower end of the page, in pixels.
            style: All that its pixels depend on but its place.
            reach: Pixels from its place beyond which it has none, in each direction.
            renderer: Renderer of the page.
        """
        page = np.asarray(renderer.buffer_rgba()).view("<u4")[..., 0]
        height, width = page.shape
        # Matplotlib may round halves to even numbers, so odd places are kept apart.
        key = (x % 2, y % 2, style)
        sprite = self._sprites.get(key)
        if sprite is not None:
            left, top = x + sprite.across, height - y + sprite.down
            rows, columns = sprite.pixels.shape
            if left >= 0 and top >= 0 and left + columns <= width and top + rows <= height:
                under = page[top : top + rows, left : left + columns]
                if (under == WHITE).all():
                    under[...] = sprite.pixels
                    self._sprites.move_to_end(key)
                    return
        left, top = max(0, x - reach), max(0, height - y - reach)
        region = page[top : height - y + reach, left : x + reach]
        before = region.copy()
        text.draw(renderer)
        ink = region != before
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if sprite is None and len(rows) and not _on_edge(ink):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            if (before[box] == WHITE).all():
                across, down = left + columns[0] - x, top + rows[0] - (height - y)
                self._keep(key, _Sprite(across, down, region[box].copy()))

    def _keep(self, key: Any, sprite: _Sprite) -> None:
        self._sprites[key] = sprite
        self._bytes += sprite.pixels.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._sprites.popitem(last=False)[1].pixels.nbytes


def _on_edge(ink: npt.NDArray[np.bool_]) -> bool:
    """Return whether there is ink at the edges, so that there may be more beyond."""
    return bool(ink[[0, -1]].any() or ink[:, [0, -1]].any())
