"""Hold the result of comparing runs, as data that survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .reader import HyperParameter
from .words import like

__all__ = [
    "Change",
    "Comparison",
    "Condition",
    "Curve",
    "Measure",
    "RunFinding",
    "RunInfo",
    "ScalarRow",
    "Side",
    "SideValue",
]


@dataclass(frozen=True)
class RunFinding:
    """Hold a warning or a problem that the rules of :mod:`ncp_callbacks.findings` find in a run.

    Attributes:
        severity: ``problem`` or ``warning``.
        rule: Name of the rule.
        sentence: What was found.
        action: What to do.
    """

    severity: str
    rule: str
    sentence: str
    action: str


@dataclass(frozen=True)
class RunInfo:
    """Describe a run.

    Attributes:
        steps: First and last step at which a number was logged.
        shares: Share of each feature in the attribution, of all features; empty where unknown.
        findings: Problems, then warnings.
    """

    name: str
    path: str
    steps: tuple[int, int]
    hparams: dict[str, HyperParameter]
    shares: dict[str, float]
    findings: tuple[RunFinding, ...] = ()


@dataclass(frozen=True)
class Side:
    """Hold runs that differ in their seed; other sides are compared with the first."""

    name: str
    runs: tuple[RunInfo, ...]


@dataclass(frozen=True)
class SideValue:
    """Hold a scalar on one side.

    Attributes:
        mean: Mean of ``runs``.
        runs: Mean of the points of each run.
        points: Number of points of each run.
        noise: Scatter from point to point within a run: RMS of the differences of successive
            points over √2, over all runs; None with fewer than 3 points.
    """

    mean: float
    runs: tuple[float, ...]
    points: tuple[int, ...]
    noise: float | None


@dataclass(frozen=True)
class Change:
    """Compare a scalar on one side with the first side.

    Attributes:
        delta: Difference of the means.
        percent: ``delta`` in per cent of the first side's size; None where that is 0.
        over_noise: Size of ``delta`` over the scatter within runs. It tells what stands out, not
            what another seed would show.
        ci: 95 % CI of ``delta`` over runs (Welch), of this tag alone; None with fewer than 3 runs
            on a side.
        p: Two-sided permutation p over runs; None with fewer than 3 runs on a side.
        p_holm: ``p`` after Holm's correction: validation tags among themselves, which are tested
            first and alone; the others, which are exploration, among themselves.
    """

    delta: float
    percent: float | None
    over_noise: float | None
    ci: tuple[float, float] | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class ScalarRow:
    """Compare a tag that all runs have.

    Attributes:
        steps: First and last step of the points that were averaged.
        values: One for each side.
        changes: One for each side but the first; None where the runs are not commensurable.
    """

    tag: str
    steps: tuple[int, int]
    values: tuple[SideValue, ...]
    changes: tuple[Change | None, ...]


@dataclass(frozen=True)
class Measure:
    """Hold the similarity of raw arrays or histograms, as one number.

    Attributes:
        tag: Tag of the array without ``_ncp/``, or of the histogram.
        name: Name of the measure.
        meaning: Meaning of its values.
        between: For each side but the first, the mean over all pairs of a run of it and a run of
            the first; None where the runs are not commensurable.
        within: For each side, the mean over pairs of its runs; None for a single run.
        drift: For each side, the first snapshot against the compared one, mean over its runs.
        steps: For each compared side, the steps of the first snapshot and of the compared one; the
            widest.
    """

    tag: str
    name: str
    meaning: str
    between: tuple[float | None, ...]
    within: tuple[float | None, ...]
    drift: tuple[float | None, ...]
    steps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Curve:
    """Hold the change of the target when all elapsed time is scaled.

    Attributes:
        scales: Factors that all runs have.
        rms: For each side and run, the RMS change at each scale, in the target's unit.
    """

    tag: str
    scales: tuple[float, ...]
    rms: tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Condition:
    """Tell whether the sides were analysed under the same condition.

    Attributes:
        name: ``held-out batch``, ``method``, ``target`` or ``feature names``.
        same: For each side but the first; None where it isn't known.
        different: Names of the runs in which it differs from the first side.
        details: Clauses on how it differs, such as "output 1 instead of output 0".
        callbacks: For each side but the first, the callbacks whose method differs.
    """

    name: str
    same: tuple[bool | None, ...]
    different: tuple[str, ...]
    details: tuple[str, ...]
    callbacks: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Comparison:
    """Hold what :func:`~ncp_callbacks.runs.compare_runs` found.

    Attributes:
        answer: Sentences: which side is better and whether that means anything, what the models
            rely on differently, what makes the runs incommensurable or is not known.
        sides: Two or more.
        conditions: Conditions of the analysis, compared with the first side.
        step: Step up to which runs were compared.
        set_by: Reason for that step.
        window: First and last step of the snapshots that were averaged.
        significance: A sentence on what the differences between runs can tell.
        hparams: Hyper-parameters that differ: for each side its distinct values.
        headlines: Rows of validation and training tags and of the share of elapsed time, whatever
            ``tags`` is.
        scalars: Validation, training, then by size over scatter; constants and bookkeeping last.
        unchanged: Scalars with the same numbers in all runs.
        partial: Tags that some runs don't have, and the runs that have them.
        apart: Scalars without common steps.
        measures, curves: Interpretability, compared by number.
        warnings: Sentences on what could not be read or compared.
    """

    answer: tuple[str, ...]
    sides: tuple[Side, ...]
    conditions: tuple[Condition, ...]
    step: int
    set_by: str
    window: tuple[int, int]
    significance: str
    hparams: dict[str, tuple[tuple[HyperParameter, ...], ...]]
    headlines: tuple[ScalarRow, ...]
    scalars: tuple[ScalarRow, ...]
    unchanged: tuple[str, ...]
    partial: dict[str, tuple[str, ...]]
    apart: tuple[str, ...]
    measures: tuple[Measure, ...]
    curves: tuple[Curve, ...]
    warnings: tuple[str, ...]

    # Set by the module that draws the tables, which stands above this one.
    _repr_html_: ClassVar[Callable[[Comparison], str]]

    def row(self, tag: str) -> ScalarRow:
        """Return the row of a scalar.

        Raises:
            KeyError: The comparison has no row of this tag.
        """
        rows = {row.tag: row for row in self.scalars}
        if tag not in rows:
            raise KeyError(f"there is no row of {tag!r}: pass {like(tag, rows)}")
        return rows[tag]

    def to_json(self) -> str:
        """Return JSON in ASCII; NaN and infinities become strings such as ``"NaN"``."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Return the comparison that :meth:`to_json` wrote.

        Raises:
            ValueError: The text is something else.
        """
        try:
            made: Comparison = _made(cls, json.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"this is not a comparison as JSON ({type(error).__name__}: {error}): pass what "
                "Comparison.to_json returned"
            ) from error
        return made


_NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _made(kind: Any, plain: Any) -> Any:
    """Return ``plain`` as the type that a field of a dataclass declares."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(
            **{f.name: _made(hints[f.name], plain[f.name]) for f in dataclasses.fields(kind)}
        )
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and of[-1] is Ellipsis:
        return tuple(_made(of[0], one) for one in plain)
    if origin is tuple:
        return tuple(_made(t, one) for t, one in zip(of, plain, strict=True))
    if origin is dict:
        return {key: _made(of[1], one) for key, one in plain.items()}
    if origin in (types.UnionType, typing.Union):
        if str in of:  # A hyper-parameter, whose strings are strings.
            return plain
        return None if plain is None else _made(of[0], plain)
    if kind is float:
        return _NOT_NUMBERS[plain] if isinstance(plain, str) else float(plain)
    return plain
