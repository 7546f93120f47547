"""Reference CfC and LTC networks in MLX, with elapsed time per sequence and per step.

::

    from ncp_callbacks.models import LTC, CfC

    model = CfC(input_size=4, units_or_wiring=32)
    outputs, state = model(x, time_delta)  # (B, T, 4), (B, T) -> (B, T, 32), (B, 32)

Both call ``model.cell`` once per time step, which is where observers find the hidden state.
"""

from ncp_callbacks.models.cfc import CfC, CfCCell, LeCunTanh, WiredCfCCell
from ncp_callbacks.models.ltc import LTC, LTCCell
from ncp_callbacks.models.wiring import Wiring

__all__ = ["LTC", "CfC", "CfCCell", "LTCCell", "LeCunTanh", "WiredCfCCell", "Wiring"]
