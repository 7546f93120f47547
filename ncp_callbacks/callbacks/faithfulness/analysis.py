"""Measure how well an attribution map predicts the effect of removing inputs on the target.

    result = deletion(passes.evaluate, inputs, attributed, baseline=x0, effects=attributed)
    result.cpd                      # (S,), path length while the largest 20 % are removed
    result.cpd_random               # (S,), path length in random order

A cell is one input at one time step. It is removed by setting it to its baseline. All numbers are
in units of the RMS change of the target when all cells are removed, so that they compare over
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import Estimate
from ...target_values import Evaluate

__all__ = [
    "Deletion",
    "deletion",
    "max_sensitivity",
    "noise_similarity",
    "structural_similarity",
]

# Number of elements of all variants of the batch in one call: 16 MB of float32.
_MAX_ELEMENTS = 1 << 22
# Share of the largest target below which its change is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Deletion(MappingResult):
    """Hold targets of ``S`` sequences while cells are removed, in ``K`` groups.

    Attributes:
        shares: ``(K + 1,)``, share of a sequence's real cells that is removed, from 0 to 1.
        decreasing: ``(S, K + 1)``, change of the target since nothing was removed, in units of
            ``change``; cells of the largest absolute attribution are removed first.
        increasing: ``(S, K + 1)``, the change if cells of the smallest absolute attribution are
            removed first.
        random: ``(R, S, K + 1)``, the change if cells are removed in fixed random orders.
        change: RMS over sequences of the change when all cells are removed: the unit. 0 if the
            target doesn't depend on the inputs beyond rounding; then all curves are NaN.
        top: Share of the cells that ``cpd`` and ``cpp`` remove.
        infidelity: ``(S,)``, see :func:`deletion`; None if no effects were passed.
        infidelity_random: ``(S,)``, infidelity of the map with its cells shuffled.
        sequences: Number of sequences ``S``.
        non_finite: Number of sequences that were skipped because of NaN or infinity.
    """

    _plot = "plot_faithfulness"

    shares: FloatArray
    decreasing: FloatArray
    increasing: FloatArray
    random: FloatArray
    change: float
    top: float
    infidelity: FloatArray | None
    infidelity_random: FloatArray | None
    sequences: int
    non_finite: int

    @property
    def rms_ci(self) -> FloatArray:
        """Return ``(2, 2, K + 1)`` 95 % CIs of RMS changes: ends, by order, by share removed.

        The orders are the decreasing and the increasing one. The CIs include the uncertainty of the
        unit, so that the change without any input is exactly 1. NaN where there is no CI.
        """
        squares = np.stack([self.decreasing, self.increasing], axis=1).astype(np.float64) ** 2
        found = np.full((2, *squares.shape[1:]), np.nan)
        if len(squares) < 2:
            return found
        for order, removed in np.ndindex(*squares.shape[1:]):
            moved = squares[:, order, removed]
            estimate = Estimate.rms(moved, squares[:, order, -1])
            if estimate.value == 0 or removed == squares.shape[2] - 1:
                found[:, order, removed] = estimate.value
            else:
                found[:, order, removed] = estimate.ci() or (np.nan, np.nan)
        return found

    @property
    def cpd(self) -> FloatArray:
        """Return ``(S,)`` cumulative prediction differences: high if the map knows what matters."""
        return self._length(self.decreasing)

    @property
    def cpp(self) -> FloatArray:
        """Return ``(S,)`` cumulative prediction preservations, the ``cpd`` of the reversed order.

        They are low if the map knows what doesn't matter.
        """
        return self._length(self.increasing)

    @property
    def cpd_random(self) -> FloatArray:
        """Return ``(S,)``, the ``cpd`` of random orders, averaged over the orders."""
        mean: FloatArray = self._length(self.random).mean(axis=0)
        return mean

    @property
    def cpd_advantage(self) -> FloatArray:
        """Return ``(S,)``, ``cpd - cpd_random``."""
        advantage: FloatArray = self.cpd - self.cpd_random
        return advantage

    def comprehensiveness(self, share: float) -> FloatArray:
        """Return ``(S,)`` absolute changes without the ``share`` of largest attribution."""
        moved: FloatArray = np.abs(self.decreasing[:, self._index(share)])
        return moved

    def comprehensiveness_random(self, share: float) -> FloatArray:
        """Return ``(S,)`` absolute changes without a random share."""
        moved: FloatArray = np.abs(self.random[:, :, self._index(share)]).mean(axis=0)
        return moved

    def sufficiency(self, share: float) -> FloatArray:
        """Return ``(S,)`` absolute changes with only that share left: low if it suffices."""
        moved: FloatArray = np.abs(self.increasing[:, self._index(1 - share)])
        return moved

    def sufficiency_random(self, share: float) -> FloatArray:
        """Return ``(S,)`` absolute changes with only a random share left."""
        moved: FloatArray = np.abs(self.random[:, :, self._index(1 - share)]).mean(axis=0)
        return moved

    def _length(self, curves: FloatArray) -> FloatArray:
        length: FloatArray = np.abs(np.diff(curves[..., : self._index(self.top) + 1])).sum(axis=-1)
        return length

    def _index(self, share: float) -> int:
        n_groups = len(self.shares) - 1
        index = round(share * n_groups)
        if not 0 <= index <= n_groups or abs(index - share * n_groups) > 1e-6:
            raise ValueError(f"share={share}: pass a multiple of {1 / n_groups:g} from 0 to 1")
        return index


def deletion(
    evaluate: Evaluate,
    inputs: FloatArray,
    attributed: FloatArray,
    *,
    baseline: FloatArray,
    effects: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    n_groups: int = 20,
    orders: int = 4,
    top: float = 0.2,
    seed: int = 0,
) -> Deletion:
    """Remove cells in groups, by decreasing and increasing ``|attributed|`` and in random orders.

    This takes ``(2 + orders) (n_groups - 1) + 2`` forward passes of every sequence.

    Args:
        evaluate: Function that evaluates the target.
        inputs: ``(B, T, F)``.
        attributed: The map, ``(B, T, F)``, or ``(B, T, 1)`` if a cell is all features of a time
            step (tokens). Only its order counts; equal values come in random order.
        baseline: ``(B, T, F)``, values of removed cells.
        effects: The fall of the target that the map predicts for the removal of each cell, in the
            shape of ``attributed``. For an attribution in units of the target that is the
            attribution itself; for a gradient it is ``(inputs - baseline)`` times the gradient.
        mask: ``(B, T)``, true at real time steps; others stay as they are.
        n_groups: Number of groups, each an equal share of a sequence's real cells, rounded.
        orders: Number of random orders.
        top: Share of the cells that ``cpd`` and ``cpp`` remove.
        seed: Seed of the random orders.

    ``cpd`` and ``cpp`` are sums over the first groups of ``|F(x_k) - F(x_{k+1})|`` (Jang et al.
    2025, TIMING, arXiv:2506.05035). Unlike changes by all cells at once, they don't reward maps
    whose signs agree. Within a group, opposite contributions still cancel. Comprehensiveness and
    sufficiency are those of DeYoung et al. 2020 (arXiv:1911.03429), without signs.

    Infidelity (Yeh et al. 2019, arXiv:1901.09392) is the mean over random sets of removed cells of
    the squared difference between the sum of their effects and the fall of the target. Here it is
    divided by the infidelity of a map of zeros on all sequences, so that 0 is exact and 1 no better
    than zeros. The sets are those of the random orders, so that no extra pass is needed.
    """
    x, x0 = inputs.astype(np.float64), baseline.astype(np.float64)
    batch = len(x)
    real = _real_cells(attributed, mask)
    count = real.sum(axis=(1, 2))
    shares = np.arange(n_groups + 1) / n_groups
    removed = np.floor(shares[:, None] * count + 0.5).astype(np.int64)
    rng = np.random.default_rng(seed)
    ranks = [_ranks(rng.uniform(size=real.shape), real) for _ in range(orders)]
    size = np.where(np.isfinite(attributed), np.abs(attributed.astype(np.float64)), 0.0)
    # Ties are broken at random: a map of zeros would otherwise go by time.
    down = _ranks(-size, real, rng.uniform(size=real.shape))
    up = np.where(real, count[:, None, None] - 1 - down, down)
    variants = [(down, removed[0]), (down, removed[-1])]
    variants += [(rank, removed[k]) for rank in (down, up, *ranks) for k in range(1, n_groups)]
    values = _targets(evaluate, x, x0, variants)
    start, end = values[0], values[1]
    between = values[2:].reshape(2 + orders, n_groups - 1, batch)
    ends = np.ones((2 + orders, 1, 1))
    curves = np.concatenate([ends * start, between, ends * end], axis=1)
    with np.errstate(invalid="ignore"):
        curves = np.moveaxis(curves - start, 1, 2)

    finite = np.isfinite(curves).all(axis=(0, 2)) & np.isfinite(attributed).all(axis=(1, 2))
    curves = curves[:, finite]
    change = float(np.sqrt(np.mean(curves[0, :, -1] ** 2))) if finite.any() else 0.0
    if change <= _ROUNDING * float(np.abs(start[finite]).max(initial=0.0)):
        change = 0.0
    exact = shuffled = None
    if effects is not None:
        own = np.where(real, effects.astype(np.float64), 0.0)
        mixed = [_shuffled(own, real, rng) for _ in range(orders)]
        changes = curves[2:]
        exact = _infidelity([own] * orders, ranks, removed, finite, changes)
        shuffled = _infidelity(mixed, ranks, removed, finite, changes)
    relative = curves / change if change > 0 else np.full_like(curves, np.nan)
    return Deletion(
        shares=shares,
        decreasing=relative[0],
        increasing=relative[1],
        random=relative[2:],
        change=change,
        top=top,
        infidelity=exact if change > 0 else None,
        infidelity_random=shuffled if change > 0 else None,
        sequences=int(finite.sum()),
        non_finite=int((~finite).sum()),
    )


def _real_cells(
    attributed: FloatArray, mask: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.bool_]:
    if mask is None:
        return np.ones(attributed.shape, bool)
    return np.broadcast_to(np.asarray(mask, bool)[..., None], attributed.shape)


def _ranks(
    key: npt.NDArray[np.float64], real: npt.NDArray[np.bool_], ties: FloatArray | None = None
) -> npt.NDArray[np.int64]:
    """Return ``(B, T, F)`` places of cells in the order of ``key``; padding comes last."""
    flat = np.where(real, key, np.inf).reshape(len(key), -1)
    second = np.zeros_like(flat) if ties is None else ties.reshape(flat.shape)
    order = np.lexsort((second, flat), axis=1)
    place = np.empty(order.shape, np.int64)
    np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)
    return place.reshape(key.shape)


def _targets(
    evaluate: Evaluate,
    x: FloatArray,
    x0: FloatArray,
    variants: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> FloatArray:
    """Return ``(V, B)`` targets; each variant removes the first cells of an order."""
    size = max(1, _MAX_ELEMENTS // x.size)
    parts = []
    for begin in range(0, len(variants), size):
        group = variants[begin : begin + size]
        gone = np.stack([rank < upto[:, None, None] for rank, upto in group])
        parts.append(evaluate(np.where(gone, x0, x).astype(np.float32)).values)
    return np.concatenate(parts).astype(np.float64)


def _shuffled(
    effects: FloatArray, real: npt.NDArray[np.bool_], rng: np.random.Generator
) -> FloatArray:
    mixed = np.zeros_like(effects)
    for own, cells, new in zip(effects, real, mixed, strict=True):
        new[cells] = rng.permutation(own[cells])
    return mixed


def _infidelity(
    effects: Sequence[FloatArray],
    ranks: Sequence[npt.NDArray[np.int64]],
    removed: npt.NDArray[np.int64],
    finite: npt.NDArray[np.bool_],
    curves: FloatArray,
) -> FloatArray | None:
    """Return ``(S,)`` infidelities of the random orders.

    Args:
        effects: ``R`` arrays ``(B, T, F)``, the effects for each order.
        ranks: ``R`` arrays ``(B, T, F)``, places of the cells in each order.
        removed: ``(K + 1, B)``, number of cells removed.
        finite: ``(B,)``, true for the sequences to use.
        curves: ``(R, S, K + 1)``, change of the target.

    Returns:
        None without sequences, if nothing changes, and for effects that are not finite.
    """
    if not finite.any():
        return None
    gaps, falls = [], []
    for effect, rank, curve in zip(effects, ranks, curves, strict=True):
        flat = effect[finite].reshape(len(curve), -1)
        order = np.argsort(rank[finite].reshape(flat.shape), axis=1)
        total = np.take_along_axis(flat, order, axis=1).cumsum(axis=1)
        # Neither nothing nor everything is a random set.
        upto = removed[1:-1, finite].T
        predicted = np.where(
            upto > 0, np.take_along_axis(total, np.maximum(upto - 1, 0), axis=1), 0.0
        )
        fall = -curve[:, 1:-1]
        gaps.append(np.mean((predicted - fall) ** 2, axis=1))
        falls.append(np.mean(fall**2))
    scale, gap = float(np.mean(falls)), np.mean(gaps, axis=0)
    return gap / scale if scale > 0 and np.isfinite(gap).all() else None


def max_sensitivity(
    attribute: Callable[[FloatArray], FloatArray],
    inputs: FloatArray,
    attributed: FloatArray,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    radius: float = 0.1,
    n_samples: int = 4,
    seed: int = 0,
) -> FloatArray:
    """Return ``(B,)``, the largest change of a map under small changes of its inputs.

    That is ``max_e ||map(x + e) - map(x)|| / ||map(x)||`` over fixed random ``e``, uniform within
    ``radius`` SDs of each feature (over sequences and real time steps). With few samples the
    maximum is too small.

    Args:
        attribute: Function from inputs ``(B, T, F)`` to their map; called ``n_samples`` times.
        inputs: ``(B, T, F)``.
        attributed: The map of the inputs, ``(B, T, F)`` or ``(B, T, 1)``.
        mask: ``(B, T)``, true at real time steps.
        radius: Largest change, in SDs of a feature.
        n_samples: Number of random changes.
        seed: Seed of the random changes.

    Returns:
        NaN for maps of zeros and for values that are not finite.

    Source: Yeh et al. 2019 (arXiv:1901.09392), definition 2.2, here relative to the map's norm.
    """
    x = inputs.astype(np.float64)
    real = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    reach = radius * x[real].std(axis=0)
    cells = _real_cells(attributed, mask)

    def norm(values: FloatArray) -> FloatArray:
        length: FloatArray = np.sqrt((np.where(cells, values, 0.0) ** 2).sum(axis=(1, 2)))
        return length

    own = attributed.astype(np.float64)
    rng = np.random.default_rng(seed)
    largest = np.zeros(len(x))
    for _ in range(n_samples):
        shift = np.where(real[..., None], rng.uniform(-1.0, 1.0, x.shape) * reach, 0.0)
        moved = attribute((x + shift).astype(np.float32))
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.maximum(largest, norm(moved - own))  # which keeps NaN
    with np.errstate(invalid="ignore", over="ignore"):
        size = norm(own)
        relative = np.divide(largest, size, out=np.full(len(x), math.nan), where=size > 0)
    return np.where(np.isfinite(relative), relative, math.nan)


def structural_similarity(
    a: FloatArray, b: FloatArray, mask: npt.NDArray[np.bool_] | None = None
) -> FloatArray:
    """Return ``(B,)`` SSIMs of maps: 1 if equal, 0 if unrelated, below 0 if opposite.

    With both maps of a sequence scaled to [0, 1] by their common minimum and maximum, so that the
    data range ``L`` is 1, it is the product of the similarities of their means, SDs and patterns:
    ``(2 m_a m_b + C1) / (m_a^2 + m_b^2 + C1)``, ``(2 s_a s_b + C2) / (s_a^2 + s_b^2 + C2)``
    and ``(s_ab + C3) / (s_a s_b + C3)``, ``C1 = (0.01 L)^2``, ``C2 = (0.03 L)^2``, ``C3 = C2 / 2``.
    Without the common scale the means of maps with signs could differ in sign, and the SSIM of a
    map and its negative would be positive.

    Means and SDs are over all real cells of a map. The usual mean over small windows is for images:
    features have no order in which they would be neighbours.

    Args:
        a: ``(B, T, F)``, finite or not.
        b: ``(B, T, F)``, finite or not.
        mask: ``(B, T)``, true at real time steps.

    Returns:
        NaN for maps that are not finite, that are both equal to one constant, or have one cell.

    Source: Wang et al. 2004 (doi 10.1109/TIP.2003.819861), equations 4 to 12.
    """
    result = np.full(len(a), math.nan)
    for i, real in enumerate(_real_cells(a, mask)):
        x, y = a[i][real].astype(np.float64), b[i][real].astype(np.float64)
        if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
            continue
        low = min(x.min(), y.min())
        span = max(x.max(), y.max()) - low
        if not span > 0:
            continue
        x, y = (x - low) / span, (y - low) / span
        c1, c2 = 0.01**2, 0.03**2
        ((xx, xy), (_, yy)), mx, my = np.cov(x, y), x.mean(), y.mean()
        # With C3 = C2 / 2 the last two factors are one fraction.
        result[i] = (2 * mx * my + c1) / (mx**2 + my**2 + c1) * (2 * xy + c2) / (xx + yy + c2)
    return result


def noise_similarity(
    attribute: Callable[[FloatArray], FloatArray],
    inputs: FloatArray,
    attributed: FloatArray,
    *,
    variances: Sequence[float],
    mask: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> FloatArray:
    """Return ``(V, B)`` structural similarities of a map with the map of noisy inputs.

    The noise is Gaussian. A variance is in units of the feature's variance over sequences and real
    time steps: 0.1 is noise with an SD of 0.32 SDs. The noise is fixed, and differs between
    variances by a factor only.

    Args:
        attribute: Function from inputs ``(B, T, F)`` to their map; called once for each variance.
        inputs: ``(B, T, F)``.
        attributed: The map of the inputs, ``(B, T, F)`` or ``(B, T, 1)``.
        variances: Variances above 0.
        mask: ``(B, T)``, true at real time steps; others stay as they are.
        seed: Seed of the noise.

    Source: Lechner et al. 2020 (doi 10.1038/s42256-020-00237-3), of saliency maps of images, with
    variances 0.1, 0.2 and 0.3. For the similarity see :func:`structural_similarity`.
    """
    x = inputs.astype(np.float64)
    real = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    noise = np.random.default_rng(seed).normal(size=x.shape) * x[real].std(axis=0)
    noise = np.where(real[..., None], noise, 0.0)
    similar = [
        structural_similarity(
            attributed, attribute((x + math.sqrt(variance) * noise).astype(np.float32)), mask
        )
        for variance in variances
    ]
    return np.stack(similar) if similar else np.zeros((0, len(x)))
