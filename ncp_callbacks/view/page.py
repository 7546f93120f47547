"""Make the interactive page: for a server, or as one file that holds its data.

write_page(LogIndex("runs"), "runs.html", runs=["cfc-s0", "cfc-s1"])
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..screen import FORMAT
from .api import packed, run_document
from .index import ChosenRuns, Source
from .static_files import MODULES, START, module_text

__all__ = ["MAX_SNAPSHOTS", "page", "served_page", "write_page", "write_sides"]

MAX_SNAPSHOTS = 60
"""Snapshots of each array that a page holds, spread over the training."""
# Of a comparison, so that its page has some 20 MB at most.
_MAX_RUNS, _MAX_OF_ALL_RUNS = 24, 240

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ncp_callbacks</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
"""
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:\">\n"
)
_IMPORT = re.compile(r"^import (\{[^;]+\}) from '([^']+)';$", re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:const|function|class)) (\w+)", re.MULTILINE)


def served_page() -> str:
    """Return the page of a server, which loads everything from there."""
    return f'{_HEAD}</head><body><script type="module" src="{START}"></script></body></html>\n'


def page(
    source: Source,
    runs: Iterable[str] | None = None,
    *,
    most: int = MAX_SNAPSHOTS,
    dark: bool | None = None,
) -> str:
    """Return one HTML file with the data of runs, which asks nobody for anything.

    Args:
        source: The log.
        runs: Names of runs; None for all.
        most: Largest number of snapshots of each array.
        dark: Whether its ground is dark; None for what the browser prefers.

    Raises:
        KeyError: There is no run of a name.
    """
    data: dict[str, Any] = {"format": FORMAT, "runs": {}, "arrays": {}, "documents": {}}
    for name in source.names() if runs is None else runs:
        run = source.run(name)
        document = run_document(run)
        arrays, texts = document["arrays"], document["documents"]
        for tag in arrays:
            arrays[tag]["steps"] = _spread(arrays[tag]["steps"], most)
        for tag in texts:
            texts[tag] = _spread(texts[tag], most)
        data["runs"][name] = document
        data["arrays"][name] = {
            tag: base64.b64encode(packed(run, tag, found["steps"])).decode()
            for tag, found in arrays.items()
        }
        data["documents"][name] = {
            tag: {step: run.text(tag, step) for step in steps} for tag, steps in texts.items()
        }
    # "</" must not end the element, whatever a run or a feature is called.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    code = "".join(_in_one_script(name) for name in MODULES)
    return (
        f"{_HEAD}{_POLICY}</head><body>"
        f'<script type="application/json" id="data">{text}</script>\n'
        f'<script type="module">\nconst modules = {{}};\n{code}\n'
        "const data = JSON.parse(document.getElementById('data').textContent);\n"
        "const source = new modules['source.js'].EmbeddedSource(data);\n"
        f"modules['index.js'].render({{source, dark: {json.dumps(dark)}}});\n"
        "</script></body></html>\n"
    )


def _spread(steps: list[int], most: int) -> list[int]:
    """Return at most so many steps, from the first to the last."""
    if len(steps) <= most:
        return steps
    chosen = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return [steps[index] for index in chosen]


def _in_one_script(name: str) -> str:
    """Return a module as a part of one script that holds all: a function with names of its own."""

    def imported(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[2]))
        return f"const {match[1]} = modules['{path}'];"

    text = _IMPORT.sub(imported, module_text(name))
    exported = ", ".join(match[2] for match in _EXPORT.finditer(text))
    body = _EXPORT.sub(r"\1 \2", text)
    return f"modules['{name}'] = (() => {{\n{body}\nreturn {{{exported}}};\n}})();\n"


def write_page(
    source: Source,
    path: str | os.PathLike[str],
    runs: Iterable[str] | None = None,
    *,
    most: int = MAX_SNAPSHOTS,
) -> Path:
    """Write :func:`page` into a file, and return its path.

    Args:
        source: The log.
        path: The file.
        runs: Names of runs; None for all.
        most: Largest number of snapshots of each array.

    Raises:
        KeyError: There is no run of a name.
        OSError: The file can't be written.
    """
    where = Path(path).expanduser()
    where.write_text(page(source, runs, most=most), encoding="utf-8")
    return where


def write_sides(sides: Sequence[Mapping[str, Path]], path: Path) -> str:
    """Write the page of runs that are compared, of at most 24 runs.

    Args:
        sides: Folders of runs by name, for each side.
        path: The file.

    Returns:
        Its address from the folder that it is in, which shows the sides side by side. "" if no run
        has arrays: then nothing is written.

    Raises:
        OSError: A run can't be read, or the file can't be written.
    """
    source = ChosenRuns({name: folder for side in sides for name, folder in side.items()})
    names = source.names()[:_MAX_RUNS]
    if not any(t.about.get("kind") for name in names for t in source.run(name).tracks.values()):
        return ""
    write_page(source, path, names, most=min(MAX_SNAPSHOTS, _MAX_OF_ALL_RUNS // len(names)))
    averaged = len(sides) == 2 and max(map(len, sides)) > 1
    shown = {"runs": names if averaged else names[:4], "b": list(sides[1]) if averaged else []}
    return f"{path.name}#{quote(json.dumps(shown))}"
