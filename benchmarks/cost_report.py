"""What ``cost.csv`` says: the README's table, the budgets, ``cost.png``.

python benchmarks/cost_report.py        # all three again from the stored measurement
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from peers.cases import SIZES

__all__ = [
    "ALL_INTEGRATED", "COLUMNS", "FEW_INTEGRATED", "Row",
    "budgets", "into_readme", "plot", "slope", "table",
]  # fmt: skip

HERE = Path(__file__).parent
COLUMNS = (
    "scope", "model", "size", "sequences", "what", "quantity", "unit",
    "median", "q1", "q3", "rounds",
)  # fmt: skip
Row: TypeAlias = dict[str, str]

_OURS = "standard set"
_COMPLETE = "standard set and integrated gradients"
FEW_INTEGRATED = "standard set and integrated gradients, 8 nodes"
ALL_INTEGRATED = "standard set and integrated gradients, 8 nodes, all sequences"
_SHARED = "PyTorch + Captum, passes shared"
_PEERS = {
    "PyTorch + Captum": "PyTorch: ncps, Captum, scikit-learn, pyplot, SummaryWriter",
    _SHARED: "the same, passes shared by hand",
    "plain MLX": "MLX: each analysis by itself, pyplot, SummaryWriter",
}


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope in log-log coordinates: 1 is linear growth."""
    xs, ys = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    along = sum((a - mean_x) * (b - mean_y) for a, b in zip(xs, ys, strict=True))
    return along / sum((a - mean_x) ** 2 for a in xs)


class Measured:
    """The rows, by what they are about."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def select(self, **wanted: str) -> list[Row]:
        return [r for r in self.rows if all(r[k] == v for k, v in wanted.items())]

    def median(self, **wanted: str) -> float | None:
        found = self.select(**wanted)
        return float(found[0]["median"]) if found else None

    def sizes(self, scope: str) -> list[str]:
        return list(dict.fromkeys(r["size"] for r in self.rows if r["scope"] == scope))

    def counts(self, model: str, size: str) -> list[str]:
        """Numbers of sequences that were looked at: the whole batch first."""
        found = {r["sequences"] for r in self.select(scope="look", model=model, size=size)}
        return sorted(found, key=int, reverse=True)


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


# ---- the README's table


def table(rows: Sequence[Row]) -> str:
    """Markdown: looks by model and size, parts at M, floors, peers, and what is paid once."""
    m = Measured(rows)
    lines = [
        "| | whole batch: in the loop | until on disk "
        "| 16 sequences: in the loop | until on disk |",
        "|---|---|---|---|---|",
    ]
    looks = m.select(scope="look", what=_OURS, quantity="in the loop")
    for model, size in dict.fromkeys((r["model"], r["size"]) for r in looks):
        lines.append(_line(m, f"{model} {size}, {_OURS}", model, size, _OURS))
    others = m.select(scope="look", model="CfC", size="M", quantity="in the loop")
    for name in dict.fromkeys(r["what"] for r in others if r["what"] != _OURS):
        alone = f"`{name}` alone" if name.isidentifier() else name
        lines.append(_line(m, f"CfC M, {alone}", "CfC", "M", name))
    sizes = [s for s in SIZES if s in m.sizes("look")]
    lines += ["", "; ".join(_described(s) for s in sizes) + ".", ""]
    lines += _floors(m)
    lines += _peers(m)
    lines += [_once(m)]
    return "\n".join(lines).strip()


def _line(m: Measured, title: str, model: str, size: str, name: str) -> str:
    cells = []
    counts = m.counts(model, size)
    for count in (*counts, "")[:2]:
        for quantity in ("in the loop", "until on disk"):
            found = m.median(
                scope="look", model=model, size=size, sequences=count, what=name, quantity=quantity
            )
            cells.append(_number(found))
    return f"| {title} | {' | '.join(cells)} |"


def _described(size: str) -> str:
    s = SIZES[size]
    return f"{size}: batch {s.batch}, {s.steps} steps, {s.features} features, {s.units} units"


# What is compared: words for it, what a peer's look is called with it, and ours.
_COMPARED = (
    ("", "until on disk", _OURS),
    (" + integrated gradients, 8 nodes, 8 sequences", "with those of 8 sequences", FEW_INTEGRATED),
    (" + integrated gradients, 8 nodes, all sequences", "with integrated gradients",
     ALL_INTEGRATED),
)  # fmt: skip


def _peers(m: Measured) -> list[str]:
    sizes = m.sizes("peer")
    if not sizes:
        return []
    lines = [
        f"| the same look at a whole batch, CfC | {' | '.join(sizes)} |",
        f"|---|{'---|' * len(sizes)}",
    ]

    def line(title: str, values: Sequence[float | None], factors: Sequence[float | None]) -> None:
        form = ".2f" if all(f is None for f in factors) else ".1f"
        cells = [
            _number(value, form) + ("" if factor is None else f" ({factor:.1f} ×)")
            for value, factor in zip(values, factors, strict=True)
        ]
        if any(v is not None for v in values):
            lines.append(f"| {title} | {' | '.join(cells)} |")

    def ours(name: str) -> list[float | None]:
        return [
            m.median(scope="peer", size=size, what=name, quantity="until on disk") for size in sizes
        ]

    for more, _, name in _COMPARED:
        line(f"`ncp_callbacks`, standard set{more}", ours(name), [None] * len(sizes))
    complete = " + integrated gradients, 8 to 64 nodes, 8 sequences"
    line(f"`ncp_callbacks`, standard set{complete}", ours(_COMPLETE), [None] * len(sizes))
    for name, title in _PEERS.items():
        for more, quantity, own in _COMPARED[:1] if name == _SHARED else _COMPARED:
            line(
                title + more,
                [m.median(scope="peer", size=s, what=name, quantity=quantity) for s in sizes],
                [_factor(m, s, name, quantity, own) for s in sizes],
            )
    return [*lines, ""]


def _factor(
    m: Measured, size: str, name: str, quantity: str = "until on disk", own: str = _OURS
) -> float | None:
    """How many times our look, each in its own training steps."""
    theirs = m.median(scope="peer", size=size, what=name, quantity=quantity)
    ours = m.median(scope="peer", size=size, what=own, quantity="until on disk")
    return None if theirs is None or ours is None else theirs / ours


def _floors(m: Measured) -> list[str]:
    """What looks consist of, beside what their passes take by themselves."""
    lines = [
        "| standard set, in training steps | its passes, run plainly | its passes, as run "
        "| rest in the loop | until on disk |",
        "|---|---|---|---|---|",
    ]
    looks = m.select(scope="look", what=_OURS, quantity="model passes")
    for row in looks:
        where = {k: row[k] for k in ("model", "size", "sequences")}
        forward, gradient = (
            m.median(scope="look", what="bare model", quantity=f"{q} pass", **where)
            for q in ("forward", "gradient")
        )
        if forward is None or gradient is None:
            continue
        passes, call, until = (
            m.median(scope="look", what=_OURS, quantity=q, **where) or 0.0
            for q in ("model passes", "in the loop", "until on disk")
        )
        # One with gradients, and three at other scales of the intervals, which a GRU hasn't.
        plainly = gradient + (0 if row["model"] == "GRU" else 3 * forward)
        cells = map(_number, (plainly, passes, call - passes, until - call))
        title = f"{row['model']} {row['size']}, {row['sequences']} sequences"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 2 else []


def _once(m: Measured) -> str:
    due = m.median(what="a step at which nothing is due")
    imported = m.median(what="import ncp_callbacks after mlx.core, mlx.nn")
    entering = m.select(scope="look", what=_OURS, quantity="entering")
    most = max((float(r["median"]) for r in entering), default=None)
    after = m.select(scope="look", what=_OURS, quantity="next step")
    slowed = max((float(r["median"]) for r in after), default=None)
    slopes = m.select(scope="growth", quantity="time, slope")
    grown = ", ".join(f"{float(r['median']):.2f} with {r['what']}" for r in slopes)
    return (
        f"A step at which nothing is due: {_number(due)} µs. The training step after a look, while "
        f"the writer works: at most {_number(slowed)} steps. Entering the monitor: at most "
        f"{_number(most, '.1f')} steps. Importing it after MLX: {_number(imported, '.0f')} ms. "
        f"Growth of a look, as an exponent over a factor of 16: {grown}."
    )


def into_readme(readme: Path, shown: str) -> None:
    """Put the table where the README shows it."""
    before, rest = readme.read_text().split("<!-- cost.csv -->\n")
    after = rest.split("<!-- end -->")[1]
    readme.write_text(f"{before}<!-- cost.csv -->\n{shown}\n<!-- end -->{after}")


# ---- budgets


def budgets(rows: Sequence[Row]) -> str:
    """What was aimed at and what was measured, one a line."""
    m = Measured(rows)
    lines = []

    def check(text: str, value: float | None, limit: float, least: bool = False) -> None:
        if value is not None:
            good = value >= limit if least else value <= limit
            sign = "≥" if least else "≤"
            verdict = "ok    " if good else "MISSED"
            lines.append(f"{verdict} {text}: {value:.3g} ({sign} {limit:g})")

    def look(model: str, size: str, which: int, quantity: str) -> float | None:
        counts = m.counts(model, size)
        return None if which >= len(counts) else m.median(
            scope="look", model=model, size=size, sequences=counts[which], what=_OURS,
            quantity=quantity,
        )  # fmt: skip

    for size in ("S", "M", "L"):
        check(
            f"CfC {size}, whole batch, steps until on disk",
            look("CfC", size, 0, "until on disk"),
            2,
        )
    few = {("CfC", "S"): 1.3, ("CfC", "M"): 0.6, ("CfC", "L"): 0.3, ("LTC", "S"): 1.5}
    for (model, size), limit in few.items():
        check(f"{model} {size}, 16 sequences, steps until on disk",
              look(model, size, 1, "until on disk"), limit)  # fmt: skip
    for size in ("M", "L"):
        beyond = look("CfC", size, 0, "beyond model passes")
        check(f"CfC {size}, % of a look that the loop spends beyond model passes", beyond, 5)
    for size in ("S", "M", "L"):
        for which, whose in ((0, "whole batch"), (1, "16 sequences")):
            after = look("CfC", size, which, "next step")
            check(f"CfC {size}, {whose}, the training step after a look", after, 1.1)
    for size, limit in {"S": 1.5, "M": 0.7, "L": 0.7}.items():
        extra = look("CfC", size, 1, "extra time at every=100")
        check(f"CfC {size}, 16 sequences, % extra time at every=100", extra, limit)
    entering = m.select(scope="look", what=_OURS, quantity="entering")
    for row in [r for r in entering if r["size"] != "tiny"]:
        name = f"{row['model']} {row['size']}, {row['sequences']} sequences"
        check(f"{name}, steps to enter the monitor", float(row["median"]), 3)
    check(
        "µs of a step at which nothing is due", m.median(what="a step at which nothing is due"), 3
    )
    check("ms to import", m.median(what="import ncp_callbacks after mlx.core, mlx.nn"), 150)
    for row in m.select(scope="growth"):
        if row["quantity"].endswith("slope"):
            name = f"exponent of {row['quantity'].split(',')[0]} over {row['what']}"
            check(name, float(row["median"]), 1.1)
    for name, limits in {
        "PyTorch + Captum": (8, 5, 3), _SHARED: (8, 5, 3),
        "plain MLX": (3, 3, 3),
    }.items():  # fmt: skip
        for size, limit in zip(("S", "M", "L"), limits, strict=True):
            check(f"{name}, {size}, times our look", _factor(m, size, name), limit, least=True)
    for more, quantity, own in _COMPARED[1:]:
        for size in ("S", "M"):
            factor = _factor(m, size, "PyTorch + Captum", quantity, own)
            check(f"PyTorch + Captum{more}, {size}, times ours", factor, 8, least=True)
    return "\n".join(lines)


# ---- the picture

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_BLUE, _ORANGE, _GREEN, _GREY, _PINK = "#0072B2", "#E69F00", "#009E73", "#8C8C8C", "#CC79A7"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Peers, what a look is made of, and growth, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    m = Measured(rows)
    panels = [
        panel
        for scope, panel in (("peer", _plot_peers), ("look", _plot_looks), ("growth", _plot_growth))
        if m.sizes(scope)
    ]
    figure = Figure(figsize=(5.6 * len(panels), 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(m, axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _plot_peers(m: Measured, axes) -> None:  # type: ignore[no-untyped-def]
    sizes = m.sizes("peer")
    names = {
        _OURS: ("ncp_callbacks", _BLUE),
        "plain MLX": ("MLX, each analysis by itself", _PINK),
        "PyTorch + Captum": ("PyTorch + Captum", _ORANGE),
        _SHARED: ("PyTorch + Captum, passes shared by hand", _GREY),
    }
    height = 0.8 / len(names)
    for i, (name, (label, colour)) in enumerate(names.items()):
        values = [
            m.median(scope="peer", size=s, what=name, quantity="until on disk") or 0.0
            for s in sizes
        ]
        places = [j + (i - (len(names) - 1) / 2) * height for j in range(len(sizes))]
        bars = axes.barh(places, values, height * 0.92, label=label, color=colour)
        axes.bar_label(bars, [f"{v:.1f}" for v in values], padding=3)
    axes.set_yticks(range(len(sizes)), [f"CfC {size}" for size in sizes])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(
        title="One look at a whole batch",
        xlabel="training steps of the same model in the same framework",
    )
    _legend(axes)


def _plot_looks(m: Measured, axes) -> None:  # type: ignore[no-untyped-def]
    places, labels = [], []
    parts = (("the model's passes", _BLUE), ("the rest of the loop's thread", _ORANGE),
             ("the writer's thread", _GREEN))  # fmt: skip
    for model, size in dict.fromkeys((r["model"], r["size"]) for r in m.select(scope="look")):
        for count in m.counts(model, size):
            wanted = {"scope": "look", "model": model, "size": size, "sequences": count}
            passes, call, until = (
                m.median(what=_OURS, quantity=q, **wanted) or 0.0
                for q in ("model passes", "in the loop", "until on disk")
            )
            places.append(len(places))
            labels.append(f"{model} {size}, {count} sequences")
            left = 0.0
            for (label, colour), value in zip(
                parts, (passes, call - passes, until - call), strict=True
            ):
                label = label if len(places) == 1 else None
                axes.barh(places[-1], value, 0.8, left=left, color=colour, label=label)
                left += value
            axes.text(left + 0.03, places[-1], f"{until:.2f}", va="center")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(
        title="What a look at so many sequences is made of",
        xlabel="training steps of the same model",
    )
    _legend(axes)


def _plot_growth(m: Measured, axes) -> None:  # type: ignore[no-untyped-def]
    colours = {"sequences": _BLUE, "time steps": _ORANGE, "scales": _GREEN}
    for what, colour in colours.items():
        points = [r for r in m.select(scope="growth", what=what) if r["unit"] == "ms"]
        x = [int(r["quantity"].split(" at ")[1]) for r in points]
        y = [float(r["median"]) for r in points]
        grown = m.median(scope="growth", what=what, quantity="time, slope")
        factor, times = [v / x[0] for v in x], [v / y[0] for v in y]
        label = f"{what}, {x[0]} to {x[-1]}: exponent {grown:.2f}"
        axes.plot(factor, times, "o-", color=colour, label=label)
    axes.plot(factor, factor, "--", color="black", linewidth=1, label="linear: exponent 1")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda v, _: f"{v:g}×")
    axes.set(title="How a look grows", xlabel="as many", ylabel="time of a look in the loop")
    _legend(axes)


def _legend(axes) -> None:  # type: ignore[no-untyped-def]
    """Below the axes, where it covers nothing."""
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def main() -> None:
    with (HERE / "cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = table(rows)
    into_readme(HERE.parent / "README.md", shown)
    plot(rows, HERE / "cost.png")
    print(f"{shown}\n\n{budgets(rows)}")


if __name__ == "__main__":
    main()
