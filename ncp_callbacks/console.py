"""Print console summaries of a run: at its start how to open the log, at its end what it holds.

::

    show(opening("runs/cfc-seed0", ["attribution/heatmap", "hidden/pca"]))
    ...
    show(closing("runs/cfc-seed0", writer.tally, steps=3000, snapshots=30))

All functions but :func:`show` only return text. IPython is used if it is imported already.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from .writers.base import Tally

__all__ = [
    "KEEP_PICTURES",
    "closing",
    "in_notebook",
    "link",
    "link_to",
    "open_command",
    "opening",
    "show",
    "tensorboard_command",
]

PathLike = str | os.PathLike[str]

_LOG = logging.getLogger("ncp_callbacks")
_MAX_PINNED = 6
# Without this TensorBoard keeps 10 pictures of a tag, chosen at random.
KEEP_PICTURES = "--samples_per_plugin=images=200"


def tensorboard_command(log_dir: PathLike, program: str = "tensorboard") -> str:
    """Return the command that opens a log, together with the runs in the same directory.

    Args:
        log_dir: The run's directory.
        program: Command that starts TensorBoard.
    """
    root = shlex.quote(_shown(_root_and_run(log_dir)[0]))
    return f"{program} --logdir {root} {KEEP_PICTURES}"


def open_command(log_dir: PathLike) -> str:
    """Return the command that opens a log on a page that shows the findings first.

    Args:
        log_dir: The run's directory. The runs beside it are opened, too.
    """
    program = "ncp-callbacks"
    if not shutil.which(program):
        program = f"{shlex.quote(sys.executable)} -m ncp_callbacks.cli"
    return f"{program} open {shlex.quote(_shown(_root_and_run(log_dir)[0]))}"


def link(
    log_dir: PathLike,
    pictures: Sequence[str] = (),
    *,
    scalars: Sequence[str] = ("train/loss",),
    port: int = 6006,
) -> str:
    """Return the address of TensorBoard's Time Series with the first six cards on top.

    Cards appear as soon as the log has their tags.

    Args:
        log_dir: The run that has the pictures.
        pictures: Tags of pictures of this run.
        scalars: Tags of scalars of all runs.
        port: Port of TensorBoard. It takes another one if this is in use.
    """
    run = _root_and_run(log_dir)[1]
    return f"http://localhost:{port}{link_to([(t, run) for t in pictures], scalars=scalars)}"


def link_to(pictures: Sequence[tuple[str, str]], *, scalars: Sequence[str] = ()) -> str:
    """Return the part of the address of TensorBoard's Time Series after the host.

    Args:
        pictures: Tags of pictures, and the names of their runs.
        scalars: Tags of scalars of all runs, which come last.
    """
    cards: list[dict[str, str | int]] = [
        {"plugin": "images", "tag": tag, "runId": f"defaultExperimentId/{run}", "sample": 0}
        for tag, run in pictures
    ]
    cards = cards[: _MAX_PINNED - len(scalars)]
    cards += [{"plugin": "scalars", "tag": tag} for tag in scalars]
    pinned = json.dumps(cards, separators=(",", ":"))
    # Terminals end an address at a quote or bracket, not at these.
    quoted = urllib.parse.quote(pinned, safe="/:,")
    return f"/?pinnedCards={quoted}#timeseries"


def opening(
    log_dir: PathLike | None,
    pictures: Sequence[str] = (),
    *,
    scalars: Sequence[str] = ("train/loss",),
    notebook: bool | None = None,
    program: str | None = None,
) -> str:
    """Return the console summary of a run that starts; "" without a directory.

    Args:
        log_dir: The run's directory.
        pictures: Tags of the first pictures to show.
        scalars: Tags of the first scalars to show.
        notebook: True to print notebook magics instead of a command; None: detect it.
        program: Command that starts TensorBoard; None: the one installed.
    """
    if log_dir is None:
        return ""
    lines = [f"ncp_callbacks: logging to {_shown(log_dir)}"]
    if program is None:
        program = _program()
        if not program:
            lines.append("  to install TensorBoard:  pip install 'ncp-callbacks[viewer]'")
            program = "tensorboard"
    if in_notebook() if notebook is None else notebook:
        lines += [
            "  open it, in a cell of its own:",
            "    %load_ext tensorboard",
            f"    {tensorboard_command(log_dir, '%tensorboard')}",
            f"  then, in a tab:  {link(log_dir, pictures, scalars=scalars)}",
        ]
    else:
        lines += [
            f"  open it:  {open_command(log_dir)}",
            f"  or:       {tensorboard_command(log_dir, program)}",
        ]
    return "\n".join(lines)


def closing(
    log_dir: PathLike | None,
    tally: Tally,
    *,
    steps: int,
    snapshots: int,
    notes: int = 0,
    loop_seconds: float = 0.0,
    seconds: float = 0.0,
    failure: BaseException | None = None,
    findings: Sequence[str] = (),
) -> str:
    """Return the console summary of a run that ends.

    Args:
        log_dir: The run's directory; None without one.
        tally: Counts of the closed writer.
        steps: Number of steps that the monitor was called with.
        snapshots: Number of snapshots taken.
        notes: Number of notes for the user.
        loop_seconds: Time that the training loop spent in the monitor; s.
        seconds: Duration of the run; s.
        failure: Exception that stopped the writing, if any.
        findings: Lines of what was found.
    """
    where = "" if log_dir is None else f" in {_shown(log_dir)}"
    lines = [
        f"ncp_callbacks: {_count(steps, 'step')}, {_count(snapshots, 'snapshot')}; "
        f"{_count(tally.records, 'record')} and {_count(tally.figures, 'picture')}{where}"
    ]
    if snapshots and seconds > 0:
        lines.append(
            f"  the monitor took {_percent(loop_seconds / seconds)} of the loop's time, "
            f"{loop_seconds:.1f} of {seconds:,.1f} s"
        )
    if failure is not None:
        lines.append(f"  logging STOPPED before the end: {type(failure).__name__}: {failure}")
    lost = [
        f"{_count(number, what)} {why}"
        for number, what, why in (
            (tally.dropped_figures, "picture", "dropped, which came faster than they are drawn"),
            (tally.dropped_records, "record", "dropped, which came faster than they are written"),
            (tally.failed_records, "record", "failed"),
        )
        if number
    ]
    if lost:
        lines.append(f"  lost: {'; '.join(lost)}")
    if tally.embeddings:
        # It reads the Projector's config when it finds a run, and not again.
        what = _count(tally.embeddings, "embedding")
        lines.append(f"  {what}: in the Projector, once TensorBoard is started again")
    if notes:
        lines.append(f"  {_count(notes, 'note')}: monitor.notes, or monitor/notes in TensorBoard")
    lines += findings
    if findings and log_dir is not None:
        lines.append(f"  open it:  {open_command(log_dir)}")
    return "\n".join(lines)


def show(text: str, *, verbose: bool | None = None) -> None:
    """Log a text at INFO, and print it if somebody is likely to read it.

    Args:
        text: The text; nothing happens with "".
        verbose: True to print; None: print in a notebook, or if stderr is a terminal.
    """
    if not text:
        return
    _LOG.info("%s", text)
    notebook = in_notebook()
    # Notebooks show stderr like an error.
    stream = sys.stdout if notebook else sys.stderr
    # A stream that is closed, or a pipe that nobody reads, must not end the training.
    with contextlib.suppress(OSError, ValueError):
        if verbose is None:
            # With logging set up at INFO, the text would appear twice.
            read = notebook or (stream is not None and stream.isatty())
            verbose = read and not _LOG.isEnabledFor(logging.INFO)
        if verbose and not (notebook and _displayed(text)):
            print(text, file=stream, flush=True)


def _displayed(text: str) -> bool:
    """Display a text with clickable links in a notebook; return False if that is impossible."""
    import html

    display = getattr(sys.modules.get("IPython.display"), "display", None)
    if display is None:
        return False
    linked = re.sub(
        r"https?://[^\s<]+",
        lambda m: f'<a href="{m[0]}" target="_blank">{m[0]}</a>',
        html.escape(text),
    )
    page = f'<pre style="white-space: pre-wrap">{linked}</pre>'
    display({"text/plain": text, "text/html": page}, raw=True)
    return True


def in_notebook() -> bool:
    """Return true if this runs in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _program() -> str:
    """Return the command that starts TensorBoard; "" if it is not installed."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    if importlib.util.find_spec("tensorboard"):
        return f"{shlex.quote(sys.executable)} -m tensorboard.main"
    return ""


def _root_and_run(log_dir: PathLike) -> tuple[Path, str]:
    """Return the directory to open and the name that the run then has."""
    run = Path(os.path.abspath(log_dir))
    # TensorBoard searches all subdirectories for runs; these hold too many, or those of others.
    broad = {Path.home(), Path(tempfile.gettempdir()), Path(run.anchor)}
    with contextlib.suppress(OSError):  # the current directory may be gone
        broad.add(Path.cwd())
    return (run, ".") if run.parent in broad else (run.parent, run.name)


def _shown(path: PathLike) -> str:
    """Return a path relative to the current directory if it is inside, or else an absolute one."""
    whole = os.path.abspath(path)
    try:
        relative = os.path.relpath(whole)
    except OSError:  # the current directory is gone
        return whole
    return whole if relative.startswith(os.pardir) else relative


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")
