"""Write a comparison as one HTML page that needs nothing else: tables, logged pictures, figures."""

from __future__ import annotations

import base64
import html
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Comparison
from .document import document
from .errors import RunsError
from .figures import (
    COLORS,
    encoded,
    plot_difference,
    plot_histograms,
    plot_scalar,
    plot_time_curves,
)
from .find import Group
from .fingerprint import commensurable
from .maps import PREFIX, Features, common_snapshots
from .reader import Image, Run
from .render import plain, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["load_template", "report", "write_report"]

_MAX_SCALARS = 6  # Figures of train and val.
_MAX_RUNS = 6  # Logged pictures in a row.
_MAX_MAPS = 6
_FORMATS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass(frozen=True)
class _Picture:
    """Hold a picture as a URL of its data; a picture without one has a caption that tells why."""

    caption: str
    data: str = ""


def load_template() -> Any:
    """Return the page's template.

    Raises:
        RunsError: jinja2 is not installed.
    """
    try:
        jinja2 = importlib.import_module("jinja2")
    except ImportError as error:
        raise RunsError(
            "an HTML report needs jinja2, which is not installed: "
            "pip install 'ncp-callbacks[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Text that is already HTML is another type.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def report(groups: Sequence[Group], comparison: Comparison) -> str:
    """Return the page.

    Args:
        groups: The sides that were compared.
        comparison: The result.

    Raises:
        RunsError: jinja2 is not installed.
    """
    template = load_template()
    names = [side.name for side in comparison.sides]
    notes: list[str] = []
    first, *sections = document(comparison, longest_label=32)
    page: str = template.render(
        title=first.title,
        answer=comparison.answer,
        context=first.parts[1:],
        sides=[(COLORS[i % len(COLORS)], name) for i, name in enumerate(names)],
        sections=sections,
        training=list(_scalar_figures(groups, comparison, names)),
        attention=list(_attention_figures(groups, comparison, names)),
        pictures=list(_pictures(groups, comparison, notes)),
        notes=notes,
    )
    return page


def _notebook(comparison: Comparison) -> str:
    """Return the tables without pictures, as a notebook shows them."""
    sections = document(comparison, longest_label=32)
    try:
        return str(load_template().module.tables(sections))
    except RunsError:
        return f"<pre>{html.escape(plain(sections))}</pre>"


Comparison._repr_html_ = _notebook


def _picture(data: bytes, caption: str) -> _Picture:
    kind = next((f for start, f in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("it has a format that browsers don't show")
    return _Picture(caption, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _drawn(figure: Figure, caption: str) -> _Picture:
    return _picture(encoded(figure), caption)


def _scalar_figures(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[_Picture]:
    rows = [row for row in comparison.headlines if not row.tag.endswith("/time_share")]
    for row in (rows or comparison.scalars)[:_MAX_SCALARS]:
        series = [[run.scalars[row.tag] for run in group.runs] for group in groups]
        yield _drawn(plot_scalar(row.tag, names, series, row.steps), row.tag)


def _attention_figures(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[_Picture]:
    measured = dict.fromkeys(measure.tag for measure in comparison.measures)
    features = Features(groups)
    for tag in sorted(t for t in measured if t.endswith("_strength")):
        yield from _differences(groups, f"{PREFIX}{tag}", comparison, names, features)
    for curve in comparison.curves:
        caption = f"{curve.tag}: reaction to scaled elapsed time, in the target's unit"
        yield _drawn(plot_time_curves(curve, names), caption)
    for tag in measured:
        if all(tag in run.histograms for group in groups for run in group.runs):
            yield from _histograms(groups, tag, comparison.step, names)


def _histograms(
    groups: Sequence[Group], tag: str, until: int, names: Sequence[str]
) -> Iterator[_Picture]:
    steps = common_snapshots(groups, lambda run: run.histograms[tag], until)
    if steps is None:
        return
    sides = [
        [run.histograms[tag][at] for run, (_, at) in zip(group.runs, side, strict=True)]
        for group, side in zip(groups, steps, strict=True)
    ]
    if all((h.counts > 0).any() for side in sides for h in side):
        yield _drawn(plot_histograms(tag, names, sides), f"{tag}, histograms")


def _differences(
    groups: Sequence[Group],
    tag: str,
    comparison: Comparison,
    names: Sequence[str],
    features: Features,
) -> Iterator[_Picture]:
    """Draw where a side's attribution is stronger than the first's, in shares of the whole."""
    others = [
        number
        for number in range(1, len(groups))
        if features.matched(number)
        and commensurable(comparison.conditions, number - 1, tag.removeprefix(PREFIX))
    ]
    sides = [groups[number] for number in (0, *others[:_MAX_MAPS])]
    steps = common_snapshots(sides, lambda run: run.arrays[tag], comparison.step)
    if steps is None:
        return
    maps = [
        [
            features.ordered(run, tag, run.arrays[tag][at])
            for run, (_, at) in zip(group.runs, side, strict=True)
        ]
        for group, side in zip(sides, steps, strict=True)
    ]
    usable = [
        [array for array in side if array is not None and 0 < array.sum() < np.inf] for side in maps
    ]
    shapes = {array.shape for side in usable for array in side}
    shape = next(iter(shapes), ())
    if list(map(len, usable)) != list(map(len, maps)) or len(shapes) > 1 or len(shape) != 2:
        return
    means = [np.mean([array / array.sum() for array in side], axis=0) for side in usable]
    columns, labels = features.axes(tag, shape)
    what = tag.removeprefix(PREFIX).removesuffix("_strength").replace("_", " ")
    at_steps = ", ".join(f"{s:,}" for s in sorted({at for side in steps for _, at in side}))
    sums = "" if columns else " Beside the names: sum over time steps."
    for number, mean in zip(others, means[1:], strict=False):
        name = names[number]
        yield _drawn(
            plot_difference(
                mean - means[0], (names[0], name), title=what, columns=columns, features=labels
            ),
            f"{what} at step {at_steps}, each map over its sum: {name} minus {names[0]}.{sums}",
        )


def _pictures(
    groups: Sequence[Group], comparison: Comparison, notes: list[str]
) -> Iterator[tuple[str, int, list[_Picture]]]:
    """Yield the logged pictures of a tag at the first and last step that all runs have.

    Each tag comes with the number of columns in which its pictures are laid out.
    """
    every = [run for group in groups for run in group.runs]
    runs = every if len(every) <= _MAX_RUNS else [g.runs[0] for g in groups][:_MAX_RUNS]
    if len(runs) < len(every):
        notes.append(f"Logged pictures are those of {', '.join(run.name for run in runs)}.")
    for tag in [tag for tag in runs[0].images if all(tag in run.images for run in runs)]:
        steps = [s for s in runs[0].images[tag] if s <= comparison.step]
        common = [s for s in steps if all(s in run.images[tag] for run in runs[1:])]
        if not common:
            notes.append(f"{tag} was logged at no common step.")
            continue
        cells = [
            _logged(run, tag, run.images[tag], step)
            for step in sorted({common[0], common[-1]})
            for run in runs
        ]
        # Steps go side by side where that leaves pictures large enough to read.
        yield tag, len(cells) if len(cells) <= 4 else len(runs), cells


def _logged(run: Run, tag: str, images: Mapping[int, Image], step: int) -> _Picture:
    try:
        return _picture(images[step].data(), f"{run.name}, step {step:,}")
    except (OSError, ValueError) as error:
        return _Picture(f"{run.name}, step {step:,}: {tag} can't be shown: {error}")


def write_report(page: str, folder: Path) -> Path:
    """Write ``compare.html`` into a folder, made when missing.

    Raises:
        OSError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path
