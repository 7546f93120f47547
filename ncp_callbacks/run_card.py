"""Write the cards ``monitor/run`` and ``monitor/guide`` of a log, in Markdown."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .callback import Callback
from .model import ModelRunner
from .scheduling import Schedule
from .screen import clean_tag

__all__ = ["guide", "run_card"]

# By its title: the project has no address of its own.
_PICTURES = "how to read them: “How to read the pictures”, examples/guide.md of ncp-callbacks"


def run_card(
    runner: ModelRunner,
    callbacks: Iterable[Callback],
    every: Schedule,
    run_config: Mapping[str, Any],
    notes: Sequence[str],
    place: str,
) -> str:
    """Return a description of the run: model, held-out batch, schedules, versions.

    Args:
        runner: Runs the model on the held-out batch.
        callbacks: The callbacks of the run.
        every: The schedule of callbacks without one of their own.
        run_config: Hyper-parameters.
        notes: Sentences for the user.
        place: Where the observer runs, as in "in a process of its own".
    """
    batch, steps, features = runner.held_out.inputs_shape
    hook_points = runner.hook_points
    read = [s for s in hook_points.layers if not s.skipped]
    cells = [f"`{s.name}`" for s in hook_points.cells if not s.skipped]
    layers = [f"layer{i} = `{s.name}` ({s.activation})" for i, s in enumerate(read)]
    versions = ", ".join(f"{name} {_version(name)}" for name in ("ncp-callbacks", "mlx", "numpy"))
    rows = {
        "model": type(runner.model).__name__,
        "elapsed time": runner.calling.time_argument if runner.takes_time else "none",
        "recurrent cells": ", ".join(cells) or "none found",
        "backbone layers": ", ".join(layers) or "none found",
        "target": runner.target.name,
        "held-out batch": f"{batch} sequences × {steps} steps × {features} features"
        + _of_frames(runner),
        "extra passes": "; ".join(filter(None, map(_extra_passes, callbacks))) or "none declared",
        "schedules": ", ".join(_schedule(c, every) for c in callbacks) or "none",
        "observer": f"runs {place}",
        "pictures": _PICTURES,
        "versions": f"{versions}, Python {platform.python_version()}",
    }
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(str(value))} |" for name, value in rows.items()]
    if run_config:
        lines += ["", "Hyper-parameters:", ""]
        lines += [f"    {name} = {value}" for name, value in run_config.items()]
    if notes:
        lines += ["", "Notes:", "", *(f"* {note}" for note in notes)]
    return "\n".join(lines)


def _extra_passes(callback: Callback) -> str:
    """Return the kinds of extra passes that a callback declares; "" for none."""
    kinds = sorted(need.value for need in callback.needs if need.is_extra_pass)
    return f"{callback.name}: {', '.join(kinds)}" if kinds else ""


def _version(distribution: str) -> str:
    from importlib.metadata import (  # Takes longer to import than all else here.
        PackageNotFoundError,
        version,
    )

    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a copy of its source
        return getattr(sys.modules.get(distribution.replace("-", "_")), "__version__", "unknown")


def guide(explained: Mapping[str, str]) -> str:
    """Return a table of the tags of a log.

    Args:
        explained: Descriptions by tag.
    """
    lines = [
        "Everything below is measured on the held-out batch, which is the same at every step.",
        "",
        "| tag | meaning |",
        "|---|---|",
    ]
    lines += [
        f"| `{clean_tag(tag)}` | {_cell(description)} |" for tag, description in explained.items()
    ]
    lines += [
        "",
        "`train/…` and other tags that aren't listed are the training loop's own numbers. In the "
        "dashboards, the tags of callbacks begin with `headline/` or `xai_`, which sorts them "
        "before and behind those of the loop. Some numbers, and all confidence intervals, have no "
        "card of their own: pictures and `ncp-callbacks compare` show them.",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return a text for a table's cell, which a pipe would end."""
    return text.replace("||", "‖").replace("|", "∣")


def _of_frames(runner: ModelRunner) -> str:
    """Return the size of a frame, in words; "" without frames."""
    held_out = runner.held_out
    if not held_out.has_frames:
        return ""
    return f" in frames of {' × '.join(map(str, held_out.frame_shape))}"


def _schedule(callback: Callback, every: Schedule) -> str:
    """Return when a callback analyses."""
    found = f"{callback.name}: {callback.every or every!r}"
    if callback.every_nth == 1:
        return found
    return f"{found} (1 of {callback.every_nth} times, and at the last step)"
