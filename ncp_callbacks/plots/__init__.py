"""Draw results as figures that can be read as small pictures in TensorBoard.

    from ncp_callbacks.plots import plot_feature_importance, to_png

    figure = plot_feature_importance(importance, limit=0.5, step=3000)
    Path("importance.png").write_bytes(to_png(figure))

Every function takes a result of :mod:`ncp_callbacks.analysis` or a plain array and returns a
``matplotlib.figure.Figure`` of 640 × 430 pixels with text of 16 points. matplotlib's global
settings are neither used nor changed, so figures do not depend on the user's style and can be drawn
on any thread. In a script that has imported ``pyplot``, ``plt.show()`` shows those of the main
thread; of figures that are not closed it keeps the last ten.

The caller sets the limits of axes and colours, so that pictures of different steps and runs can be
compared; :func:`nice_limit` rounds them. Without a limit, the data's own is used.
"""

from .._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
