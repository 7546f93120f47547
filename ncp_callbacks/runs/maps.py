"""Compare the raw arrays and histograms of several runs.

For groups, each measure is also taken among the runs of one side. Sides that differ by more than
their own runs do are different; others may only have had other seeds.

Maps are matched by the names of their features where these are known, else by column.
"""

from __future__ import annotations

import functools
import itertools
import re
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
from .comparison import Curve, Measure
from .find import Group
from .fingerprint import HELD_OUT, read_fingerprint
from .reader import Run

__all__ = [
    "PREFIX",
    "Features",
    "common_snapshots",
    "compare_arrays",
    "feature_shares",
    "time_curves",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Commensurable: TypeAlias = Callable[[int, str], bool]

PREFIX = "_ncp/"
ELAPSED_TIME = "elapsed time"
# Arrays of states, and of the batch that they belong to.
_SAMPLE, _HELD_OUT = "_sample", "_held_out"
_BY_FEATURE = re.compile(r".*_(strength|signed|local|sample_\d+)$")
# Units of two networks don't correspond; how many have which value does.
_OF_UNITS = re.compile(
    r".*(_unit_speed_max|time_constants\S*_median|dynamics\S*_(autocorrelation|target_correlation))$"
)
_CELLS = 0.1  # The share of a map's cells that is its top.
_SAME_ORDER = "1 the same order, 0 unrelated, -1 opposite"
_IN_BOTH = "share that is in both"
_MOVED = "0 the same, 1 nothing in common"


@dataclass(frozen=True)
class _Kind:
    """Describe a measure of two arrays or histograms, which is None where it can't be computed."""

    name: str
    meaning: str
    of: Callable[[Any, Any], float | None]


class Features:
    """Match the features of runs by name.

    Attributes:
        names: Names in the order of the first run; None where no run of the first side has names.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._of = {
            run: read_fingerprint(run).feature_names for group in groups for run in group.runs
        }
        self.names = self._of[groups[0].runs[0]]
        self._matched = [
            all(self._matches(run) for run in (*groups[0].runs, *group.runs)) for group in groups
        ]

    def _matches(self, run: Run) -> bool:
        names = self._of[run]
        if names is None or self.names is None:
            return names is self.names is None
        return set(names) == set(self.names)

    def matched(self, side: int) -> bool:
        """Return False where a side has other names than the first, or only one of both has any."""
        return self._matched[side]

    def axes(self, tag: str, shape: tuple[int, ...]) -> tuple[list[str] | None, ...]:
        """Return names for the two axes of a map, None for an axis that isn't of features."""
        names = self.names
        if is_interactions(tag):
            known = self._with_time(list(names), shape[0]) if names else None
            labels = known or [f"feature {i}" for i in range(shape[0])]
            return labels, labels
        return None, list(names) if names and len(names) == shape[1] else None

    def ordered(self, run: Run, tag: str, array: FloatArray) -> FloatArray | None:
        """Return an array with its features in the order of the first run; None if they can't be.

        Args:
            run: The run that logged it.
            tag: Its tag.
            array: A map by feature, ``(T, F)`` or ``(F, F)``, or any other array, which is
                returned as it is.
        """
        names = self._of[run]
        if names is None or self.names is None or names == self.names or array.ndim != 2:
            return array
        if set(names) != set(self.names):
            return array
        order = [names.index(name) for name in self.names]
        if is_interactions(tag):
            if len(array) - len(order) not in (0, 1):
                return None  # Groups of features, which the names don't tell.
            every = [*order, *range(len(order), len(array))]
            return array[np.ix_(every, every)]
        if _BY_FEATURE.match(tag) and array.shape[1] == len(order):
            return array[:, order]
        if tag.startswith(f"{PREFIX}wiring") and len(array) >= len(order):
            return array[[*order, *range(len(order), len(array))]]
        return array

    @staticmethod
    def _with_time(names: list[str], size: int) -> list[str] | None:
        found = [*names, ELAPSED_TIME][:size]
        return found if len(found) == size and size >= len(names) else None


def is_interactions(tag: str) -> bool:
    """Return True for maps of feature × feature."""
    return tag.removeprefix(PREFIX).startswith("interactions")


def _feature_share(strength: FloatArray) -> FloatArray:
    """Return the ``(F,)`` shares in a ``(T, F)`` map without signs."""
    total = strength.sum()
    share: FloatArray = strength.sum(axis=0) / total if total > 0 else strength.sum(axis=0)
    return share


def feature_shares(run: Run, until: int) -> dict[str, float]:
    """Return the share of each feature in a run's attribution at its last snapshot.

    Empty without an attribution map whose sum is finite and above 0.
    """
    tags = [t for t in run.arrays if t.endswith("_strength") and not is_interactions(t)]
    tag = f"{PREFIX}attribution_strength"
    tag = tag if tag in tags else next(iter(tags), "")
    steps = [step for step in run.arrays.get(tag, {}) if step <= until]
    strength = run.arrays[tag][max(steps)] if steps else np.zeros((0, 0))
    if strength.ndim != 2 or not 0 < strength.sum() < np.inf:
        return {}
    names = read_fingerprint(run).feature_names
    if names is None or len(names) != strength.shape[1]:
        names = tuple(f"feature {i}" for i in range(strength.shape[1]))
    return dict(zip(names, _feature_share(strength).tolist(), strict=True))


def _kinds(tag: str, shapes: set[tuple[int, ...]], top: int) -> list[_Kind]:
    """Return the measures of the arrays of a tag, whose name tells what they are."""
    same, ranks = len(shapes) == 1, {len(shape) for shape in shapes}
    if (
        tag.endswith("_strength")
        and not is_interactions(tag)
        and ranks == {2}
        and len({s[1] for s in shapes}) == 1
    ):
        features = next(iter(shapes))[1]
        kinds = [
            _Kind("rank correlation of feature shares", _SAME_ORDER,
                  lambda a, b: rank_correlation(_feature_share(a), _feature_share(b))),
        ]  # fmt: skip
        k = min(top, features // 2)
        if k:
            kinds.append(
                _Kind(f"overlap of the top {k} features (chance: {k / features:.2f})", _IN_BOTH,
                      lambda a, b: top_overlap(_feature_share(a), _feature_share(b), k))
            )  # fmt: skip
        kinds.append(
            _Kind("shift of feature shares", _MOVED,
                  lambda a, b: shift(_feature_share(a), _feature_share(b)))
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
            _Kind("rank correlation of time steps", _SAME_ORDER, rank_correlation),
            _Kind("shift over time steps", "0 the same, 1 opposite or apart", shift),
        ]
    if tag.endswith("_spectrum") and ranks == {1}:
        return [_Kind("shift of the spectrum", _MOVED, _shift_padded)]
    if _OF_UNITS.match(tag) and ranks == {1}:
        return [_Kind("W1 over units", "0 the same; in its unit", wasserstein)]
    if tag.endswith("_curve") and ranks == {2} and {s[0] for s in shapes} == {3}:
        return [_Kind("largest gap of RMS change", "0 the same; in the target's unit", _gap)]
    if same:
        return [
            _Kind("rank correlation", _SAME_ORDER, rank_correlation),
            _Kind("shift", _MOVED, shift),
        ]
    return []


def _of_samples(shapes: set[tuple[int, ...]]) -> list[_Kind]:
    """Return the measures of states at the same places, of networks of any size."""
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


def common_snapshots(
    groups: Sequence[Group], made: Callable[[Run], Mapping[int, Any]], until: int
) -> list[list[tuple[int, int]]] | None:
    """Return for each side and run the step of its first snapshot and of the one to compare.

    The compared snapshot is the last that all runs made at the same step, up to ``until``; where
    there is none, each run's own last. None where a run has no snapshot up to ``until``.
    """
    steps = [[[s for s in made(run) if s <= until] for run in group.runs] for group in groups]
    if not all(of_run for side in steps for of_run in side):
        return None
    common = set.intersection(*(set(of_run) for side in steps for of_run in side))
    return [
        [(min(of_run), max(common) if common else max(of_run)) for of_run in side] for side in steps
    ]


def compare_arrays(
    groups: Sequence[Group],
    features: Features,
    commensurable: Commensurable,
    *,
    until: int,
    top: int,
) -> tuple[list[Measure], list[str]]:
    """Return measures of the arrays and histograms that all runs have, and what has none."""
    measures: list[Measure] = []
    notes: list[str] = []
    others = range(1, len(groups))
    unmatched = [groups[side].name for side in others if not features.matched(side)]
    if unmatched:
        notes.append(
            f"maps by feature are not compared for {', '.join(unmatched)}: the names of the "
            f"features are not those of {groups[0].name}, or are known on one side only"
        )

    def allowed(side: int, tag: str) -> bool:
        by_feature = _BY_FEATURE.match(tag) or tag.startswith(f"{PREFIX}wiring")
        return commensurable(side, tag) and (features.matched(side + 1) or not by_feature)

    shared = _shared(groups, "arrays")
    for tag in shared:
        if HELD_OUT.fullmatch(tag):
            continue
        batch = tag.removesuffix(_SAMPLE) + _HELD_OUT
        sample = tag.endswith(_SAMPLE) and batch in shared
        kinds = _of_samples if sample else functools.partial(_kinds, tag, top=top)
        found = _measured(groups, "arrays", tag, until, kinds, features, allowed)
        measures += found
        if not found and any(allowed(side - 1, tag) for side in others):
            notes.append(f"{tag} can't be compared: {_why(groups, tag, until)}")
    for tag in _shared(groups, "histograms"):
        measures += _measured(groups, "histograms", tag, until, _of_histograms, features, allowed)
    return measures, notes


def _shared(groups: Sequence[Group], kind: str) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    return [tag for tag in getattr(runs[0], kind) if all(tag in getattr(r, kind) for r in runs)]


def _why(groups: Sequence[Group], tag: str, until: int) -> str:
    if common_snapshots(groups, lambda run: run.arrays[tag], until) is None:
        return f"not all runs have it up to step {until:,}"
    holders: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        shape = "x".join(map(str, run.arrays[tag][max(run.arrays[tag])].shape))
        holders.setdefault(shape, []).append(run.name)
    named = (
        f"{shape} in {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for shape, names in holders.items()
    )
    return f"its shape is {', '.join(named)}"


def _of_histograms(shapes: object) -> list[_Kind]:
    return [_Kind("W1 of the histogram", "0 the same; in its unit", wasserstein_binned)]


def _measured(
    groups: Sequence[Group],
    kind: str,
    tag: str,
    until: int,
    kinds: Callable[[set[tuple[int, ...]]], list[_Kind]],
    features: Features,
    allowed: Commensurable,
) -> list[Measure]:
    use = [0, *(side for side in range(1, len(groups)) if allowed(side - 1, tag))]
    sides = [groups[side] for side in use]
    steps = common_snapshots(sides, lambda run: getattr(run, kind)[tag], until)
    if steps is None or len(use) < 2:
        return []

    def at(run: Run, step: int) -> Any:
        found = getattr(run, kind)[tag][step]
        return features.ordered(run, tag, found) if kind == "arrays" else found

    pairs = [
        [(at(run, first), at(run, now)) for run, (first, now) in zip(group.runs, side, strict=True)]
        for group, side in zip(sides, steps, strict=True)
    ]
    every = [one for side in pairs for pair in side for one in pair]
    if any(one is None for one in every):
        return []
    shapes = {array.shape for array in every} if kind == "arrays" else set()
    now = [[last for _, last in side] for side in pairs]
    moved = [any(first != last for first, last in side) for side in steps]
    measures = []
    for k in kinds(shapes):
        between = [_mean(k.of(a, b) for a in now[0] for b in side) for side in now[1:]]
        within = [_mean(itertools.starmap(k.of, itertools.combinations(s, 2))) for s in now]
        drift = [
            _mean(itertools.starmap(k.of, side)) if any_moved else None
            for side, any_moved in zip(pairs, moved, strict=True)
        ]
        measures.append(
            Measure(
                tag.removeprefix(PREFIX),
                k.name,
                k.meaning,
                _placed(between, [side - 1 for side in use[1:]], len(groups) - 1),
                _placed(within, use, len(groups)),
                _placed(drift, use, len(groups)),
                tuple((min(f for f, _ in side), max(a for _, a in side)) for side in steps),
            )
        )
    return measures


def _placed(
    values: Sequence[float | None], places: Sequence[int], size: int
) -> tuple[float | None, ...]:
    """Return ``size`` values, None at other places."""
    known = dict(zip(places, values, strict=True))
    return tuple(known.get(place) for place in range(size))


def _mean(values: Iterator[float | None] | Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def time_curves(groups: Sequence[Group], *, until: int) -> list[Curve]:
    """Return the curves of ``time_delta`` at the compared snapshot and at common factors."""
    curves = []
    for tag in [tag for tag in _shared(groups, "arrays") if tag.endswith("_curve")]:
        steps = common_snapshots(groups, lambda run, tag=tag: run.arrays[tag], until)  # type: ignore[misc]
        if steps is None:
            continue
        tables = [
            [run.arrays[tag][at] for run, (_, at) in zip(group.runs, side, strict=True)]
            for group, side in zip(groups, steps, strict=True)
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
        name = tag.removeprefix(PREFIX).removesuffix("_curve")
        curves.append(Curve(name, tuple(scales), rms))
    return curves
