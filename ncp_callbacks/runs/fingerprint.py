"""Tell what runs were analysed on, so that only like is subtracted from like.

A run logs the text ``about/fingerprint``, a JSON object with

* ``held_out``: a hash of the held-out batch, its columns in the order of their names;
* ``method``: the attribution method, or an object with the method of each group of tags;
* ``target``: what is attributed;
* ``feature_names``: names of the columns.

A run without it may hold an array that tells its batch, ``_ncp/held_out`` or ``_ncp/…_held_out``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.state_samples import same_batch
from .comparison import Condition
from .find import Group, all_runs
from .reader import Run
from .tags import HELD_OUT, TRAINING, VALIDATION

__all__ = ["Fingerprint", "commensurable", "compare_fingerprints", "read_fingerprint"]

FINGERPRINT = "about/fingerprint"


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Hold what a run was analysed on; None for what isn't known."""

    held_out: str | None = None
    marks: npt.NDArray[np.float64] | None = None
    method: Any = None
    target: Any = None
    feature_names: tuple[str, ...] | None = None


def read_fingerprint(run: Run) -> Fingerprint:
    """Return the fingerprint that a run logged last; what can't be understood is not known."""
    try:
        found = json.loads([*run.texts.get(FINGERPRINT, {}).values()][-1])
    except (IndexError, ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    held_out, names = found.get("held_out"), found.get("feature_names")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    marks = min((tag for tag in run.arrays if HELD_OUT.fullmatch(tag)), key=len, default=None)
    return Fingerprint(
        held_out if isinstance(held_out, str) else None,
        None if marks is None else list(run.arrays[marks].values())[-1],
        found.get("method"),
        found.get("target"),
        tuple(names) if names and known and len(set(names)) == len(names) else None,
    )


def compare_fingerprints(groups: Sequence[Group]) -> tuple[Condition, ...]:
    """Compare the conditions of each side with those of the first."""
    prints = {run: read_fingerprint(run) for run in all_runs(groups)}
    reference, *others = groups[0].runs
    conditions = []
    for name, same in (
        ("held-out batch", _same_batch),
        ("method", lambda a, b: _same_value(a.method, b.method)),
        ("target", lambda a, b: _same_value(a.target, b.target)),
        ("feature names", _same_names),
    ):
        found = [
            {run.name: same(prints[reference], prints[run]) for run in (*others, *group.runs)}
            for group in groups[1:]
        ]
        verdicts = [
            False if False in side.values() else None if None in side.values() else True
            for side in found
        ]
        different = [run for side in found for run, verdict in side.items() if verdict is False]
        conditions.append(Condition(name, tuple(verdicts), tuple(dict.fromkeys(different))))
    return tuple(conditions)


def commensurable(conditions: Sequence[Condition], side: int, tag: str) -> bool:
    """Return False where a tag of the first side must not be subtracted from that of another.

    What a callback measured depends on the held-out batch, the method and the target. Validation
    numbers depend on the batch, training numbers on none of them. What isn't known is taken to be
    the same, which the answer tells.

    Args:
        conditions: From :func:`compare_fingerprints`.
        side: Index of the other side in ``Condition.same``.
        tag: Tag of a scalar, an array or a histogram.
    """
    if TRAINING.match(tag):
        return True
    differ = {condition.name for condition in conditions if condition.same[side] is False}
    if VALIDATION.match(tag) or tag == "loss":
        return "held-out batch" not in differ
    return not differ & {"held-out batch", "method", "target"}


def _same_batch(a: Fingerprint, b: Fingerprint) -> bool | None:
    if a.held_out is not None and b.held_out is not None:
        return a.held_out == b.held_out
    if a.marks is None or b.marks is None:
        return None
    if a.feature_names != b.feature_names and _same_names(a, b):
        return None  # The array depends on the order of the columns.
    if a.marks.shape == b.marks.shape == (2, 8):
        return same_batch(a.marks, b.marks)
    return a.marks.shape == b.marks.shape and np.allclose(
        a.marks, b.marks, atol=1e-5, equal_nan=True
    )


def _same_value(a: Any, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    if isinstance(a, dict) and isinstance(b, dict):
        return all(a[group] == b[group] for group in a.keys() & b.keys())
    return bool(a == b)


def _same_names(a: Fingerprint, b: Fingerprint) -> bool | None:
    """Compare names whatever their order, in which maps are matched."""
    if a.feature_names is None or b.feature_names is None:
        return None
    return set(a.feature_names) == set(b.feature_names)
