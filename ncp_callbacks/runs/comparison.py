"""The result of comparing runs, as data that survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from .reader import HyperParameter

__all__ = [
    "Change",
    "Comparison",
    "Curve",
    "Measure",
    "RunInfo",
    "ScalarRow",
    "Side",
    "SideValue",
]


@dataclass(frozen=True)
class RunInfo:
    """A run: ``steps`` are the first and last at which a number was logged."""

    name: str
    path: str
    steps: tuple[int, int]
    hparams: dict[str, HyperParameter]


@dataclass(frozen=True)
class Side:
    """Runs that stand for the same thing; the first side is what others are compared with."""

    name: str
    runs: tuple[RunInfo, ...]


@dataclass(frozen=True)
class SideValue:
    """A scalar on one side.

    Attributes:
        mean: Mean of ``runs``.
        runs: For each run, the mean of its points.
        points: For each run, how many.
        noise: Scatter from point to point within a run: RMS of the differences of successive
            points over √2, over all runs; None with fewer than 3 points.
    """

    mean: float
    runs: tuple[float, ...]
    points: tuple[int, ...]
    noise: float | None


@dataclass(frozen=True)
class Change:
    """A scalar on one side compared with the first side.

    Attributes:
        delta: Difference of the means.
        percent: ``delta`` in per cent of the first side's size; None where that is 0.
        over_noise: Size of ``delta`` over the scatter within runs. It says what stands out, not
            what another seed would show.
        ci: 95 % CI for ``delta`` over runs (Welch), of this tag alone; None with fewer
            than 3 runs on a side.
        p: Two-sided permutation p over runs; None likewise.
        p_holm: The same, corrected for all tags and sides of the comparison.
    """

    delta: float
    percent: float | None
    over_noise: float | None
    ci: tuple[float, float] | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class ScalarRow:
    """A tag that all runs have.

    Attributes:
        steps: First and last step of the points that were averaged, the same for all runs.
        values: For each side.
        changes: For each side but the first.
    """

    tag: str
    steps: tuple[int, int]
    values: tuple[SideValue, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Measure:
    """How alike raw arrays or histograms are, as one number.

    Attributes:
        tag: What was compared, without ``_ncp/``.
        name: The measure.
        meaning: How to read it.
        between: For each side but the first, the mean over all pairs of a run of it and a run of
            the first.
        within: For each side, the mean over pairs of its runs; None for a single run.
        drift: For each side, first look against the last, mean over its runs.
        steps: For each side, of its runs the first look and the compared one; the widest.
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
    """Change of the target (``rms``, in its unit) over the factor that all intervals are given.

    Attributes:
        scales: Factors that all runs have.
        rms: For each side and run, a value for each scale.
    """

    tag: str
    scales: tuple[float, ...]
    rms: tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class Comparison:
    """What :func:`~ncp_callbacks.runs.compare_runs` found.

    Attributes:
        sides: Two or more.
        step: Up to where runs were compared.
        last: How many points were averaged, at least.
        set_by: Why up to there.
        significance: What may be said of differences between runs, in a sentence.
        hparams: Hyper-parameters that differ: for each side its distinct values.
        scalars: Most telling first: train and val, then by size over scatter, what
            looking cost last.
        unchanged: Scalars with the same numbers in all runs.
        partial: Tags that some runs don't have, and which runs have them.
        apart: Scalars without common steps.
        measures, curves: Interpretability, compared by number.
        warnings: What could not be read or compared.
    """

    sides: tuple[Side, ...]
    step: int
    last: int
    set_by: str
    significance: str
    hparams: dict[str, tuple[tuple[HyperParameter, ...], ...]]
    scalars: tuple[ScalarRow, ...]
    unchanged: tuple[str, ...]
    partial: dict[str, tuple[str, ...]]
    apart: tuple[str, ...]
    measures: tuple[Measure, ...]
    curves: tuple[Curve, ...]
    warnings: tuple[str, ...]

    def row(self, tag: str) -> ScalarRow:
        """The row of a scalar.

        Raises:
            KeyError: It has none.
        """
        for row in self.scalars:
            if row.tag == tag:
                return row
        raise KeyError(tag)

    def _repr_html_(self) -> str:
        """The tables, as a notebook shows them."""
        from .report import tables

        return tables(self)

    def to_json(self) -> str:
        """As JSON; NaN and infinities become the strings ``"NaN"``, ``"Infinity"``, …"""
        plain = _plain(dataclasses.asdict(self))
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        try:
            made: Comparison = _made(cls, json.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a comparison as JSON: {error}") from error
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
    """``plain`` as the type that a field of a dataclass declares."""
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
