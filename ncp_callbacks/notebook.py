"""Let notebooks show results as pictures. Importing this registers the function that draws them."""

from __future__ import annotations

from .results import Pictured

__all__ = ["png_of"]


def png_of(result: Pictured, plot: str) -> bytes:
    """Return the picture that a plot function makes of a result.

    Args:
        result: The result to draw.
        plot: Name of the function in :mod:`ncp_callbacks.plots`.
    """
    from . import plots  # It imports matplotlib, which waits until something is shown.

    png: bytes = plots.to_png(getattr(plots, plot)(result))
    return png


Pictured.draw = staticmethod(png_of)
