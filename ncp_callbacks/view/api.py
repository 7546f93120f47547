"""Answer what the interactive page asks for, whoever serves it.

==================================== ==============================================================
``runs``                             names of all runs
``run?run=…&version=…``              what a run has: steps and descriptions of its arrays, its
                                     scalars, and documents; only ``{"version"}`` if nothing is new
``summary?run=…``                    its scalars that a table of runs shows, at their last step
``arrays?run=…&tag=…&steps=…``       arrays: length of the header (uint32), the header (JSON),
                                     float32 numbers, all little-endian
==================================== ==============================================================

What is asked for is looked up by name in the index. No path is ever made of a request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..runs.tags import VALIDATION
from ..screen import FORMAT
from .index import Curve, RunSource, Source

__all__ = ["Answer", "answer", "run_document"]

JSON, BINARY = "application/json", "application/octet-stream"
_MAX_ARRAYS, _MAX_BYTES = 512, 32 << 20
# Numbers of the monitor itself, which no view shows.
_ASIDE = ("monitor/",)
_MAX_DOCUMENTS = 200


class Answer(NamedTuple):
    """Hold an answer: the HTTP status, its type and its body."""

    status: int
    type: str
    body: bytes


def answer(source: Source, name: str, arguments: Mapping[str, str]) -> Answer:
    """Answer a request.

    Args:
        source: The log.
        name: What is asked for: ``runs``, ``run``, ``summary`` or ``arrays``.
        arguments: The arguments of the request.
    """
    try:
        if name == "runs":
            return _json({"format": FORMAT, "runs": source.names(), "note": source.note})
        if name == "run":
            return _run(source.run(arguments["run"]), arguments.get("version"))
        if name == "summary":
            return _json({"scalars": _summary(source.run(arguments["run"]))})
        if name == "arrays":
            return _arrays(source.run(arguments["run"]), arguments)
    except (KeyError, ValueError, OSError):
        return _error(404, "there is no such run, array or step")
    return _error(404, "there is nothing of this name")


def run_document(run: RunSource) -> dict[str, Any]:
    """Return what a run has, as JSON can hold it.

    Args:
        run: The run.
    """
    return {
        "version": run.version,
        "arrays": {
            tag: {"steps": sorted(track.places), "shape": list(track.shape), "about": track.about}
            for tag, track in run.tracks.items()
            if track.about.get("kind") and track.places
        },
        "scalars": {
            tag: _curve(curve)
            for tag, curve in run.curves.items()
            if not tag.startswith(_ASIDE) and curve.steps
        },
        "documents": {
            tag: [[step, document.texts[step]] for step in sorted(document.texts)[-_MAX_DOCUMENTS:]]
            for tag, document in run.documents.items()
        },
    }


def _run(run: RunSource, known: str | None) -> Answer:
    if known is not None and known == run.version:
        return _json({"version": known})
    return _json(run_document(run))


def _summary(run: RunSource) -> dict[str, Any]:
    """Return the last points of the numbers that a table of runs shows."""
    found = {}
    for tag, curve in run.curves.items():
        if curve.steps and (curve.headline or tag == "train/loss" or VALIDATION.match(tag)):
            last = _curve(curve)
            found[tag] = {
                name: part[-1:] if isinstance(part, list) else part for name, part in last.items()
            }
    return found


def _curve(curve: Curve) -> dict[str, Any]:
    """Return the points of a scalar by increasing step; a step logged twice has its last value."""
    points = dict(zip(curve.steps, curve.values, strict=False))
    steps = sorted(points)
    found: dict[str, Any] = {"steps": steps, "values": [_finite(points[step]) for step in steps]}
    if curve.headline:
        found["headline"] = True
    if curve.low:
        found["low"] = [_finite(curve.low.get(step, math.nan)) for step in steps]
        found["high"] = [_finite(curve.high.get(step, math.nan)) for step in steps]
    return found


def _finite(value: float) -> float | None:
    # Seven digits, as many as float32 has.
    return float(f"{value:.7g}") if math.isfinite(value) else None


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
        steps: Their steps.

    Raises:
        KeyError, OSError, ValueError: There is no such array.
    """
    arrays = [run.array(tag, step) for step in steps]
    header = json.dumps({"steps": steps, "shapes": [list(array.shape) for array in arrays]})
    # The numbers begin at a multiple of four, where browsers can use them without a copy.
    head = header.encode() + b" " * (-len(header) % 4)
    numbers = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    return np.array(len(head), "<u4").tobytes() + head + numbers


def _json(content: Any) -> Answer:
    return Answer(200, JSON, json.dumps(content, allow_nan=False).encode())


def _error(status: int, sentence: str) -> Answer:
    return Answer(status, JSON, json.dumps({"error": sentence}).encode())
