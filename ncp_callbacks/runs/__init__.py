"""Logged runs, read back and compared, without a model.

    from ncp_callbacks.runs import compare_runs, read_run

    result = compare_runs({"cfc": "runs/cfc-s*", "ltc": "runs/ltc-s*"})
    for row in result.scalars:
        print(row.tag, row.changes[0].delta, row.changes[0].ci)

On the command line: ``ncp-callbacks compare RUN RUN``. Nothing here needs MLX.
"""

from .compare import compare_runs
from .comparison import (
    Change,
    Comparison,
    Curve,
    Measure,
    RunInfo,
    ScalarRow,
    Side,
    SideValue,
)
from .errors import RunsError
from .reader import Band, Binned, Image, Run, Scalars, read_run

__all__ = [
    "Band",
    "Binned",
    "Change",
    "Comparison",
    "Curve",
    "Image",
    "Measure",
    "Run",
    "RunInfo",
    "RunsError",
    "ScalarRow",
    "Scalars",
    "Side",
    "SideValue",
    "compare_runs",
    "read_run",
]
