"""Compare the raw arrays and histograms of several runs.

For groups, each measure is also taken among the runs of one side. Sides that differ by more than
their own runs do are different; others may only have had other seeds.

Maps are matched by the names of their features where these are known, else by column. What an
array is and what its axes count is read from its description, never from its tag.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..stats import distances
from ..stats.reliability import rank_correlation
from .comparison import Curve, Measure
from .declared import Declared
from .find import Group, all_runs, shared_tags
from .fingerprint import read_fingerprint
from .reader import Run
from .tags import PREFIX, short
from .words import listed

__all__ = [
    "Features",
    "common_snapshots",
    "compare_arrays",
    "compared_arrays",
    "feature_shares",
    "time_curves",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Commensurable: TypeAlias = Callable[[int, str], bool]
Shapes: TypeAlias = set[tuple[int, ...]]

_TOP_CELLS = 0.1  # The share of a map's cells that is its top.
_UP_TO_1 = "0 the same, 1 nothing in common"
_OPPOSITE = "0 the same, 1 opposite or apart"


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
        self._of = {run: read_fingerprint(run).feature_names for run in all_runs(groups)}
        self.names = self._of[groups[0].runs[0]]
        self._matched = [
            len({frozenset(self._of[run] or ()) for run in (*groups[0].runs, *group.runs)}) == 1
            for group in groups
        ]

    def matched(self, side: int) -> bool:
        """Return False where a side has other names than the first, or only one of both has any."""
        return self._matched[side]

    def ordered(self, run: Run, what: Declared, array: FloatArray) -> FloatArray | None:
        """Return an array with its features in the order of the first run; None if they can't be.

        Args:
            run: The run that logged it.
            what: What it is. An array without an axis of features is returned as it is.
            array: The array. An axis of features may end with the elapsed time.
        """
        names = self._of[run]
        if names is None or self.names is None or names == self.names:
            return array
        if set(names) != set(self.names) or len(what.axes) != array.ndim:
            return array
        order = [names.index(name) for name in self.names]
        for axis, of in enumerate(what.axes):
            if of == "feature":
                more = array.shape[axis] - len(order)
                if more not in (0, 1):  # Groups of features, which the names don't tell.
                    return None
                array = array.take([*order, *[len(order)] * more], axis)
        return array


def _feature_share(strength: FloatArray) -> FloatArray:
    """Return the ``(F,)`` shares in a ``(T, F)`` map without signs."""
    by_feature: FloatArray = strength.sum(axis=0)
    total = by_feature.sum()
    return by_feature / total if total > 0 else by_feature


def feature_shares(run: Run, window: tuple[int, int]) -> dict[str, float]:
    """Return the share of each feature in a run's attribution: its mean over a window of steps.

    They are shares of contributions where these are logged, or else of the map. Where none was
    logged in the window they are those of the last one before. Empty without numbers whose sum is
    finite and above 0.
    """
    tags = [tag for tag in run.arrays if Declared.of([run], tag).kind == "attribution"]
    first = f"{PREFIX}attribution_strength"
    contributions = run.arrays.get(f"{PREFIX}attribution_shares")
    made = run.arrays[min(tags, key=lambda tag: tag != first)] if tags else {}
    if contributions is not None:
        made = {step: array[None, :, 0] for step, array in contributions.items() if array.ndim == 2}
    steps = [step for step in made if step <= window[1]]
    steps = [step for step in steps if step >= window[0]] or steps[-1:]
    used = [made[step] for step in steps]
    if not used or any(s.ndim != 2 or not 0 < s.sum() < np.inf for s in used):
        return {}
    if len({s.shape[1] for s in used}) > 1:
        return {}
    share = np.mean([_feature_share(strength) for strength in used], axis=0)
    names: Sequence[str] | None = read_fingerprint(run).feature_names
    if names is None or len(names) != share.size:
        names = [f"feature {i}" for i in range(share.size)]
    return dict(zip(names, share.tolist(), strict=True))


# --- measures of two arrays


def _likeness(
    of: str = "",
    moved: str = _UP_TO_1,
    top: tuple[str, int, int] | None = None,
    take: Callable[[FloatArray], FloatArray] = lambda array: array,
) -> list[_Kind]:
    """Return the rank correlation, the overlap of the top and the shift of some values.

    Args:
        of: The values, for the names of the measures.
        moved: Meaning of the shift.
        top: What is on top, how many of them, and of how many; None for no overlap.
        take: Returns the values of an array.
    """
    of = of and f" of {of}"
    kinds = [
        _Kind(f"rank correlation{of}", "1 the same order, 0 unrelated, -1 opposite",
              lambda a, b: rank_correlation(take(a), take(b))),
        _Kind(f"shift{of}", moved, lambda a, b: distances.shift(take(a), take(b))),
    ]  # fmt: skip
    if top is not None and top[1]:
        what, k, count = top
        overlap = _Kind(f"overlap of the top {what} (chance: {k / count:.2f})",
                        "share that is in both",
                        lambda a, b: distances.top_overlap(take(a), take(b), k))  # fmt: skip
        kinds.insert(1, overlap)
    return kinds


def _kinds(what: Declared, shapes: Shapes, top: int) -> list[_Kind]:
    """Return the measures of the arrays of a tag.

    Args:
        what: What they are.
        shapes: Their shapes.
        top: Number of features whose overlap is counted.
    """
    same, ranks = len(shapes) == 1, {len(shape) for shape in shapes}
    shape = next(iter(shapes))
    if what.kind == "state sample":
        # With few places the usual CKA is high for any two networks with many units.
        cka = _Kind(
            "debiased linear CKA", "1 the same up to rotation, 0 unrelated", distances.debiased_cka
        )
        return [cka] if ranks == {2} and len({s[0] for s in shapes}) == 1 else []
    if what.kind == "attribution" and ranks == {2} and len({s[1] for s in shapes}) == 1:
        k, cells = min(top, shape[1] // 2), int(np.prod(shape))
        few = max(1, round(_TOP_CELLS * cells))
        by_feature = _likeness(
            "feature shares", top=(f"{k} features", k, shape[1]), take=_feature_share
        )
        of_map = _likeness("the map", top=(f"{_TOP_CELLS:.0%} of cells", few, cells))
        return by_feature + (of_map if same else [])
    if what.kind == "shares" and same and ranks == {2}:
        return _likeness("feature shares", take=lambda array: array[:, 0])
    if what.kind == "attribution signed" and same:
        return _likeness("the signed map", _OPPOSITE)
    if what.kind == "time by step" and same:
        return _likeness("time steps", _OPPOSITE)
    if what.kind == "spectrum" and ranks == {1}:
        return [_Kind("shift of the spectrum", _UP_TO_1, _shift_padded)]
    if what.is_of_units and ranks == {1}:
        return [_Kind("W1 over units", "0 the same; in its unit", _wasserstein)]
    if what.kind == "time curve" and ranks == {2} and min(s[0] for s in shapes) >= 2:
        return [_Kind("largest gap of RMS change", "0 the same; in the target's unit", _gap)]
    return _likeness() if same else []


def _wasserstein(a: FloatArray, b: FloatArray) -> float | None:
    """Return W1 between the units of two runs that have a number."""
    return distances.wasserstein(a[np.isfinite(a)], b[np.isfinite(b)])


def _shift_padded(a: FloatArray, b: FloatArray) -> float | None:
    size = max(a.size, b.size)
    return distances.shift(np.pad(a, (0, size - a.size)), np.pad(b, (0, size - b.size)))


def _gap(a: FloatArray, b: FloatArray) -> float | None:
    _, of_a, of_b = np.intersect1d(a[0], b[0], return_indices=True)
    gaps = np.abs(a[1, of_a] - b[1, of_b])
    return float(gaps.max()) if gaps.size and np.isfinite(gaps).all() else None


# --- snapshots that are compared


def common_snapshots(
    groups: Sequence[Group], kind: str, tag: str, until: int
) -> list[list[tuple[int, int]]] | None:
    """Return for each side and run the step of its first snapshot and of the one to compare.

    The compared snapshot is the last that all runs made at the same step, up to ``until``; where
    there is none, each run's own last. None where a run has no snapshot up to ``until``.

    Args:
        groups: The sides.
        kind: ``arrays`` or ``histograms``.
        tag: A tag that all runs have.
        until: The last step that counts.
    """
    steps = [[{s for s in getattr(r, kind)[tag] if s <= until} for r in g.runs] for g in groups]
    if not all(of_run for side in steps for of_run in side):
        return None
    common = set.intersection(*itertools.chain(*steps))
    return [
        [(min(of_run), max(common) if common else max(of_run)) for of_run in side] for side in steps
    ]


def compared_arrays(
    groups: Sequence[Group], tag: str, until: int
) -> list[list[tuple[int, FloatArray]]]:
    """Return, for each side and run, the step and the array of the snapshot to compare.

    Empty where a run has no snapshot up to ``until``.
    """
    steps = common_snapshots(groups, "arrays", tag, until)
    if steps is None:
        return []
    return [
        [(last, run.arrays[tag][last]) for run, (_, last) in zip(group.runs, side, strict=True)]
        for group, side in zip(groups, steps, strict=True)
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
    unmatched = [group.name for i, group in enumerate(groups) if i and not features.matched(i)]
    if unmatched:
        notes.append(
            f"maps by feature are not compared for {', '.join(unmatched)}: the names of the "
            f"features are not those of {groups[0].name}, or are known on one side only"
        )

    def sides(tag: str, what: Declared) -> list[int]:
        """Return the sides whose arrays may be compared, the first always among them."""
        others = [i for i in range(1, len(groups)) if commensurable(i - 1, tag)]
        return [0, *(i for i in others if features.matched(i) or not what.is_by_feature)]

    of_one_run = []
    for tag in shared_tags(groups, "arrays"):
        what = Declared.of(all_runs(groups), tag)
        if not what.is_compared:
            continue
        if not what.corresponds:
            of_one_run.append(tag)
            continue
        use = sides(tag, what)
        found = _measured(groups, "arrays", tag, use, until, features, what, top)
        measures += found
        if not found and len(use) > 1:
            notes.append(f"{tag} can't be compared: {_why(groups, tag, until)}")
    if of_one_run:
        notes.append(
            f"{listed(of_one_run)} can't be compared: units don't correspond between networks "
            "that were trained apart"
        )
    for tag in shared_tags(groups, "histograms"):
        what = Declared()
        measures += _measured(groups, "histograms", tag, sides(tag, what), until, features, what)
    return measures, notes


def _why(groups: Sequence[Group], tag: str, until: int) -> str:
    if common_snapshots(groups, "arrays", tag, until) is None:
        return f"not all runs have it up to step {until:,}"
    holders: dict[str, list[str]] = {}
    for run in all_runs(groups):
        shape = "x".join(map(str, run.arrays[tag][max(run.arrays[tag])].shape))
        holders.setdefault(shape, []).append(run.name)
    shapes = (f"{shape} in {listed(names, 1)}" for shape, names in holders.items())
    return f"its shape is {', '.join(shapes)}"


def _measured(
    groups: Sequence[Group],
    kind: str,
    tag: str,
    use: Sequence[int],
    until: int,
    features: Features,
    what: Declared,
    top: int = 0,
) -> list[Measure]:
    """Return the measures of a tag between the sides of these numbers."""
    sides = [groups[side] for side in use]
    steps = common_snapshots(sides, kind, tag, until)
    if steps is None or len(use) < 2:
        return []

    def at(run: Run, step: int) -> Any:
        found = getattr(run, kind)[tag][step]
        return features.ordered(run, what, found) if kind == "arrays" else found

    pairs = {
        number: [(at(run, first), at(run, now))
                 for run, (first, now) in zip(groups[number].runs, side, strict=True)]
        for number, side in zip(use, steps, strict=True)
    }  # fmt: skip
    every = [one for side in pairs.values() for pair in side for one in pair]
    if any(one is None for one in every):
        return []
    kinds = [_Kind("W1 of the histogram", "0 the same; in its unit", distances.wasserstein_binned)]
    if kind == "arrays":
        kinds = _kinds(what, {array.shape for array in every}, top)
    now = {number: [last for _, last in side] for number, side in pairs.items()}
    moved = {
        n: pairs[n] for n, side in zip(use, steps, strict=True) if any(a != b for a, b in side)
    }
    numbers = range(len(groups))
    return [
        Measure(
            short(tag),
            k.name,
            k.meaning,
            tuple(_mean(k.of, itertools.product(now[0], now.get(i, ()))) for i in numbers[1:]),
            tuple(_mean(k.of, itertools.combinations(now.get(i, ()), 2)) for i in numbers),
            tuple(_mean(k.of, moved.get(i, ())) for i in numbers),
            tuple((min(f for f, _ in side), max(a for _, a in side)) for side in steps),
        )
        for k in kinds
    ]


def _mean(of: Callable[[Any, Any], float | None], pairs: Iterable[tuple[Any, Any]]) -> float | None:
    """Return the mean of a measure over pairs; None where it can be computed for none."""
    known = [value for value in itertools.starmap(of, pairs) if value is not None]
    return sum(known) / len(known) if known else None


def time_curves(groups: Sequence[Group], *, until: int) -> list[Curve]:
    """Return the curves of ``time_delta`` at the compared snapshot and at common factors."""
    curves = []
    runs = all_runs(groups)
    shared = shared_tags(groups, "arrays")
    for tag in [tag for tag in shared if Declared.of(runs, tag).kind == "time curve"]:
        sides = [[table for _, table in s] for s in compared_arrays(groups, tag, until)]
        every = list(itertools.chain(*sides))
        if not every or any(table.ndim != 2 or len(table) < 2 for table in every):
            continue
        scales = [s for s in every[0][0].tolist() if all(s in table[0] for table in every)]
        if len(scales) < 2:
            continue
        rms = tuple(
            tuple(tuple(float(t[1][t[0] == scale][0]) for scale in scales) for t in side)
            for side in sides
        )
        curves.append(Curve(short(tag).removesuffix("_curve"), tuple(scales), rms))
    return curves
