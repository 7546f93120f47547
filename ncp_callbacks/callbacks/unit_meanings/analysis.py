"""Fit a shallow decision tree from inputs and factors to each unit, and put it in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import REAL, Estimate, ci_array

__all__ = ["MIN_ACCURACY", "Predictors", "UnitRules", "predictors", "unit_meanings"]

MIN_ACCURACY = 0.5
"""Share of a unit's variance, on other sequences, below which nothing is stated in words."""
MAX_DEPTH, FOLDS = 3, 4
MAX_FITTED, MAX_INFORMATION = 4096, 256  # Time steps that trees, and mutual information, use.
MAX_CATEGORIES = 8
# A split that explains less of the variance is not made.
_MIN_GAIN, _MIN_LEAF = 0.03, 0.02


@dataclass(frozen=True, eq=False)
class Predictors:
    """Hold what units are explained by.

    Attributes:
        values: ``(B, T, P)``.
        labels: ``P`` names, such as ``vibration (last 3 steps)``, or ``regime is steady``.
        yes_no: ``(P,)``, true for a category, which is 1 where it holds and 0 elsewhere.
    """

    values: FloatArray
    labels: tuple[str, ...]
    yes_no: npt.NDArray[np.bool_]


def predictors(
    features: Mapping[str, FloatArray],
    factors: Mapping[str, npt.NDArray[Any]],
    mask: npt.NDArray[np.bool_],
    *,
    recent: int = 3,
) -> Predictors:
    """Return features now, their means over recent time steps, and factors.

    Args:
        features: Arrays ``(B, T)`` by name, in the order in which the cell runs.
        factors: Arrays ``(B, T)`` by name, of numbers, or of categories: strings, whole numbers or
            truth values; of more than 8 categories the most frequent ones.
        mask: ``(B, T)``, true at real time steps.
        recent: Number of time steps of the means, the current one included; 1 for no means.
    """
    columns: list[FloatArray] = []
    labels: list[str] = []
    yes_no: list[bool] = []

    def add(label: str, values: FloatArray, category: bool = False) -> None:
        columns.append(np.asarray(values, np.float64))
        labels.append(label)
        yes_no.append(category)

    for name, values in features.items():
        add(name, values)
        if recent > 1:
            add(f"{name} (last {recent} steps)", _recent_mean(values, mask, recent))
    for name, factor in factors.items():
        if factor.dtype.kind == "f":
            add(name, factor)
            continue
        found, counts = np.unique(factor[mask], return_counts=True)
        kept = found[np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]]
        for category in kept.tolist():
            add(f"{name} is {category}", factor == category, True)
    values = np.stack(columns, axis=-1) if columns else np.empty((*mask.shape, 0))
    return Predictors(values, tuple(labels), np.array(yes_no, bool))


def _recent_mean(values: FloatArray, mask: npt.NDArray[np.bool_], recent: int) -> FloatArray:
    """Return the mean over the last time steps, of those that are real."""
    total = np.zeros(values.shape)
    count = np.zeros(values.shape)
    for back in range(min(recent, values.shape[1])):
        stop = values.shape[1] - back
        real = mask[:, :stop]
        total[:, back:] += np.where(real, values[:, :stop], 0.0)
        count[:, back:] += real
    return np.asarray(total / np.maximum(count, 1))


@dataclass(frozen=True, eq=False)
class UnitRules(MappingResult):
    """Hold what a shallow decision tree tells of each unit.

    Attributes:
        names: ``K`` names of the units.
        accuracy: ``(K,)``, R² of trees on sequences that they were not fitted to; NaN for a unit
            that is constant.
        accuracy_ci: ``(2, K)``, 95 % CIs over sequences.
        high: When each unit is high, in words; ``""`` where the accuracy is below 0.5.
        low: When each unit is low, in words.
        predictors: ``P`` names of what trees split by.
        information: ``(K, P)``, mutual information of each unit and predictor, in nats.
        cell: Name of the cell.
        sequences: Number of sequences.
        estimates: ``accuracy``, the mean over units of R², where one below 0 counts as 0, and
            ``accuracy/<name>``, as estimates over sequences.
    """

    _plot = "plot_unit_meanings"

    names: tuple[str, ...]
    accuracy: FloatArray
    accuracy_ci: FloatArray
    high: tuple[str, ...]
    low: tuple[str, ...]
    predictors: tuple[str, ...]
    information: FloatArray
    cell: str
    sequences: int
    estimates: dict[str, Estimate]

    @property
    def explained(self) -> npt.NDArray[np.bool_]:
        """Return ``(K,)``, true for units that are described in words."""
        return np.array([bool(words) for words in self.high], bool)

    def sentences(self) -> list[str]:
        """Return a sentence for each unit that is described in words, the most accurate first."""
        order = np.argsort(-np.nan_to_num(self.accuracy), kind="stable").tolist()
        return [
            f"{self.names[i]}: high when {self.high[i]}; low when {self.low[i]} "
            f"(R² {self.accuracy[i]:.2f} on other sequences)"
            for i in order
            if self.high[i]
        ]


def unit_meanings(
    states: FloatArray,
    names: Sequence[str],
    explained_by: Predictors,
    mask: npt.NDArray[np.bool_],
    *,
    cell: str = "cell",
) -> UnitRules | None:
    """Return what decision trees of depth 3 tell of each unit's state.

    Four trees are fitted to three quarters of the sequences each, and scored on the last quarter.
    The tree in words is fitted to all. A split that explains less than 3 % of the variance is not
    made. Mutual information is the estimate from 3 nearest neighbours.

    Args:
        states: ``(B, T, K)``.
        names: Names of the units.
        explained_by: The predictors.
        mask: ``(B, T)``, true at real time steps.
        cell: Name of the cell.

    Returns:
        None for fewer than four sequences with a finite state, and without predictors.

    Source: CART (Breiman et al. 1984), by scikit-learn; Kraskov, Stögbauer & Grassberger 2004
    (doi 10.1103/PhysRevE.69.066138) for mutual information.
    """
    from sklearn.feature_selection import mutual_info_regression

    use = mask & np.isfinite(states).all(axis=2) & np.isfinite(explained_by.values).all(axis=2)
    sequence = np.nonzero(use)[0]
    if len(np.unique(sequence)) < FOLDS or not explained_by.labels:
        return None
    x, h = explained_by.values[use], states[use].astype(np.float64)
    # Equal for all trees, so that folds differ in their sequences alone.
    place = np.unique(sequence, return_inverse=True)[1]
    some = _spread(len(x), MAX_INFORMATION)
    high, low, information, scores = [], [], [], []
    for unit in range(h.shape[1]):
        y = h[:, unit]
        score = _score(x, y, place)
        words = ("", "")
        if score.value >= MIN_ACCURACY:
            words = _in_words(_tree(x, y), explained_by)
        high.append(words[0])
        low.append(words[1])
        scores.append(score)
        varies = np.ptp(y[some]) > 0
        information.append(
            mutual_info_regression(
                x[some], y[some], discrete_features=explained_by.yes_no, random_state=0
            )
            if varies
            else np.zeros(x.shape[1])
        )
    estimates = {f"accuracy/{name}": s for name, s in zip(names, scores, strict=True)}
    known = [s for s in scores if math.isfinite(s.value)]
    if known:
        estimates["accuracy"] = _mean(known)
    return UnitRules(
        tuple(names),
        np.array([s.value for s in scores]),
        ci_array(scores),
        tuple(high),
        tuple(low),
        explained_by.labels,
        np.array(information),
        cell,
        int(place.max()) + 1,
        estimates,
    )


def _spread(count: int, most: int) -> npt.NDArray[np.intp]:
    """Return at most so many indices, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)


def _tree(x: FloatArray, y: FloatArray) -> Any:
    from sklearn.tree import DecisionTreeRegressor

    some = _spread(len(x), MAX_FITTED)
    x, y = x[some], y[some]
    leaf = max(2, int(_MIN_LEAF * len(y)))
    tree = DecisionTreeRegressor(
        max_depth=MAX_DEPTH, min_samples_leaf=leaf, min_impurity_decrease=_MIN_GAIN * y.var(),
        random_state=0,
    )  # fmt: skip
    return tree.fit(x, y)


def _score(x: FloatArray, y: FloatArray, sequence: npt.NDArray[np.intp]) -> Estimate:
    """Return R² of trees on sequences that they were not fitted to."""
    scale = REAL.within(-math.inf, 1.0)
    if not y.var() > 1e-12 * max(float(np.abs(y).max()), 1e-300) ** 2:
        return Estimate(math.nan, np.empty(0), scale)
    squares = np.empty(len(y))
    for fold in range(FOLDS):
        own = sequence % FOLDS == fold
        squares[own] = (y[own] - _tree(x[~own], y[~own]).predict(x[own])) ** 2
    centred = y - y.mean()
    parts = [np.bincount(sequence, w) for w in (squares, np.ones(len(y)), centred, centred**2)]
    return Estimate.of_sums(_r_squared, np.stack(parts, axis=1), scale)


def _r_squared(sums: FloatArray) -> FloatArray:
    """Return R² from ``(N, 4)``: squared errors, counts, sums of values and of squares."""
    error, count, first, second = np.moveaxis(sums, -1, 0)
    return np.asarray(1 - error / (second - first**2 / count))


def _mean(scores: Sequence[Estimate]) -> Estimate:
    """Return the mean of R² over units; below 0 counts as 0."""
    value = float(np.mean([max(s.value, 0.0) for s in scores]))
    each = [s.influence if s.value > 0 else np.zeros(s.sequences) for s in scores]
    return Estimate(value, np.mean(each, axis=0), scores[0].scale)


def _in_words(tree: Any, explained_by: Predictors) -> tuple[str, str]:
    """Return under which conditions a tree is highest and lowest; "" for a single leaf."""
    parts = tree.tree_
    paths: list[tuple[float, dict[int, tuple[float, float]]]] = []

    def visit(at: int, bounds: dict[int, tuple[float, float]]) -> None:
        feature, threshold = int(parts.feature[at]), float(parts.threshold[at])
        if parts.children_left[at] < 0:
            paths.append((float(parts.value[at, 0, 0]), bounds))
            return
        low, high = bounds.get(feature, (-math.inf, math.inf))
        visit(int(parts.children_left[at]), {**bounds, feature: (low, min(high, threshold))})
        visit(int(parts.children_right[at]), {**bounds, feature: (max(low, threshold), high)})

    visit(0, {})
    if len(paths) < 2:
        return "", ""
    ends = max(paths, key=lambda path: path[0]), min(paths, key=lambda path: path[0])
    high, low = (
        " and ".join(_condition(i, bounds, explained_by) for i, bounds in path.items())
        for _, path in ends
    )
    return high, low


def _condition(at: int, bounds: tuple[float, float], explained_by: Predictors) -> str:
    label, (low, high) = explained_by.labels[at], bounds
    if explained_by.yes_no[at]:
        return label if low > -math.inf else label.replace(" is ", " is not ", 1)
    if low == -math.inf:
        return f"{label} ≤ {high:.3g}"
    if high == math.inf:
        return f"{label} > {low:.3g}"
    return f"{low:.3g} < {label} ≤ {high:.3g}"
