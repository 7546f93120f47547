"""Keep the pixels of texts, so that equal texts are drawn only once."""

from __future__ import annotations

import math
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

    def draw(self, text: Any, x: int, y: int, look: Any, renderer: Any) -> None:
        """Draw a text.

        Args:
            text: The artist.
            x: Its place from the left of the page, in pixels.
            y: Its place from the lower end of the page, in pixels.
            look: All that its pixels depend on but its place.
            renderer: Renderer of the page.
        """
        page = np.asarray(renderer.buffer_rgba()).view("<u4")[..., 0]
        height, width = page.shape
        # Matplotlib may round halves to even numbers, so odd places are kept apart.
        key = (x % 2, y % 2, look)
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
        box = text.get_window_extent(renderer)
        left, top = math.floor(box.x0) - 2, height - math.ceil(box.y1) - 2
        right, bottom = math.ceil(box.x1) + 2, height - math.floor(box.y0) + 2
        whole = left >= 0 and top >= 0 and right <= width and bottom <= height
        under = page[max(0, top) : bottom, max(0, left) : right]
        alone = sprite is None and whole and bool((under == WHITE).all())
        text.draw(renderer)
        if alone:
            ink = under != WHITE
            rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
            edge = ink[[0, -1]].any() or ink[:, [0, -1]].any()
            if len(rows) and not edge:
                pixels = under[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
                self._keep(
                    key, _Sprite(left + columns[0] - x, top + rows[0] - (height - y), pixels)
                )

    def _keep(self, key: Any, sprite: _Sprite) -> None:
        self._sprites[key] = sprite
        self._bytes += sprite.pixels.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._sprites.popitem(last=False)[1].pixels.nbytes
