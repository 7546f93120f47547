"""Compute interactions: effects of two groups of inputs together, beyond those of each alone.

    method, passes = Archipelago(), observation.extra_passes
    found = method.interactions(passes.evaluate, passes.slopes, inputs, baseline=..., groups=...)
    found.strength                 # (G, G), mean absolute effect of each pair
    found.share                    # share of pairs in all effects

A group of inputs is a feature at all time steps, or all elapsed times. A pair with the elapsed
times shows whether a feature matters only when it is recent.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from ...attribution._checks import checked_count, named_method
from ...results import FloatArray, Indices
from ...stats import SHARE, SIZE, Estimate
from ...target_values import Evaluate, TargetValues

__all__ = [
    "Archipelago",
    "IntegratedHessians",
    "InteractionMethod",
    "Interactions",
    "Slopes",
    "group_effects",
    "interaction_method",
]

# Number of variants of the batch in one call.
_MAX_VARIANTS = 32


class Slopes(Protocol):
    """Compute slopes along a direction, and their gradients; see :meth:`ExtraPasses.slopes`."""

    def __call__(
        self,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        along: FloatArray,
        time_along: FloatArray | None = None,
    ) -> TargetValues: ...


@dataclass(frozen=True, eq=False)
class Interactions:
    """Effects of groups of inputs on the target, alone and in pairs, relative to a baseline.

    Attributes:
        method: Name of the method.
        names: ``G`` names of the groups.
        main: ``(S, G)``, effect of each group alone, in units of the target.
        pairs: ``(S, G, G)``, effect of each pair beyond that; symmetric, 0 on the diagonal.
        change: ``(S,)``, target minus the target at the baseline.
        passes: Number of forward passes, or Hessian products, for each sequence.
        non_finite: Number of sequences that were skipped because of NaN or infinity.
    """

    method: str
    names: tuple[str, ...]
    main: FloatArray
    pairs: FloatArray
    change: FloatArray
    passes: int
    non_finite: int = 0

    @property
    def sequences(self) -> int:
        """Return the number of sequences ``S``."""
        return len(self.main)

    @property
    def main_strength(self) -> FloatArray:
        """Return ``(G,)`` means over sequences of ``|main|``."""
        strength: FloatArray = np.abs(self.main).mean(axis=0)
        return strength

    @property
    def strength(self) -> FloatArray:
        """Return ``(G, G)`` means over sequences of ``|pairs|``."""
        strength: FloatArray = np.abs(self.pairs).mean(axis=0)
        return strength

    @property
    def signed(self) -> FloatArray:
        """Return ``(G, G)`` means over sequences of ``pairs``; above 0 a pair raises the target."""
        signed: FloatArray = self.pairs.mean(axis=0)
        return signed

    @property
    def _totals(self) -> FloatArray:
        """Return ``(S, 2)`` sums of absolute pairs and of absolute main effects."""
        return np.stack(
            [np.abs(self.pairs).sum(axis=(1, 2)) / 2, np.abs(self.main).sum(axis=1)], axis=1
        )

    @property
    def share(self) -> float:
        """Return the share of pairs in all effects; NaN where there are no effects."""
        pairs, main = self._totals.sum(axis=0)
        return float(pairs / (pairs + main)) if pairs + main > 0 else float("nan")

    @property
    def share_ci(self) -> tuple[float, float] | None:
        """Return the 95 % CI of :attr:`share` over sequences; None where there is none."""
        pairs, main = self._totals.T
        return Estimate.ratio(pairs, pairs + main, SHARE).ci()

    def strength_ci(self, first: int, second: int) -> tuple[float, float] | None:
        """Return the 95 % CI over sequences of the strength of a pair; None without one."""
        return Estimate.mean(np.abs(self.pairs[:, first, second]), SIZE).ci()

    @property
    def rest(self) -> FloatArray:
        """Return ``(S,)``: ``change`` less all main effects and pairs, in RMS changes.

        0 where neither a change nor an effect is.
        """
        half = self.pairs.sum(axis=(1, 2)) / 2
        gap = self.change - self.main.sum(axis=1) - half
        scale = float(np.sqrt(np.mean(self.change**2))) if self.sequences else 0.0
        rest: FloatArray = np.divide(
            gap, scale, out=np.where(gap == 0, 0.0, np.inf), where=np.full(gap.shape, scale > 0)
        )
        return rest


class _Points:
    """Make batches with some groups present and all others at the baseline."""

    def __init__(
        self,
        inputs: FloatArray,
        baseline: FloatArray,
        time_delta: FloatArray | None,
        time_baseline: FloatArray | None,
        groups: Sequence[Indices],
    ) -> None:
        self.x, self.difference = baseline.astype(np.float64), inputs.astype(np.float64) - baseline
        self.groups = list(groups)
        self.dt: FloatArray | None = None
        self.elapsed: FloatArray | None = None
        if time_delta is not None and time_baseline is not None:
            self.dt = time_baseline.astype(np.float64)
            self.elapsed = time_delta.astype(np.float64) - time_baseline

    @property
    def count(self) -> int:
        """Return the number of groups; the elapsed times are the last."""
        return len(self.groups) + (self.dt is not None)

    def difference_of(self, group: int) -> tuple[FloatArray, FloatArray | None]:
        """Return the difference between inputs and baseline, for one group only."""
        along = np.zeros_like(self.difference)
        if group < len(self.groups):
            features = self.groups[group]
            along[..., features] = self.difference[..., features]
            return along, None if self.elapsed is None else np.zeros_like(self.elapsed)
        return along, self.elapsed

    def at(self, present: frozenset[int]) -> tuple[FloatArray, FloatArray | None]:
        """Return inputs and elapsed times with these groups present."""
        x, dt = self.x.copy(), self.dt
        for group in present:
            if group < len(self.groups):
                features = self.groups[group]
                x[..., features] += self.difference[..., features]
            elif dt is not None and self.elapsed is not None:
                dt = dt + self.elapsed
        return x, dt


class _Cache:
    """Evaluate the target for sets of present groups, each set once."""

    def __init__(self, evaluate: Evaluate, points: _Points) -> None:
        self._evaluate, self._points = evaluate, points
        self._known: dict[frozenset[int], FloatArray] = {}

    def evaluate(self, sets: Sequence[frozenset[int]]) -> None:
        """Evaluate the sets that are not known yet."""
        missing = [s for s in dict.fromkeys(sets) if s not in self._known]
        for start in range(0, len(missing), _MAX_VARIANTS):
            some = missing[start : start + _MAX_VARIANTS]
            at = [self._points.at(s) for s in some]
            found = self._evaluate(
                np.stack([x for x, _ in at]).astype(np.float32),
                None
                if self._points.dt is None
                else np.stack([dt for _, dt in at if dt is not None]).astype(np.float32),
            )
            values = found.values.astype(np.float64)
            self._known.update(zip(some, values, strict=True))

    def __getitem__(self, present: frozenset[int]) -> FloatArray:
        return self._known[present]

    def __len__(self) -> int:
        return len(self._known)

    @property
    def largest(self) -> FloatArray:
        """Return ``(B,)``, the largest absolute target of each sequence."""
        sizes: FloatArray = np.abs(np.stack(list(self._known.values()))).max(axis=0)
        return sizes


def group_effects(
    evaluate: Evaluate, inputs: FloatArray, *, baseline: FloatArray, groups: Sequence[Indices]
) -> FloatArray:
    """Return ``(G,)`` RMS changes of the target when one group is replaced by its baseline.

    Args:
        evaluate: Function that evaluates the target.
        inputs: ``(B, T, F)``.
        baseline: ``(B, T, F)``.
        groups: Indices of the features of each group; each feature is in one group.
    """
    points = _Points(inputs, baseline, None, None, groups)
    cache, everything = _Cache(evaluate, points), frozenset(range(points.count))
    without = [everything - {g} for g in range(points.count)]
    cache.evaluate([everything, *without])
    changes = np.stack([cache[everything] - cache[s] for s in without])
    effects: FloatArray = np.sqrt(np.nanmean(np.where(np.isfinite(changes), changes, 0.0) ** 2, 1))
    return effects


@dataclass(frozen=True)
class InteractionMethod(abc.ABC):
    """Measure the effects of groups of inputs on the target, each alone and in pairs.

    Attributes:
        name: Name of the method in snake case.
        complete: True if pairs and single effects sum to the change of the target from the
            baseline, so that any rest is an error; False if the rest is the effect of three or more
            groups together.
        uses_slopes: True if it calls ``slopes``, the derivatives along directions, which cost more.
    """

    name: ClassVar[str]
    complete: ClassVar[bool]
    uses_slopes: ClassVar[bool] = True

    @abc.abstractmethod
    def interactions(
        self,
        evaluate: Evaluate,
        slopes: Slopes,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None = None,
        groups: Sequence[Indices],
        names: Sequence[str],
    ) -> Interactions:
        """Return the interactions of the sequences.

        Args:
            evaluate: Function that evaluates the target.
            slopes: Function that computes derivatives along a direction, and their gradients.
            inputs: ``(B, T, F)``.
            time_delta: ``(B, T)``.
            baseline: ``(B, T, F)``.
            time_baseline: ``(B, T)``; None if the elapsed times are no group.
            groups: Indices of the features of each group; each feature is in one group.
            names: Names of the groups, that of the elapsed times last.
        """


@dataclass(frozen=True)
class Archipelago(InteractionMethod):
    """Replace pairs of groups by their baseline, and return the effects beyond those of each.

    The effect of a pair is ``w_ij = f(i, j) - f(i) - f(j) + f()``. It is computed with all other
    groups at the inputs and with all other groups at the baseline, and the two are averaged. The
    effect of a group alone is its change, averaged in this way too, less half of its pairs. If the
    target is a sum of effects of one and of two groups, all of them sum to the change of the
    target. :attr:`Interactions.rest` is then 0; otherwise it is the effect of three or more groups
    together. Effects within the rounding error of float32 targets are set to 0.

    This takes ``G (G - 1) + 2 G + 2`` forward passes, and no slopes.

    Source: ArchDetect of Tsang et al. 2020 (arXiv:2006.10965), which averages the squares of
    the two effects; here the signs are kept.
    """

    name: ClassVar[str] = "archipelago"
    complete: ClassVar[bool] = False
    uses_slopes: ClassVar[bool] = False

    def interactions(
        self,
        evaluate: Evaluate,
        slopes: Slopes,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None = None,
        groups: Sequence[Indices],
        names: Sequence[str],
    ) -> Interactions:
        points = _Points(inputs, baseline, time_delta, time_baseline, groups)
        count = points.count
        everything = frozenset(range(count))
        cache = _Cache(evaluate, points)
        one = [frozenset({i}) for i in range(count)]
        two = {(i, j): frozenset({i, j}) for i in range(count) for j in range(i)}
        few = [frozenset[int](), *one, *two.values()]
        cache.evaluate(few + [everything - s for s in few])
        full, empty = cache[everything], cache[frozenset()]
        alone = np.stack(
            [(full - cache[everything - s] + cache[s] - empty) / 2 for s in one], axis=1
        )
        pairs = np.zeros((len(full), count, count))
        for (i, j), both in two.items():
            at_input = full - cache[everything - one[i]] - cache[everything - one[j]]
            at_input = at_input + cache[everything - both]
            at_baseline = cache[both] - cache[one[i]] - cache[one[j]] + empty
            pairs[:, i, j] = pairs[:, j, i] = (at_input + at_baseline) / 2
        # A pair is half of a sum of eight targets.
        rounding = 4 * np.finfo(np.float32).eps * cache.largest
        with np.errstate(invalid="ignore"):
            pairs = np.where(np.abs(pairs) <= rounding[:, None, None], 0.0, pairs)
            main = alone - pairs.sum(axis=2) / 2
            main = np.where(np.abs(main) <= rounding[:, None], 0.0, main)
        return _checked(self.name, names, main, pairs, full - empty, len(cache))


@dataclass(frozen=True)
class IntegratedHessians(InteractionMethod):
    """Average second derivatives of the target along the line from the baseline.

    With the differences ``d = x - x'`` between inputs and baseline, the interaction of two features
    is ``d_a d_b ∫∫ uv H_ab(x' + uv d) du dv``, and for ``a = b`` also ``d_a ∫∫ f_a(x' + uv d) du
    dv``. It is summed over the features of two groups. Since ``z = uv`` has the density ``-ln z``,
    these are single integrals, ``∫ -z ln z H dz`` and ``∫ -ln z f dz``, which are computed by
    Gauss-Legendre quadrature in the cube root of ``z``.

    All interactions together sum to the change of the target, up to the error of the quadrature,
    :attr:`Interactions.rest`. A pair is the sum of its two equal entries, and the effect of a group
    alone is its entry on the diagonal.

    This takes ``G n_steps`` products of a Hessian with a vector.

    Attributes:
        n_steps: Number of points of the quadrature.

    Raises:
        ValueError: If ``n_steps`` is not a whole number of at least 1.

    Source: Janizek et al. 2021 (arXiv:2002.04138).
    """

    n_steps: int = 16

    name: ClassVar[str] = "integrated_hessians"
    complete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_count("n_steps", self.n_steps)

    def interactions(
        self,
        evaluate: Evaluate,
        slopes: Slopes,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None = None,
        groups: Sequence[Indices],
        names: Sequence[str],
    ) -> Interactions:
        points = _Points(inputs, baseline, time_delta, time_baseline, groups)
        count = points.count
        everything = frozenset(range(count))
        cache = _Cache(evaluate, points)
        cache.evaluate([everything, frozenset()])
        change = cache[everything] - cache[frozenset()]
        differences = [points.difference_of(g) for g in range(count)]
        u, weights = np.polynomial.legendre.leggauss(self.n_steps)
        u, weights = (u + 1) / 2, weights / 2
        z = u**3
        # dz = 3 u² du
        of_slope = -np.log(z) * 3 * u**2 * weights
        of_hessian = z * of_slope
        found = np.zeros((len(change), count, count))
        for some in np.array_split(np.arange(self.n_steps), max(1, self.n_steps // 8)):
            at = points.x + z[some, None, None, None] * points.difference
            elapsed = None
            if points.dt is not None and points.elapsed is not None:
                elapsed = (points.dt + z[some, None, None] * points.elapsed).astype(np.float32)
            for g, (along, time_along) in enumerate(differences):
                derivative = slopes(
                    at.astype(np.float32),
                    elapsed,
                    along=along.astype(np.float32),
                    time_along=None if time_along is None else time_along.astype(np.float32),
                )
                assert derivative.input_gradient is not None
                product = np.tensordot(
                    of_hessian[some], derivative.input_gradient.astype(np.float64), 1
                )
                by_time = None
                if points.elapsed is not None and derivative.time_gradient is not None:
                    by_time = np.tensordot(
                        of_hessian[some], derivative.time_gradient.astype(np.float64), 1
                    )
                for h, (other, time_other) in enumerate(differences):
                    found[:, g, h] += (product * other).sum(axis=(1, 2))
                    if by_time is not None and time_other is not None:
                        found[:, g, h] += (by_time * time_other).sum(axis=1)
                found[:, g, g] += np.tensordot(
                    of_slope[some], derivative.values.astype(np.float64), 1
                )
        main = np.einsum("sgg->sg", found).copy()
        pairs = found + np.swapaxes(found, 1, 2)
        pairs[:, np.arange(count), np.arange(count)] = 0.0
        return _checked(self.name, names, main, pairs, change, count * self.n_steps)


def interaction_method(given: str | InteractionMethod) -> InteractionMethod:
    """Return the method of a name with its default settings, or the object passed.

    Args:
        given: Name of a method, or a method.

    Raises:
        ValueError: If there is no method of this name.
        TypeError: If it is neither a name nor a method.
    """
    by_name = {method.name: method for method in (Archipelago, IntegratedHessians)}
    return named_method(given, by_name, InteractionMethod, "method")


def _checked(
    method: str,
    names: Sequence[str],
    main: FloatArray,
    pairs: FloatArray,
    change: FloatArray,
    passes: int,
) -> Interactions:
    """Return the interactions of the sequences without NaN or infinity."""
    finite = np.isfinite(main).all(axis=1) & np.isfinite(pairs).all(axis=(1, 2))
    finite &= np.isfinite(change)
    return Interactions(
        method, tuple(names), main[finite], pairs[finite], change[finite], passes,
        int((~finite).sum()),
    )  # fmt: skip
