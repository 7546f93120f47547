"""Write a comparison as one HTML page that needs nothing else: tables, logged pictures, figures."""

from __future__ import annotations

import base64
import html
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plotting.png import to_png
from .comparison import Comparison
from .document import document
from .errors import RunsError
from .figures import COLORS, plot_histograms, plot_scalar
from .find import Group, all_runs, shared_tags
from .maps import common_snapshots
from .reader import Run
from .render import plain, printable
from .words import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["load_template", "report", "write_report"]

_MAX_SCALARS = 6  # Figures of train and val.
_MAX_RUNS = 6  # Logged pictures in a row.
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
            "an HTML report needs jinja2, which is not installed: run "
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


def report(groups: Sequence[Group], comparison: Comparison, view: str = "") -> str:
    """Return the page.

    Args:
        groups: The sides that were compared.
        comparison: The result.
        view: Address of the interactive page of the runs; "" if there is none.

    Raises:
        RunsError: jinja2 is not installed.
    """
    template = load_template()
    names = [side.name for side in comparison.sides]
    notes: list[str] = []
    first, *sections = document(comparison, longest_label=32)
    page: str = template.render(
        title=first.title,
        view=view,
        answer=comparison.answer,
        context=first.parts[1:],
        sides=[(COLORS[i % len(COLORS)], name) for i, name in enumerate(names)],
        sections=sections,
        training=list(_scalars(groups, comparison, names)),
        attention=list(_histograms(groups, comparison, names)),
        pictures=list(_pictures(groups, comparison, notes)),
        notes=notes,
    )
    return page


def write_report(page: str, folder: Path) -> Path:
    """Write ``compare.html`` into a folder.

    Raises:
        OSError: It can't be written.
    """
    path = folder / "compare.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _notebook(comparison: Comparison) -> str:
    """Return the tables without pictures, as a notebook shows them."""
    sections = document(comparison, longest_label=32)
    try:
        return str(load_template().module.tables(sections))
    except RunsError:
        return f"<pre>{html.escape(plain(sections))}</pre>"


Comparison._repr_html_ = _notebook


# --- figures


def _drawn(figure: Figure, caption: str) -> _Picture:
    return _picture(to_png(figure), caption)


def _picture(data: bytes, caption: str) -> _Picture:
    kind = next((f for start, f in _FORMATS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("it has a format that browsers don't show")
    return _Picture(caption, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _scalars(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[_Picture]:
    rows = [row for row in comparison.headlines if not row.tag.endswith("/time_share")]
    for row in (rows or comparison.scalars)[:_MAX_SCALARS]:
        series = [[run.scalars[row.tag] for run in group.runs] for group in groups]
        yield _drawn(plot_scalar(row.tag, names, series, row.steps), row.tag)


def _histograms(
    groups: Sequence[Group], comparison: Comparison, names: Sequence[str]
) -> Iterator[_Picture]:
    measured = {measure.tag for measure in comparison.measures}
    for tag in [tag for tag in shared_tags(groups, "histograms") if tag in measured]:
        steps = common_snapshots(groups, "histograms", tag, comparison.step) or []
        sides = [
            [run.histograms[tag][last] for run, (_, last) in zip(group.runs, side, strict=True)]
            for group, side in zip(groups, steps, strict=True)
        ]
        if all((histogram.counts > 0).any() for side in sides for histogram in side):
            yield _drawn(plot_histograms(tag, names, sides), f"{tag}, histograms")


# --- logged pictures


def _pictures(
    groups: Sequence[Group], comparison: Comparison, notes: list[str]
) -> Iterator[tuple[str, int, list[_Picture]]]:
    """Yield the logged pictures of a tag at the first and last step that all runs have.

    Each tag comes with the number of columns in which its pictures are laid out.
    """
    runs = every = all_runs(groups)
    if len(every) > _MAX_RUNS:
        runs = [group.runs[0] for group in groups][:_MAX_RUNS]
        notes.append(f"Logged pictures are those of {listed([run.name for run in runs])}.")
    for tag in [tag for tag in runs[0].images if all(tag in run.images for run in runs)]:
        steps = set.intersection(*(set(run.images[tag]) for run in runs))
        common = sorted(step for step in steps if step <= comparison.step)
        if not common:
            notes.append(f"{tag} was logged at no common step.")
            continue
        ends = sorted({common[0], common[-1]})
        cells = [_logged(run, tag, step) for step in ends for run in runs]
        # Steps go side by side where that leaves pictures large enough to read.
        yield tag, len(cells) if len(cells) <= 4 else len(runs), cells


def _logged(run: Run, tag: str, step: int) -> _Picture:
    caption = f"{run.name}, step {step:,}"
    try:
        return _picture(run.images[tag][step].data(), caption)
    except (OSError, ValueError) as error:
        return _Picture(f"{caption}: {tag} can't be shown: {error}")
