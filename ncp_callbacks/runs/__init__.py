"""Read logged runs back and compare them, without a model.

    from ncp_callbacks.runs import compare_runs, read_run

    result = compare_runs({"cfc": "runs/cfc-s*", "ltc": "runs/ltc-s*"})
    print(*result.answer)
    for row in result.scalars:
        print(row.tag, row.changes)

On the command line: ``ncp-callbacks compare RUN RUN``. Nothing here needs MLX.
"""

from .compare import compare_runs
from .comparison import (
    Change,
    Comparison,
    Condition,
    Curve,
    Measure,
    RunFinding,
    RunInfo,
    ScalarRow,
    Side,
    SideValue,
)
from .errors import RunsError
from .reader import Binned, ConfidenceIntervals, Image, Run, Scalars, read_run
from .report import write_report  # The module tells a notebook how to show a comparison.

__all__ = [
    "Binned",
    "Change",
    "Comparison",
    "Condition",
    "ConfidenceIntervals",
    "Curve",
    "Image",
    "Measure",
    "Run",
    "RunFinding",
    "RunInfo",
    "RunsError",
    "ScalarRow",
    "Scalars",
    "Side",
    "SideValue",
    "compare_runs",
    "read_run",
    "write_report",
]
