"""Figures of results, made to be read as small pictures in TensorBoard.

    from ncp_callbacks.plots import plot_feature_importance, to_png

    figure = plot_feature_importance(importance, limit=0.5, step=3000)
    Path("importance.png").write_bytes(to_png(figure))

Every function takes a result of :mod:`ncp_callbacks.analysis` or a plain array and returns a
``matplotlib.figure.Figure`` of 640 × 430 pixels with text of 16 points. ``pyplot`` and matplotlib's
global settings are neither used nor changed, so figures look the same everywhere and can be drawn
on any thread. :mod:`ncp_callbacks.plotting` has the shared parts.

Limits of axes and colours are the caller's, so that pictures of different steps and runs compare;
:func:`nice_limit` rounds them. Where no limit is given, it is that of the data.
"""

from typing import TYPE_CHECKING

from .._later import later
from ..plotting.limits import nice_limit
from ..plotting.png import to_png
from .backbone import plot_unit_activity
from .importance import plot_feature_importance
from .states import plot_state_space
from .time import plot_time_sensitivity

if TYPE_CHECKING:
    from .dynamics import plot_dynamics
    from .faithfulness import plot_faithfulness
    from .interactions import plot_interactions
    from .output_time import plot_output_time
    from .predictions import plot_prediction
    from .sanity import plot_sanity, plot_sanity_measures
    from .time_constants import plot_time_constants, plot_time_constants_over_time
    from .wiring import plot_wiring

__all__ = [
    "nice_limit",
    "plot_dynamics",
    "plot_faithfulness",
    "plot_feature_importance",
    "plot_interactions",
    "plot_output_time",
    "plot_prediction",
    "plot_sanity",
    "plot_sanity_measures",
    "plot_state_space",
    "plot_time_constants",
    "plot_time_constants_over_time",
    "plot_time_sensitivity",
    "plot_unit_activity",
    "plot_wiring",
    "to_png",
]

__getattr__ = later(
    __name__,
    {
        "plot_dynamics": ".dynamics",
        "plot_faithfulness": ".faithfulness",
        "plot_interactions": ".interactions",
        "plot_output_time": ".output_time",
        "plot_prediction": ".predictions",
        "plot_sanity": ".sanity",
        "plot_sanity_measures": ".sanity",
        "plot_time_constants": ".time_constants",
        "plot_time_constants_over_time": ".time_constants",
        "plot_wiring": ".wiring",
    },
)
