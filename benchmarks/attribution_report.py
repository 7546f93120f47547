"""Tables of the benchmark of attribution methods, beside what was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from traps import SHOWN

from ncp_callbacks.attribution import BUILT_IN

HERE = Path(__file__).parent
STORED = HERE / "attribution_quality.csv"
GUIDE = HERE.parent / "examples" / "callbacks.md"
COLUMNS = ("benchmark", "model", "method", "metric", "value", "sd", "of")
METRICS = ("AUPRC", "AUROC", "AUP", "AUR", "CPD, zero", "CPD, mean")
LABELS = {method.name: method.label for method in BUILT_IN}
RANKS = "integrated_gradients, ranks"
# What shows what a metric measures, and is no method.
REFERENCES = (RANKS, "random", "truth")
NUISANCE_SHARE = "share of the nuisance"
TRAP_METHODS = (
    "input_x_gradient from zeros", *LABELS, "default", "removal",
)  # fmt: skip
GUIDE_METHODS = ("input_x_gradient from zeros", "default", "removal")
Row: TypeAlias = dict[str, str]

# Enguehard 2023 (arXiv:2305.18840), time_interpret's results files, mean of 5 folds; Jang et al.
# 2025 (arXiv:2506.05035), table 4. The first five of the metrics.
PUBLISHED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "rare-feature": {
        "integrated gradients (Enguehard)": (None, None, 1.0, 0.135, None),
        "occlusion (Enguehard)": (None, None, 1.0, 0.134, None),
        "Dynamask (Enguehard)": (None, None, 0.957, 0.656, None),
        "ExtrMask (Enguehard)": (None, None, 0.992, 0.756, None),
    },
    "rare-time": {
        "integrated gradients (Enguehard)": (None, None, 1.0, 0.125, None),
        "occlusion (Enguehard)": (None, None, 1.0, 0.124, None),
        "Dynamask (Enguehard)": (None, None, 0.903, 0.652, None),
        "ExtrMask (Enguehard)": (None, None, 0.993, 0.820, None),
    },
    "state": {
        "integrated gradients (Enguehard)": (0.909, 0.936, 0.918, 0.454, None),
        "integrated gradients (Jang)": (None, None, 0.922, 0.357, 0.162),
        "GradientSHAP (Enguehard)": (0.798, 0.852, 0.849, 0.414, None),
        "GradientSHAP (Jang)": (None, None, 0.857, 0.315, 0.156),
        "occlusion (Enguehard)": (0.817, 0.870, 0.866, 0.393, None),
        "occlusion (Jang)": (None, None, 0.882, 0.303, 0.158),
        "DeepLIFT (Enguehard)": (0.912, 0.938, 0.920, 0.454, None),
        "DeepLIFT (Jang)": (None, None, 0.926, 0.359, 0.162),
        "LIME (Enguehard)": (0.912, 0.937, 0.932, 0.438, None),
        "LIME (Jang)": (None, None, 0.944, 0.333, 0.163),
        "Dynamask (Enguehard)": (0.695, 0.876, 0.711, 0.763, None),
        "ExtrMask (Enguehard)": (0.883, 0.910, 0.885, 0.781, None),
        "ExtrMask (Jang)": (None, None, 0.557, 0.012, 0.055),
        "TIMING (Jang)": (None, None, 0.921, 0.355, 0.163),
    },
    "switch-feature": {
        "integrated gradients (Jang)": (None, None, 0.918, 0.433, 0.196),
        "GradientSHAP (Jang)": (None, None, 0.892, 0.387, 0.196),
        "occlusion (Jang)": (None, None, 0.902, 0.374, 0.191),
        "DeepLIFT (Jang)": (None, None, 0.918, 0.432, 0.196),
        "LIME (Jang)": (None, None, 0.949, 0.391, 0.195),
        "Dynamask (Jang)": (None, None, 0.362, 0.754, 0.069),
        "ExtrMask (Jang)": (None, None, 0.978, 0.745, 0.174),
        "ContraLSP (Jang)": (None, None, 0.970, 0.851, 0.158),
        "TIMING (Jang)": (None, None, 0.926, 0.434, 0.208),
    },
}


def cell(row: Row | None) -> str:
    """Return a value, with its SD over seeds in brackets."""
    if row is None:
        return "–"
    spread = f" ({float(row['sd']):.3f})" if row["sd"] else ""
    return f"{float(row['value']):.3f}{spread}"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(cells: Sequence[str]) -> list[str]:
    return [line(cells), "|---" * len(cells) + "|"]


def table(rows: Sequence[Row]) -> str:
    """Markdown: where, beside what was published; traps; then when or what."""
    at = {(r["benchmark"], r["model"], r["method"], r["metric"]): r for r in rows}
    models = dict.fromkeys((r["benchmark"], r["model"]) for r in rows)
    lines = head(("benchmark", "model", "method", *METRICS, "seeds"))
    for benchmark, published in PUBLISHED.items():
        for model in (m for b, m in models if b == benchmark):
            for method in (*LABELS, *REFERENCES):
                found = [at.get((benchmark, model, method, metric)) for metric in METRICS]
                if any(found):
                    count = next(row["of"] for row in found if row)
                    lines.append(line((benchmark, model, method, *map(cell, found), count)))
        for who, values in published.items():
            cells = ["–" if v is None else f"{v:.3f}" for v in values]
            lines.append(line((benchmark, "published", who, *cells, "–", "5")))
    lines += ["", traps_table(rows), "", *head(("benchmark", "model", "", "", "seeds"))]
    for row in rows:
        if row["metric"] not in (*METRICS, NUISANCE_SHARE):
            what = " ".join(filter(None, (row["method"], row["metric"])))
            lines.append(line((row["benchmark"], row["model"], what, cell(row), row["of"])))
    return "\n".join(lines)


def traps_table(rows: Sequence[Row], methods: Sequence[str] = TRAP_METHODS) -> str:
    """Markdown: the share of the nuisance of each trap by each method."""
    at = {(r["model"], r["method"]): r for r in rows if r["metric"] == NUISANCE_SHARE}
    names = [name for name in SHOWN if any(trap == name for trap, _ in at)]
    shown = [method.replace("input_x_gradient", LABELS["input_x_gradient"]) for method in methods]
    lines = head(("trap", *shown))
    lines += [line((name, *(cell(at.get((name, m))) for m in methods))) for name in names]
    return "\n".join(lines)


def records(rows: Sequence[Row]) -> str:
    """Markdown: the best published number of each metric beside ours.

    Integrated gradients are those of the GRU, which is the published kind of model, or of the white
    box; also with their scores replaced by ranks. Our best is of all methods and of all models with
    several seeds.
    """
    lines = head(
        ("benchmark", "metric", "best published", "integrated gradients", "by rank", "our best", "")
    )
    for benchmark, published in PUBLISHED.items():
        own = [r for r in rows if r["benchmark"] == benchmark]
        for index, metric in enumerate(METRICS[:5]):
            known = [(v, who) for who, values in published.items() if (v := values[index])]
            ours = [r for r in own if r["metric"] == metric and r["sd"]]
            if known and ours:
                lines.append(line((benchmark, metric, *_record(*max(known), ours))))
    return "\n".join(lines)


def _record(record: float, who: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the cells of a metric."""
    yield f"{record:.3f}, {who}"
    plain = {r["method"]: r for r in rows if r["model"] in ("GRU", "white box")}
    yield cell(plain.get("integrated_gradients"))
    yield cell(plain.get(RANKS))
    best = max((r for r in rows if r["method"] in LABELS), key=lambda row: float(row["value"]))
    yield f"{cell(best)}, {best['model']}, {LABELS[best['method']]}"
    value = round(float(best["value"]), 3)
    yield "above" if value > record else "equal" if value == record else "below"
