"""Raw arrays and histograms of several runs: how alike is what the models do?

For groups, each measure is also taken among the runs of one side. Sides that differ by more than
their own runs do are different; those that don't may only have had other seeds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..stats.distances import (
    debiased_cka,
    shift,
    top_overlap,
    wasserstein,
    wasserstein_binned,
)
from ..stats.reliability import rank_correlation
from ..stats.state_samples import same_batch
from .comparison import Curve, Measure
from .find import Group
from .reader import Run

__all__ = ["common_looks", "compare_arrays", "feature_names", "feature_share", "time_curves"]

FloatArray: TypeAlias = npt.NDArray[np.float64]

PREFIX = "_ncp/"
# Arrays of states, and of which sequences they are.
_SAMPLE, _HELD_OUT = "_sample", "_held_out"
_CELLS = 0.1  # The share of a map's cells that is its top.
_SAME_ORDER = "1 the same order, 0 unrelated, -1 opposite"
_IN_BOTH = "share that is in both"
_MOVED = "0 the same, 1 nothing in common"


@dataclass(frozen=True)
class _Kind:
    """A measure of two arrays or histograms of runs, None where it can't be taken."""

    name: str
    meaning: str
    of: Callable[[Any, Any], float | None]


def feature_share(strength: FloatArray) -> FloatArray:
    """``(F,)`` shares in a ``(T, F)`` map without signs."""
    total = strength.sum()
    share: FloatArray = strength.sum(axis=0) / total if total > 0 else strength.sum(axis=0)
    return share


def feature_names(run: Run, tag: str) -> list[str] | None:
    """Names for the columns of ``_ncp/<name>_strength``, from the curves of their shares.

    They are known where each feature has a curve; the values must be those of the array.
    """
    group = tag.removeprefix(PREFIX).removesuffix("_strength")
    curves = {
        name.removeprefix(f"{group}_share/"): series
        for name, series in run.scalars.items()
        if name.startswith(f"{group}_share/")
    }
    step = max(run.arrays[tag])
    strength = run.arrays[tag][step]
    if strength.ndim != 2 or len(curves) != strength.shape[1]:
        return None
    at_step = [series.values[series.steps == step] for series in curves.values()]
    if any(values.size == 0 for values in at_step):
        return None
    logged = np.array([values[-1] for values in at_step])
    return list(curves) if np.allclose(logged, feature_share(strength), atol=1e-3) else None


def _kinds(tag: str, shapes: set[tuple[int, ...]], top: int) -> list[_Kind]:
    """What to measure of the arrays of a tag, whose name tells what they are."""
    same, ranks = len(shapes) == 1, {len(shape) for shape in shapes}
    if tag.endswith("_strength") and ranks == {2} and len({s[1] for s in shapes}) == 1:
        features = next(iter(shapes))[1]
        kinds = [
            _Kind("rank correlation of feature shares", _SAME_ORDER,
                  lambda a, b: rank_correlation(feature_share(a), feature_share(b))),
        ]  # fmt: skip
        k = min(top, features // 2)
        if k:
            kinds.append(
                _Kind(f"overlap of the top {k} features (chance: {k / features:.2f})", _IN_BOTH,
                      lambda a, b: top_overlap(feature_share(a), feature_share(b), k))
            )  # fmt: skip
        kinds.append(
            _Kind("shift of feature shares", _MOVED,
                  lambda a, b: shift(feature_share(a), feature_share(b)))
        )  # fmt: skip
        if same:
            kinds += _of_maps(next(iter(shapes)))
        return kinds
    if tag.endswith("_signed") and same and ranks == {2}:
        return [
            _Kind("rank correlation of the signed map", _SAME_ORDER, rank_correlation),
            _Kind("shift of the signed map", "0 the same, 1 opposite or apart", shift),
        ]
    if tag.endswith("_by_step") and same and ranks == {1}:
        return [
            _Kind("rank correlation of steps", _SAME_ORDER, rank_correlation),
            _Kind("shift over steps", "0 the same, 1 opposite or apart", shift),
        ]
    if tag.endswith("_spectrum") and ranks == {1}:
        return [_Kind("shift of the spectrum", _MOVED, _shift_padded)]
    if tag.endswith("_unit_speed_max") and ranks == {1}:
        # Units of two networks don't correspond; how many are fast and how many slow does.
        return [_Kind("W1 of the units' top speeds", "0 the same; in state / time", wasserstein)]
    if tag.endswith("_curve") and ranks == {2} and {s[0] for s in shapes} == {3}:
        return [_Kind("largest gap of RMS change", "0 the same; in the target's unit", _gap)]
    if same:
        return [
            _Kind("rank correlation", _SAME_ORDER, rank_correlation),
            _Kind("shift", _MOVED, shift),
        ]
    return []


def _of_samples(shapes: set[tuple[int, ...]]) -> list[_Kind]:
    """What to measure of states at the same places, of networks of any size."""
    if {len(shape) for shape in shapes} != {2} or len({shape[0] for shape in shapes}) != 1:
        return []
    # With few places the usual CKA is high for any two networks with many units.
    return [_Kind("debiased linear CKA", "1 the same up to rotation, 0 unrelated", debiased_cka)]


def _of_maps(shape: tuple[int, ...]) -> list[_Kind]:
    cells = int(np.prod(shape))
    k = max(1, round(_CELLS * cells))
    return [
        _Kind("rank correlation of the map", _SAME_ORDER, rank_correlation),
        _Kind(f"overlap of the top {_CELLS:.0%} of cells (chance: {k / cells:.2f})", _IN_BOTH,
              lambda a, b: top_overlap(a, b, k)),
        _Kind("shift of the map", _MOVED, shift),
    ]  # fmt: skip


def _shift_padded(a: FloatArray, b: FloatArray) -> float | None:
    size = max(a.size, b.size)
    return shift(np.pad(a, (0, size - a.size)), np.pad(b, (0, size - b.size)))


def _gap(a: FloatArray, b: FloatArray) -> float | None:
    _, of_a, of_b = np.intersect1d(a[0], b[0], return_indices=True)
    gaps = np.abs(a[1, of_a] - b[1, of_b])
    return float(gaps.max()) if gaps.size and np.isfinite(gaps).all() else None


def common_looks(
    groups: Sequence[Group], looks: Callable[[Run], Mapping[int, Any]], until: int
) -> list[list[tuple[int, int]]] | None:
    """For each side and run, the first look and the one to compare.

    The compared look is the last that all runs made at the same step, up to ``until``; where there
    is none, each run's own last. None where a run has no look up to ``until``.
    """
    made = [[[s for s in looks(run) if s <= until] for run in group.runs] for group in groups]
    if not all(steps for side in made for steps in side):
        return None
    common = set.intersection(*(set(steps) for side in made for steps in side))
    return [
        [(min(steps), max(common) if common else max(steps)) for steps in side] for side in made
    ]


def compare_arrays(
    groups: Sequence[Group], wanted: Callable[[str], bool], *, until: int, top: int
) -> tuple[list[Measure], list[str]]:
    """Measures of all raw arrays and histograms that all runs have, and what can't be compared."""
    measures: list[Measure] = []
    notes: list[str] = []
    shared = _shared(groups, "arrays")
    batches = {
        tag: of
        for tag in shared
        if tag.endswith(_SAMPLE) and (of := tag.removesuffix(_SAMPLE) + _HELD_OUT) in shared
    }
    for tag in shared:
        if tag in batches.values() or not (wanted(tag) or wanted(tag.removeprefix(PREFIX))):
            continue
        why = _other_batches(groups, tag, batches[tag], until) if tag in batches else None
        kinds = _of_samples if tag in batches else functools.partial(_kinds, tag, top=top)
        found = [] if why else _measured(groups, "arrays", tag, until, kinds)
        measures += found
        if not found:
            notes.append(f"{tag} can't be compared: {why or _why(groups, tag, until)}")
    for tag in _shared(groups, "histograms"):
        if wanted(tag):
            measures += _measured(groups, "histograms", tag, until, _of_histograms)
    return measures, notes


def _shared(groups: Sequence[Group], kind: str) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    return [tag for tag in getattr(runs[0], kind) if all(tag in getattr(r, kind) for r in runs)]


def _why(groups: Sequence[Group], tag: str, until: int) -> str:
    if common_looks(groups, lambda run: run.arrays[tag], until) is None:
        return f"not all runs have it up to step {until:,}"
    last = {
        run.name: "x".join(map(str, run.arrays[tag][max(run.arrays[tag])].shape))
        for group in groups
        for run in group.runs
    }
    return "it is " + ", ".join(f"{shape} in {name}" for name, shape in last.items())


def _other_batches(groups: Sequence[Group], tag: str, batch: str, until: int) -> str | None:
    """That runs looked at different sequences, at the looks that would be compared."""
    looks = common_looks(groups, lambda run: run.arrays[tag], until)
    if looks is None:
        return None
    seen: list[tuple[list[FloatArray], list[str]]] = []
    for group, side in zip(groups, looks, strict=True):
        for run, steps in zip(group.runs, side, strict=True):
            marks = run.arrays[batch]
            for step in steps:
                mark = marks.get(step, marks[max(marks)])
                known, names = next(
                    (s for s in seen if all(same_batch(mark, other) for other in s[0])), ([], [])
                )
                if not known:
                    seen.append((known, names))
                known.append(mark)
                if run.name not in names:
                    names.append(run.name)
    if len(seen) < 2:
        return None
    return f"different held-out batches ({' / '.join(', '.join(names) for _, names in seen)})"


def _of_histograms(shapes: object) -> list[_Kind]:
    return [_Kind("W1 of the histogram", "0 the same; in its unit", wasserstein_binned)]


def _measured(
    groups: Sequence[Group],
    kind: str,
    tag: str,
    until: int,
    kinds: Callable[[set[tuple[int, ...]]], list[_Kind]],
) -> list[Measure]:
    looks = common_looks(groups, lambda run: getattr(run, kind)[tag], until)
    if looks is None:
        return []
    pairs = [
        [(getattr(r, kind)[tag][first], getattr(r, kind)[tag][at]) for r, (first, at) in
         zip(group.runs, side, strict=True)]
        for group, side in zip(groups, looks, strict=True)
    ]  # fmt: skip
    shapes: set[tuple[int, ...]] = set()
    if kind == "arrays":
        shapes = {array.shape for side in pairs for pair in side for array in pair}
    now = [[at for _, at in side] for side in pairs]
    steps = tuple((min(f for f, _ in side), max(a for _, a in side)) for side in looks)
    moved = [any(first != at for first, at in side) for side in looks]
    return [
        Measure(
            tag.removeprefix(PREFIX),
            k.name,
            k.meaning,
            tuple(_mean(k.of(a, b) for a in now[0] for b in side) for side in now[1:]),
            tuple(_mean(itertools.starmap(k.of, itertools.combinations(s, 2))) for s in now),
            tuple(
                _mean(itertools.starmap(k.of, side)) if any_moved else None
                for side, any_moved in zip(pairs, moved, strict=True)
            ),
            steps,
        )
        for k in kinds(shapes)
    ]


def _mean(values: Iterator[float | None] | Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def time_curves(
    groups: Sequence[Group], wanted: Callable[[str], bool], *, until: int
) -> list[Curve]:
    """The curves of ``time_delta`` at the compared look, at the factors that all runs have."""
    curves = []
    for tag in _shared(groups, "arrays"):
        looks = common_looks(groups, lambda run, tag=tag: run.arrays[tag], until)  # type: ignore[misc]
        name = tag.removeprefix(PREFIX).removesuffix("_curve")
        if (
            looks is None
            or not tag.endswith("_curve")
            or not (wanted(tag) or wanted(f"{name}_curve"))
        ):
            continue
        tables = [
            [run.arrays[tag][at] for run, (_, at) in zip(group.runs, side, strict=True)]
            for group, side in zip(groups, looks, strict=True)
        ]
        every = [table for side in tables for table in side]
        if any(table.ndim != 2 or len(table) != 3 for table in every):
            continue
        scales = [s for s in every[0][0].tolist() if all(s in table[0] for table in every)]
        if len(scales) < 2:
            continue
        rms = tuple(
            tuple(
                tuple(float(table[1][table[0] == scale][0]) for scale in scales) for table in side
            )
            for side in tables
        )
        curves.append(Curve(name, tuple(scales), rms))
    return curves
