"""Tell what runs were analysed on, so that only like is subtracted from like.

A run logs the document ``_ncp/fingerprint``, a JSON object with

* ``held_out``: a hash of the held-out batch, its columns in the order of their names;
* ``method``: for each callback what its numbers depend on beside, such as the attribution method;
* ``target``: what is attributed;
* ``feature_names``: names of the columns.

A run without it may hold an array of the kind ``held out batch``, which tells its batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..screen import FINGERPRINT
from ..stats.state_samples import same_batch
from .comparison import Condition
from .declared import HELD_OUT, Declared
from .find import Group, all_runs
from .reader import Run
from .tags import TRAINING, VALIDATION, short
from .words import listed

__all__ = ["Fingerprint", "commensurable", "compare_fingerprints", "read_fingerprint"]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Hold what a run was analysed on; None for what isn't known."""

    held_out: str | None = None
    marks: npt.NDArray[np.float64] | None = None
    method: Mapping[str, str] | None = None
    target: str | None = None
    feature_names: tuple[str, ...] | None = None


def read_fingerprint(run: Run) -> Fingerprint:
    """Return the fingerprint that a run logged last; what can't be understood is not known."""
    try:
        found = json.loads([*run.texts.get(FINGERPRINT, {}).values()][-1])
    except (IndexError, ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    held_out, names, target = (found.get(k) for k in ("held_out", "feature_names", "target"))
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    tags = (tag for tag in run.arrays if Declared.of([run], tag).kind == HELD_OUT)
    marks = min(tags, key=len, default=None)
    return Fingerprint(
        held_out if isinstance(held_out, str) else None,
        None if marks is None else list(run.arrays[marks].values())[-1],
        _texts(found.get("method")),
        target if isinstance(target, str) else None,
        tuple(names) if names and known and len(set(names)) == len(names) else None,
    )


def _texts(found: Any) -> dict[str, str] | None:
    known = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if known else None


def compare_fingerprints(groups: Sequence[Group]) -> tuple[Condition, ...]:
    """Compare the conditions of each side with those of the first."""
    prints = {run: read_fingerprint(run) for run in all_runs(groups)}
    first, *others = groups[0].runs
    of_first = prints[first]
    sides = [[*others, *group.runs] for group in groups[1:]]
    conditions = []
    for name, same, detail in _CONDITIONS:
        found = [{run: same(of_first, prints[run]) for run in side} for side in sides]
        different = {run: prints[run] for side in found for run, ok in side.items() if ok is False}
        callbacks = [
            [c for run in side if run in different for c in _differing(of_first, prints[run])]
            for side in sides
        ]
        conditions.append(
            Condition(
                name,
                tuple(
                    False if False in side.values() else None if None in side.values() else True
                    for side in found
                ),
                tuple(dict.fromkeys(run.name for run in different)),
                tuple(dict.fromkeys(detail(of_first, other) for other in different.values())),
                tuple(tuple(dict.fromkeys(c)) if name == "method" else () for c in callbacks),
            )
        )
    return tuple(conditions)


def commensurable(conditions: Sequence[Condition], side: int, tag: str) -> bool:
    """Return False where a tag of the first side must not be subtracted from that of another.

    What a callback measured depends on the held-out batch, on the target and on the callback's own
    method. Validation numbers depend on the batch, training numbers on none of them. What isn't
    known is taken to be the same, which the answer tells.

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
    if differ & {"held-out batch", "target"}:
        return False
    callbacks = [name for condition in conditions for name in condition.callbacks[side]]
    return not any(re.match(rf"{re.escape(name)}([/_]|$)", short(tag)) for name in callbacks)


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


def _same_target(a: Fingerprint, b: Fingerprint) -> bool | None:
    return None if a.target is None or b.target is None else a.target == b.target


def _same_method(a: Fingerprint, b: Fingerprint) -> bool | None:
    return None if a.method is None or b.method is None else not _differing(a, b)


def _differing(a: Fingerprint, b: Fingerprint) -> list[str]:
    """Return the callbacks that both runs have, under different conditions."""
    of_a, of_b = a.method or {}, b.method or {}
    return [name for name in of_a if of_a[name] != of_b.get(name, of_a[name])]


def _detail_of_method(a: Fingerprint, b: Fingerprint) -> str:
    name = _differing(a, b)[0]
    of_a, of_b = a.method or {}, b.method or {}
    return f"{name} by {of_b[name]} instead of {of_a[name]}"


def _same_names(a: Fingerprint, b: Fingerprint) -> bool | None:
    """Compare names whatever their order, in which maps are matched."""
    if a.feature_names is None or b.feature_names is None:
        return None
    return set(a.feature_names) == set(b.feature_names)


def _detail_of_names(a: Fingerprint, b: Fingerprint) -> str:
    of_a, of_b = a.feature_names or (), b.feature_names or ()
    more = [name for name in of_b if name not in of_a]
    fewer = [name for name in of_a if name not in of_b]
    if more and fewer:
        return f"{listed(more, 3)} instead of {listed(fewer, 3)}"
    return f"with {listed(more, 3)}" if more else f"without {listed(fewer, 3)}"


# For each condition: its verdict on two runs, and a clause on how they differ.
_CONDITIONS: tuple[
    tuple[
        str,
        Callable[[Fingerprint, Fingerprint], bool | None],
        Callable[[Fingerprint, Fingerprint], str],
    ],
    ...,
] = (
    ("held-out batch", _same_batch, lambda a, b: ""),
    ("method", _same_method, _detail_of_method),
    ("target", _same_target, lambda a, b: f"{b.target} instead of {a.target}"),
    ("feature names", _same_names, _detail_of_names),
)
