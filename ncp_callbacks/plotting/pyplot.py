"""Make the figures of a script's own calls known to pyplot, so that ``plt.show()`` shows them."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MAX_FIGURES", "forget", "new_figure"]

MAX_FIGURES = 10
"""Number of figures that pyplot keeps of ours until they are closed; it warns of more than 20."""

_PACKAGE = __name__.partition(".")[0]  # It marks our figures, too.


def new_figure(caller: FrameType | None, **properties: Any) -> Figure:
    """Return a figure, which pyplot knows where the script that asked for it uses pyplot.

    Where this package, a callback of a monitor or another thread draws, pyplot does not know it.

    Args:
        caller: Who called the plot function.
        properties: Those of the figure.
    """
    from matplotlib.figure import Figure

    plt: Any = sys.modules.get("matplotlib.pyplot")
    if plt is None or not _is_script(caller):
        return Figure(**properties)
    own = [figure for figure in map(plt.figure, plt.get_fignums()) if figure.get_gid() == _PACKAGE]
    for figure in own[: max(0, len(own) + 1 - MAX_FIGURES)]:
        plt.close(figure)
    made: Figure = plt.figure(**properties)
    made.set_gid(_PACKAGE)
    if "inline" in plt.get_backend():
        # A notebook would show the value of a cell, and then all open figures.
        vars(made)["_ipython_display_"] = functools.partial(_show_once, made)
    return made


def forget(figure: Figure) -> None:
    """Let pyplot not know a figure any more that couldn't be drawn."""
    plt: Any = sys.modules.get("matplotlib.pyplot")
    if plt is not None:
        plt.close(figure)


def _is_script(caller: FrameType | None) -> bool:
    """Tell if nobody of this package is among the callers."""
    if caller is None or threading.current_thread() is not threading.main_thread():
        return False
    while caller is not None:
        if str(caller.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
            return False
        caller = caller.f_back
    return True


def _show_once(figure: Figure) -> None:
    from .png import to_png

    plt: Any = sys.modules["matplotlib.pyplot"]
    plt.close(figure)
    shown = importlib.import_module("IPython.display")
    shown.display(shown.Image(data=to_png(figure)))
