"""A comparison as one HTML page that needs nothing else: tables, logged pictures, figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .comparison import Comparison
from .document import Block, Heading, Items, Paragraph, document
from .figures import (
    COLORS,
    plot_difference,
    plot_histograms,
    plot_scalar,
    plot_time_curves,
)
from .find import Group
from .interpretability import PREFIX, common_looks, feature_names
from .reader import Image, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report", "tables", "write_report"]

_MOST_SCALARS = 6  # Figures of train and val.
_MOST_RUNS = 6  # Logged pictures in a row.
_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #444; --paper: #fff; --line: #e3e3e3;
        --over: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b8b8b8; --paper: #1e1e1e; --line: #3c3c3c; --over: #2a2d30; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 0 auto; max-width: 1340px; padding: 24px; }
h1, h2, h3, p, code { overflow-wrap: anywhere; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; }
p { max-width: 90ch; color: var(--soft); margin: 8px 0; }
.lead { color: var(--ink); font-size: 17px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 3px 12px; border-bottom: 1px solid var(--line); text-align: left;
         white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); font-weight: 600; }
.r { text-align: right; }
tbody tr:hover { background: var(--over); }
td[colspan] { font-weight: 600; padding-top: 14px; }
.figures { display: grid; gap: 16px;
           grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.row { display: grid; gap: 16px; margin: 0 0 8px; overflow-x: auto;
       grid-template-columns: repeat(var(--columns), minmax(200px, 1fr)); }
figure { margin: 0; }
img { width: 100%; max-width: 640px; height: auto; border: 1px solid var(--line); }
figcaption { font-size: 13px; color: var(--soft); overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 20px 0 6px; }
summary { cursor: pointer; color: var(--soft); } code { font-size: 13px; }
@media (max-width: 640px) { body { padding: 12px; } h1 { font-size: 22px; } }
"""


def report(
    groups: Sequence[Group],
    comparison: Comparison,
    *,
    wanted: Callable[[str], bool] = lambda tag: True,
) -> str:
    """The page.

    Args:
        groups: What was compared.
        comparison: Its result.
        wanted: Which tags of pictures to show.
    """
    names = [side.name for side in comparison.sides]
    heading, lead, *blocks = document(comparison, longest_label=32)
    pages = list(_sections(blocks))
    figures = list(_scalar_figures(groups, comparison, names))
    attention = list(_attention_figures(groups, comparison, names))
    notes: list[str] = []
    pictures = list(_pictures(groups, comparison, wanted, notes))
    body = [f"<h1>{_text(heading)}</h1>", f'<p class="lead">{_text(lead)}</p>']
    body += _legend(names)
    body += pages[0]
    if figures:
        body += ["<h2>Training</h2>", '<div class="figures">', *figures, "</div>"]
    if pictures or attention:
        body += [f"<h2>What the models attend to, up to step {comparison.step:,}</h2>"]
        if attention:
            body += ['<div class="figures">', *attention, "</div>"]
        body += pictures
        body += [f"<p>{html.escape(note)}</p>" for note in notes]
    for page in pages[1:]:
        body += page
    title = html.escape(" against ".join([", ".join(names[1:]), names[0]]))
    return "\n".join(
        ["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
         '<meta name="viewport" content="width=device-width, initial-scale=1">',
         f"<title>{title}</title>", f"<style>{_STYLE}</style>", "</head>", "<body>", *body,
         "</body>", "</html>", ""]
    )  # fmt: skip


def tables(comparison: Comparison) -> str:
    """The tables of a comparison, without pictures, to stand in a page such as a notebook."""
    heading, *blocks = document(comparison, longest_label=32)
    return "\n".join([f"<h2>{_text(heading)}</h2>", *map(_block, blocks)])


def _text(block: Block) -> str:
    return html.escape(block.text) if isinstance(block, Heading | Paragraph) else ""


def _legend(names: Sequence[str]) -> list[str]:
    marks = (
        f'<span style="color:{COLORS[i % len(COLORS)]}">&#9632;</span> {html.escape(name)}'
        for i, name in enumerate(names)
    )
    return [f"<p>{' &nbsp; '.join(marks)}</p>"]


def _sections(blocks: Sequence[Block]) -> Iterator[list[str]]:
    """What stands before the first table of scalars, and what follows."""
    parts = [_block(block) for block in blocks]
    cut = next(
        (i for i, b in enumerate(blocks) if isinstance(b, Heading) and "Hyper" not in b.text),
        len(blocks),
    )
    yield parts[:cut]
    yield parts[cut:]


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Items):
        tags = ", ".join(f"<code>{html.escape(item)}</code>" for item in block.items)
        title = f"{html.escape(block.title)} ({len(block.items)})"
        return f"<details><summary>{title}</summary><p>{tags}</p></details>"
    sides = ["r" if a == "r" else "l" for a in block.align]
    head = "".join(
        f'<th class="{side}">{html.escape(cell)}</th>'
        for side, cell in zip(sides, block.header, strict=True)
    )
    rows = []
    for row in block.rows:
        if len(row) == 1:
            rows.append(f'<tr><td colspan="{len(block.header)}">{html.escape(row[0])}</td></tr>')
        else:
            cells = (
                f'<td class="{side}">{html.escape(cell.strip())}</td>'
                for side, cell in zip(sides, row, strict=True)
            )
            rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _image(data: bytes, caption: str) -> str:
    kind = next((kind for start, kind in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("it has a format that browsers don't show")
    encoded = base64.b64encode(data).decode()
    text = html.escape(caption)
    return (
        f'<figure><img src="data:image/{kind};base64,{encoded}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _figure(figure: Figure, caption: str) -> str:
    from ..plots import to_png

    return _image(to_png(figure), caption)


def _scalar_figures(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[str]:
    rows = [row for row in comparison.scalars if row.tag.split("/")[0] in ("train", "val")]
    for row in (rows or comparison.scalars)[:_MOST_SCALARS]:
        series = [[run.scalars[row.tag] for run in group.runs] for group in groups]
        yield _figure(plot_scalar(row.tag, names, series, row.steps), row.tag)


def _attention_figures(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[str]:
    measured = {measure.tag for measure in comparison.measures}
    for tag in sorted(t for t in measured if t.endswith("_strength")):
        yield from _differences(groups, f"{PREFIX}{tag}", comparison.step, names)
    for curve in comparison.curves:
        yield _figure(
            plot_time_curves(curve, names),
            f"{curve.tag}: reaction to stretched time, in the target's unit",
        )
    for tag in (measure.tag for measure in comparison.measures):
        looks = None
        if all(tag in run.histograms for group in groups for run in group.runs):
            looks = common_looks(groups, lambda run, tag=tag: run.histograms[tag], comparison.step)  # type: ignore[misc]
        if looks is not None:
            sides = [
                [run.histograms[tag][at] for run, (_, at) in zip(group.runs, side, strict=True)]
                for group, side in zip(groups, looks, strict=True)
            ]
            if all((h.counts > 0).any() for side in sides for h in side):
                yield _figure(plot_histograms(tag, names, sides), f"{tag}, histograms")


def _differences(
    groups: Sequence[Group], tag: str, until: int, names: Sequence[str]
) -> Iterator[str]:
    """Where one side's attribution is stronger than the first's, in shares of the whole."""
    looks = common_looks(groups, lambda run: run.arrays[tag], until)
    if looks is None:
        return
    maps = [
        [run.arrays[tag][at] for run, (_, at) in zip(group.runs, side, strict=True)]
        for group, side in zip(groups, looks, strict=True)
    ]
    shapes = {array.shape for side in maps for array in side}
    usable = all(0 < array.sum() < np.inf for side in maps for array in side)
    if len(shapes) > 1 or len(next(iter(shapes))) != 2 or not usable:
        return
    means = [np.mean([array / array.sum() for array in side], axis=0) for side in maps]
    known = feature_names(groups[0].runs[0], tag)
    steps = ", ".join(f"{s:,}" for s in sorted({at for side in looks for _, at in side}))
    for name, mean in zip(names[1:], means[1:], strict=True):
        figure = plot_difference(mean - means[0], known, (names[0], name))
        yield _figure(
            figure,
            f"{tag.removeprefix(PREFIX)} at step {steps}, each map over its sum: {name} minus "
            f"{names[0]}. Beside the names: sum over time steps.",
        )


def _pictures(
    groups: Sequence[Group],
    comparison: Comparison,
    wanted: Callable[[str], bool],
    notes: list[str],
) -> Iterator[str]:
    """Logged pictures of all runs in rows, at the first and the last step that all have."""
    runs = _shown(groups)
    count = sum(len(group.runs) for group in groups)
    if len(runs) < count:
        notes.append(f"Logged pictures are those of {', '.join(run.name for run in runs)}.")
    tags = [tag for tag in runs[0].images if all(tag in run.images for run in runs)]
    for tag in filter(wanted, tags):
        steps = [s for s in runs[0].images[tag] if s <= comparison.step]
        common = [s for s in steps if all(s in run.images[tag] for run in runs[1:])]
        if not common:
            notes.append(f"{tag} was logged at no common step.")
            continue
        yield f"<h3>{html.escape(tag)}</h3>"
        cells = [
            _logged(run, tag, run.images[tag], step)
            for step in sorted({common[0], common[-1]})
            for run in runs
        ]
        # Steps go side by side where that leaves pictures large enough to read.
        columns = len(cells) if len(cells) <= 4 else len(runs)
        yield f'<div class="row" style="--columns: {columns}">'
        yield from cells
        yield "</div>"


def _shown(groups: Sequence[Group]) -> list[Run]:
    """Runs whose pictures fit: all, or the first of each side."""
    every = [run for group in groups for run in group.runs]
    return every if len(every) <= _MOST_RUNS else [g.runs[0] for g in groups][:_MOST_RUNS]


def _logged(run: Run, tag: str, images: Mapping[int, Image], step: int) -> str:
    try:
        return _image(images[step].data(), f"{run.name}, step {step:,}")
    except (OSError, ValueError) as error:
        said = html.escape(f"{run.name}, step {step:,}: {tag} can't be shown: {error}")
        return f"<p>{said}</p>"


def write_report(page: str, folder: Path) -> Path:
    """Write ``compare.html`` into a folder, made when missing.

    Raises:
        OSError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.html"
    path.write_text(page, encoding="utf-8")
    return path
