"""Answer what the interactive page asks for, whoever serves it.

==================================== ==============================================================
``runs``                             names of all runs
``run?run=…&version=…``              what a run has: steps and descriptions of its arrays, steps of
                                     its documents, its scalars; of a known version only what came
                                     since, with that version as ``"since"``
``summary?run=…``                    its scalars at their last step; NaN is null, and infinite
                                     numbers are ``"Infinity"`` and ``"-Infinity"``
``arrays?run=…&tag=…&steps=…``       arrays: length of the header (uint32), the header (JSON),
                                     float32 numbers, all little-endian; those that can't be read
                                     are skipped
``document?run=…&tag=…&step=…``      a JSON document, as ``{"text"}``
==================================== ==============================================================

What is asked for is looked up by name in the index. No path is ever made of a request.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..screen import FORMAT
from .index import Curve, RunSource, Source, Track

__all__ = ["NAMES", "Answer", "answer", "packed", "run_document"]

NAMES = ("runs", "run", "summary", "arrays", "document")
"""Names of what can be asked for."""

JSON, BINARY = "application/json", "application/octet-stream"
_MAX_ARRAYS, _MAX_BYTES = 512, 32 << 20


class Answer(NamedTuple):
    """Hold an answer: the HTTP status, its type and its body."""

    status: int
    type: str
    body: bytes


def answer(source: Source, name: str, arguments: Mapping[str, str]) -> Answer:
    """Answer a request.

    Args:
        source: The log.
        name: What is asked for, one of :data:`NAMES`.
        arguments: The arguments of the request.
    """
    try:
        if name == "runs":
            return _json({"format": FORMAT, "runs": source.names(), "note": source.note})
        if name == "run":
            return _run(source.run(arguments["run"]), arguments.get("version", ""))
        if name == "summary":
            return _json({"scalars": _summary(source.run(arguments["run"]))})
        if name == "arrays":
            return _arrays(source.run(arguments["run"]), arguments)
        if name == "document":
            run, step = source.run(arguments["run"]), int(arguments["step"])
            return _json({"text": run.text(arguments["tag"], step)})
    except (KeyError, ValueError, OSError):
        return _error(404, "there is no such run, array or step")
    return _error(404, "there is nothing of this name")


def run_document(run: RunSource, known: int = 0) -> dict[str, Any]:
    """Return what a run has, as JSON can hold it.

    Another thread may be reading the run: what it adds is of events that the version doesn't count.

    Args:
        run: The run.
        known: Number of the last event that is known; what came after it is returned.
    """
    return {
        "version": run.version,
        "arrays": {
            tag: _track(track, known)
            for tag, track in dict(run.tracks).items()
            if track.about.get("kind") and track.after(known)
        },
        "scalars": {
            tag: points
            for tag, curve in dict(run.curves).items()
            if (points := _curve(curve, known))
        },
        "documents": {
            tag: steps
            for tag, track in dict(run.documents).items()
            if (steps := track.after(known))
        },
    }


def _run(run: RunSource, version: str) -> Answer:
    if version and version == run.version:
        return _json({"version": version})
    known = run.known(version)
    return _json(run_document(run, known) | ({"since": version} if known else {}))


def _track(track: Track, known: int) -> dict[str, Any]:
    steps = track.after(known)
    found: dict[str, Any] = {"steps": steps, "shape": list(track.shape)}
    return found if len(steps) < len(track.places) else found | {"about": track.about}


def _summary(run: RunSource) -> dict[str, Any]:
    """Return the last points of the scalars."""
    found = {}
    for tag, curve in dict(run.curves).items():
        if last := _curve(curve, 0):
            found[tag] = {
                name: part[-1:] if isinstance(part, list) else part for name, part in last.items()
            }
    return found


def _curve(curve: Curve, known: int) -> dict[str, Any]:
    """Return points of a scalar by increasing step; a step logged twice has its last value."""
    points = dict(curve.after(known))
    if not points:
        return {}
    steps = sorted(points)
    found: dict[str, Any] = {"steps": steps, "values": [_number(points[step]) for step in steps]}
    if curve.headline:
        found["headline"] = True
    if curve.low:
        found["low"] = [_number(curve.low.get(step, math.nan)) for step in steps]
        found["high"] = [_number(curve.high.get(step, math.nan)) for step in steps]
    return found


def _number(value: float) -> float | str | None:
    """Return a number as JSON can hold it: NaN is None, and the infinite ones are words."""
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    # Seven digits, as many as float32 has.
    return None if math.isnan(value) else float(f"{value:.7g}")


def _arrays(run: RunSource, arguments: Mapping[str, str]) -> Answer:
    tag = arguments["tag"]
    steps = [int(step) for step in arguments["steps"].split(",")]
    size = math.prod(run.tracks[tag].shape) * 4 * len(steps)
    if len(steps) > _MAX_ARRAYS or size > _MAX_BYTES:
        return _error(413, f"too much at once: ask for at most {_MAX_ARRAYS} steps and 32 MB")
    return Answer(200, BINARY, packed(run, tag, steps))


def packed(run: RunSource, tag: str, steps: list[int]) -> bytes:
    """Return arrays as bytes: length of the header, header, numbers.

    Args:
        run: The run.
        tag: Tag of the arrays.
        steps: Their steps. Those whose array is gone, or damaged, are skipped.
    """
    arrays = {}
    for step in steps:
        with contextlib.suppress(KeyError, OSError, ValueError):
            arrays[step] = run.array(tag, step)
    shapes = [list(array.shape) for array in arrays.values()]
    header = json.dumps({"steps": list(arrays), "shapes": shapes})
    # The numbers begin at a multiple of four, where browsers can use them without a copy.
    head = header.encode() + b" " * (-len(header) % 4)
    numbers = b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in arrays.values())
    return np.array(len(head), "<u4").tobytes() + head + numbers


def _json(content: Any) -> Answer:
    return Answer(200, JSON, json.dumps(content, allow_nan=False).encode())


def _error(status: int, sentence: str) -> Answer:
    return Answer(status, JSON, json.dumps({"error": sentence}).encode())
