"""Report what ``cost.csv`` holds: the table in the guide, the budgets, ``cost.png``.

python benchmarks/cost_report.py        # all three again from the stored measurement
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peers.cases import SIZES

__all__ = ["COLUMNS", "HERE", "Row", "budgets", "into_guide", "plot", "read", "table"]

HERE = Path(__file__).parent
COLUMNS = (
    "scope", "model", "size", "sequences", "what", "unit", "median", "q1", "q3", "rounds",
    "measured",
)  # fmt: skip
Row: TypeAlias = dict[str, str]

_TORCH, _SHARED = "PyTorch + Captum", "PyTorch + Captum, passes shared by hand"
_PEERS = {
    "ncp_callbacks": "`ncp_callbacks`",
    _TORCH: "PyTorch: ncps, Captum, scikit-learn, pyplot, SummaryWriter",
    _SHARED: "the same, passes shared by hand",
    "plain MLX": "MLX: each analysis by itself, pyplot, SummaryWriter",
}
_INTEGRATED = ", with integrated gradients"


def read(path: Path) -> list[Row]:
    """Return the rows of a measurement."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class _Measured:
    """Medians by what they are of."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def median(self, scope: str, what: str, **labels: str) -> float | None:
        """Return a median, or None if it wasn't measured."""
        wanted = {"scope": scope, "what": what, **labels}
        for row in self._rows:
            if all(row[key] == value for key, value in wanted.items()):
                return float(row["median"])
        return None

    def dates(self, scope: str) -> list[str]:
        """Return the days on which it was measured."""
        return sorted({row["measured"] for row in self._rows if row["scope"] == scope})

    def cases(self, scope: str) -> list[dict[str, str]]:
        """Return the models, sizes and numbers of sequences that were measured."""
        found = [
            {key: row[key] for key in ("model", "size", "sequences")}
            for row in self._rows
            if row["scope"] == scope
        ]
        return [case for i, case in enumerate(found) if case not in found[:i]]

    def few(self, scope: str) -> list[dict[str, str]]:
        """Return the cases in which fewer sequences than a batch are held out."""
        return [c for c in self.cases(scope) if int(c["sequences"]) < SIZES[c["size"]].batch]


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


# ---- the table of the guide


def table(rows: Sequence[Row]) -> str:
    """Return markdown: a line for each model and size, the peers, and what is paid once."""
    m = _Measured(rows)
    lines = [
        "| 16 sequences, standard set | due step | training | CPU | `background=False` |",
        "|---|---|---|---|---|",
    ]
    for case in m.few("loop"):
        cells = [
            _number(m.median("loop", "due step, background", **case), ".2g"),
            _signed(m.median("extra", "training, every=100", **case)),
            _number(m.median("cpu", "until on disk, background", **case)),
            _number(m.median("loop", "due step, in the loop", **case)),
        ]
        lines.append(f"| {case['model']} {case['size']} | {' | '.join(cells)} |")
    lines += ["", *_peers(m), _once(m)]
    return "\n".join(lines)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f} %"


def _peers(m: _Measured) -> Iterator[str]:
    cases = m.cases("peer")
    if not cases:
        return
    sizes = [case["size"] for case in cases]
    dates = ", ".join(m.dates("peer"))
    yield f"| CfC, whole batch, until on disk, in steps, measured {dates} | {' | '.join(sizes)} |"
    yield f"|---|{'---|' * len(sizes)}"
    for name, title in _PEERS.items():
        cells = []
        for case in cases:
            plain = m.median("peer", name, **case)
            integrated = m.median("peer", name + _INTEGRATED, **case)
            cells.append(f"{_number(plain, '.1f')} ({_number(integrated, '.1f')})")
        yield f"| {title} | {' | '.join(cells)} |"
    yield ""


def _once(m: _Measured) -> str:
    due = m.median("once", "step at which nothing is due")
    imported = m.median("once", "import after mlx")
    entering = [m.median("more", "entering", **case) for case in m.few("more")]
    most = max((value for value in entering if value is not None), default=None)
    return (
        f"A step at which nothing is due takes {_number(due)} µs, the import "
        f"{_number(imported, '.0f')} ms, entering at most {_number(most, '.1f')} steps."
    )


def into_guide(guide: Path, shown: str, source: str = "cost.csv") -> None:
    """Put the table of a stored measurement where the guide shows it."""
    mark = f"<!-- {source} -->\n"
    before, rest = guide.read_text().split(mark)
    after = rest.split("<!-- end -->", 1)[1]
    guide.write_text(f"{before}{mark}{shown}\n<!-- end -->{after}")


# ---- budgets

_DUE_STEP = {"S": 0.07, "M": 0.02, "L": 0.01}
_EXTRA = {"S": 2.5, "M": 1.0, "L": 1.0}
# Times the CPU time of the version that analysed in the loop, by gradients and without removal.
_CPU = 2.5


def budgets(rows: Sequence[Row]) -> str:
    """Return what was aimed at and what was measured, one a line."""
    m = _Measured(rows)
    lines = []

    def check(text: str, value: float | None, limit: float | None, *, least: bool = False) -> None:
        if value is not None and limit is not None:
            good = value >= limit if least else value <= limit
            sign = "≥" if least else "≤"
            lines.append(
                f"{'ok    ' if good else 'MISSED'} {text}: {value:.3g} ({sign} {limit:.3g})"
            )

    for case in m.cases("loop"):
        size = case["size"]
        name = f"{case['model']} {size}, {case['sequences']} sequences, "
        due = m.median("loop", "due step, background", **case)
        check(f"{name}due step, steps", due, _DUE_STEP.get(size))
        due = m.median("more", "due step, full set", **case)
        check(f"{name}due step, steps, full set", due, _DUE_STEP.get(size))
        passes = m.median("loop", "passes alone", **case)
        check(
            f"{name}background=False, steps, beside its passes alone + 15 %",
            m.median("loop", "due step, in the loop", **case),
            None if passes is None else 1.15 * passes,
        )
        before = m.median("cpu", "until on disk, before", **case)
        check(
            f"{name}CPU until on disk, steps, beside {_CPU} times the earlier version's",
            m.median("cpu", "until on disk, background", **case),
            None if before is None else _CPU * before,
        )
        longer = m.median("extra", "training, every=100", **case)
        check(f"{name}% longer at every=100", longer, _EXTRA.get(size))
    due = m.median("once", "step at which nothing is due")
    check("µs of a step at which nothing is due", due, 3)
    check("ms to import", m.median("once", "import after mlx"), 150)
    for case in m.cases("peer"):
        ours = m.median("peer", "ncp_callbacks", **case)
        for name, limits in {_TORCH: (8, 5, 3), _SHARED: (8, 5, 3), "plain MLX": (3, 3, 3)}.items():
            theirs = m.median("peer", name, **case)
            limit = dict(zip("SML", limits, strict=True)).get(case["size"])
            if theirs is not None and ours:
                check(f"{name}, {case['size']}, times ours", theirs / ours, limit, least=True)
    return "\n".join(lines)


# ---- the picture

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#8C8C8C", "#009E73")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw what a due step costs, and the peers, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    m = _Measured(rows)
    few, beside = m.few("loop"), m.cases("peer")
    quantities = {
        "loop waits, in the background": ("loop", "due step, background"),
        "loop waits, background=False": ("loop", "due step, in the loop"),
        "CPU until on disk, in the background": ("cpu", "until on disk, background"),
        "CPU until on disk, earlier version": ("cpu", "until on disk, before"),
    }
    figure = Figure(figsize=(11.2, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _bars(left, few, {n: [m.median(*q, **c) for c in few] for n, q in quantities.items()})
    left.set(title="A due step, 16 held-out sequences", xscale="log")
    _bars(right, beside, {n: [m.median("peer", n, **c) for c in beside] for n in _PEERS})
    right.set(title="A snapshot of a whole batch, until on disk")
    figure.savefig(path, dpi=110)


def _bars(
    axes: Any, cases: Sequence[dict[str, str]], values: dict[str, list[float | None]]
) -> None:
    height = 0.8 / len(values)
    for i, ((name, numbers), colour) in enumerate(zip(values.items(), _COLOURS, strict=False)):
        places = [j + (i - (len(values) - 1) / 2) * height for j in range(len(cases))]
        bars = axes.barh(places, [v or 0.0 for v in numbers], height, label=name, color=colour)
        labels = [_number(v, ".3f" if v is not None and v < 0.1 else ".2f") for v in numbers]
        axes.bar_label(bars, labels, padding=3, fontsize=7)
    axes.set_yticks(range(len(cases)), [f"{case['model']} {case['size']}" for case in cases])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("training steps of the same model in the same framework")
    # Below the axes, where it covers nothing.
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def main() -> None:
    rows = read(HERE / "cost.csv")
    shown = table(rows)
    into_guide(HERE.parent / "examples" / "cost.md", shown)
    plot(rows, HERE / "cost.png")
    print(f"{shown}\n\n{budgets(rows)}")


if __name__ == "__main__":
    main()
