"""Project hidden trajectories on principal components that stay comparable between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...results import ArrayResult, FloatArray, compact
from ...stats import SHARE, SIZE, Estimate, with_cis

__all__ = [
    "Basis",
    "StateSpace",
    "centred_for_estimates",
    "explained_variance",
    "fit_basis",
    "participation_ratios_without_each",
    "state_space",
]


@dataclass(frozen=True, eq=False)
class Basis:
    """Hold an orthonormal basis to show states in.

    Attributes:
        mean: ``(H,)``.
        components: ``(k, H)``, orthonormal rows.
    """

    mean: FloatArray
    components: FloatArray


@dataclass(frozen=True, eq=False)
class StateSpace(ArrayResult):
    """Hold hidden trajectories in ``k`` dimensions. As an array it is ``scores``.

    Attributes:
        scores: ``(B, T, k)``, states in the basis; NaN in padding and for non-finite states.
        basis: The basis used, with the mean that was subtracted.
        axis_variance_ratio: ``(k,)``, share of the states' variance along each axis of the basis.
        explained_variance_ratio: ``(H,)``, spectrum of the states' own principal components, as
            shares of the total, decreasing.
        captured: Variance within the basis over that within the best ``k``-dimensional one, in
            [0, 1]; 1 for a basis just fitted or constant states.
        refitted: True if the basis was fitted to these states.
        participation_ratio: ``(sum l)^2 / sum l^2`` of the spectrum, the number of dimensions in
            use, between 1 and H; NaN for constant states. It is biased low if there are few states.
        samples: Number of states used.
        non_finite: Number of states at real time steps that were skipped because of NaN or
            infinity.
        cell: Name of the recurrent cell.
        estimates: ``pc<i>_share``, ``basis_captured`` and ``participation_ratio`` as estimates over
            sequences, as far as they are known. The CI of the participation ratio is corrected for
            the bias of few states, so it may lie above the number itself.
    """

    _plot, _main_field = "plot_state_space", "scores"

    scores: FloatArray
    basis: Basis
    axis_variance_ratio: FloatArray
    explained_variance_ratio: FloatArray
    captured: float
    refitted: bool
    participation_ratio: float
    samples: int
    non_finite: int
    cell: str
    estimates: Mapping[str, Estimate]


def explained_variance(samples: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the mean of samples, the variances along their principal axes, and the axes.

    The axes are computed by :class:`sklearn.decomposition.PCA` as eigenvectors of the covariance,
    which for tall data is far cheaper than a singular value decomposition. Of at most twice as many
    samples as units they are computed from the samples' scalar products, whose non-zero eigenvalues
    are those of the covariance. Variances have ``N`` in the denominator.

    Args:
        samples: ``(N, H)``.

    Returns:
        The mean ``(H,)``, the variances ``(H,)``, decreasing, and the axes ``(min(N, H), H)``.
    """
    x = samples.astype(np.float64)
    count, width = x.shape
    mean = x.mean(axis=0)
    variances = np.zeros(width)
    # Centred here, because the solver subtracts the mean from squares, which loses digits.
    x -= mean
    if not x.any():
        return mean, variances, np.eye(width)[:count]
    # The dry run has few samples, and must not wait for scikit-learn's import.
    if count <= 2 * width:
        kept = min(count, width)
        values, vectors = np.linalg.eigh(x @ x.T / count)
        # The axes are orthonormal also where a variance is only a rounding error; one always is.
        axes, signs = np.linalg.qr(x.T @ vectors[:, ::-1][:, :kept])
        axes = axes * np.where(np.diagonal(signs) < 0, -1.0, 1.0)
        variances[:kept] = np.maximum(values[::-1][:kept], 0.0)
        return mean, variances, axes.T
    from sklearn.decomposition import PCA

    pca = PCA(svd_solver="covariance_eigh").fit(x)
    variances[: len(pca.components_)] = pca.explained_variance_ * (count - 1) / count
    return mean, np.maximum(variances, 0.0), pca.components_


def fit_basis(samples: FloatArray, components: int, like: Basis | None = None) -> Basis:
    """Return the first principal axes of samples as a basis.

    The sign of an axis is arbitrary. It is chosen to agree with ``like``, or else to make the
    largest weight positive. With fewer units than components, the remaining axes are 0.

    Args:
        samples: ``(N, H)``.
        components: Number of axes.
        like: An earlier basis; None for none.
    """
    mean, _, axes = explained_variance(samples)
    axes = axes[:components]
    if like is not None and like.components.shape[1] == axes.shape[1]:
        old = like.components[: len(axes)]
        sign = np.sign((axes * old).sum(axis=1))
    else:
        sign = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    axes = axes * np.where(sign == 0, 1.0, sign)[:, None]
    if len(axes) < components:
        axes = np.concatenate([axes, np.zeros((components - len(axes), axes.shape[1]))])
    return Basis(mean=mean, components=axes)


def state_space(
    states: FloatArray,
    *,
    mask: np.ndarray | None = None,
    basis: Basis | None = None,
    components: int = 2,
    refit_below: float = 0.8,
    cell: str = "cell",
) -> StateSpace:
    """Project trajectories on a basis that is kept as long as it captures enough variance.

    Fitting the axes again at every snapshot would let them turn and flip between pictures without
    the states moving.

    Args:
        states: ``(B, T, H)``.
        mask: ``(B, T)``, true at real time steps; None if all are real.
        basis: Basis of an earlier snapshot. It is kept unless ``captured`` falls below
            ``refit_below`` or its shape isn't ``(components, H)``. None to fit one.
        components: Number ``k`` of axes.
        refit_below: Smallest ``captured`` at which ``basis`` is kept.
        cell: Name of the recurrent cell.

    Raises:
        ValueError: If ``components`` is below 1.

    Source: principal components of hidden states as in Lechner et al. 2020 (doi
    10.1038/s42256-020-00237-3); participation ratio, Gao et al. 2017 (bioRxiv 214262).
    """
    if components < 1:
        raise ValueError(f"components={components}: pass the number of axes, at least 1")
    batch, steps, width = states.shape
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    finite = np.isfinite(states).all(axis=2)
    use = real & finite
    samples = states[use].astype(np.float64)
    scores = np.full((batch, steps, components), np.nan)
    none = np.full(width, np.nan)
    if not len(samples):
        kept = basis or Basis(np.zeros(width), np.zeros((components, width)))
        return StateSpace(
            scores=compact(scores), basis=kept, axis_variance_ratio=np.full(components, np.nan),
            explained_variance_ratio=none, captured=float("nan"), refitted=False,
            participation_ratio=float("nan"), samples=0, non_finite=int((real & ~finite).sum()),
            cell=cell, estimates={},
        )  # fmt: skip
    mean, variances, axes = explained_variance(samples)
    total = float(variances.sum())
    # Below this limit, differences between states are rounding errors of float32.
    if total <= width * (1e-7 * float(np.abs(samples).max())) ** 2:
        variances, total = np.zeros_like(variances), 0.0

    def share(of: Basis) -> tuple[FloatArray, float]:
        """Return the shares of variance along the axes of a basis, and what it captures."""
        if not total:
            return np.zeros(len(of.components)), 1.0
        along = np.var((samples - mean) @ of.components.T, axis=0)
        best = float(variances[: len(of.components)].sum())
        return along / total, min(1.0, float(along.sum()) / best)

    used, refitted = basis, False
    if used is None or used.components.shape != (components, width):
        used, refitted = fit_basis(samples, components), True
    axis_share, captured = share(used)
    if not refitted and captured < refit_below:
        used, refitted = fit_basis(samples, components, like=used), True
        axis_share, captured = share(used)
    scores[use] = (samples - used.mean) @ used.components.T
    squares = float((variances**2).sum())
    ratio = total**2 / squares if squares else float("nan")
    estimates: dict[str, Estimate] = {}
    if total:
        centred = centred_for_estimates(samples - mean, use)
        estimates = _shares(centred, used.components, axes[: len(used.components)])
        estimates["participation_ratio"] = Estimate.jackknife(
            ratio,
            participation_ratios_without_each(centred, use),
            SIZE.within(1.0, float(width)),
            bias_corrected=True,
        )
    return StateSpace(
        scores=compact(scores),
        basis=used,
        axis_variance_ratio=axis_share,
        explained_variance_ratio=variances / total if total else np.zeros(width),
        captured=captured,
        refitted=refitted,
        participation_ratio=ratio,
        samples=len(samples),
        non_finite=int((real & ~finite).sum()),
        cell=cell,
        estimates=with_cis(estimates),
    )


def centred_for_estimates(centred: FloatArray, use: np.ndarray) -> FloatArray:
    """Return centred samples at their places ``(B, T, H)``, rescaled, with 0 elsewhere.

    They are float32, which is fast and precise enough for a CI. They are rescaled by a power of
    two, because float32 might not hold their products otherwise.

    Args:
        centred: ``(N, H)``, the used samples minus their mean.
        use: ``(B, T)``, true where a sample is used.
    """
    _, exponent = np.frexp(np.abs(centred).max(initial=0.0))
    found = np.zeros((*use.shape, centred.shape[1]), np.float32)
    found[use] = np.ldexp(centred, -exponent)
    return found


def _shares(centred: FloatArray, shown: FloatArray, best: FloatArray) -> dict[str, Estimate]:
    """Return the shares of variance along axes, and what the axes capture, as estimates.

    To first order, the variance along a principal axis changes as if the axis were fixed.

    Args:
        centred: ``(B, T, H)``, states minus their mean; 0 where none is used.
        shown: ``(k, H)``, the axes shown.
        best: ``(k, H)``, the first principal axes.
    """
    along = ((centred @ shown.T.astype(np.float32)) ** 2).sum(axis=1)
    whole = np.einsum("bth,bth->b", centred, centred)
    captured = ((centred @ best.T.astype(np.float32)) ** 2).sum(axis=1).sum(axis=1)
    found = {
        f"pc{axis}_share": Estimate.ratio(own, whole, SHARE)
        for axis, own in enumerate(along.T, start=1)
    }
    return found | {"basis_captured": Estimate.ratio(along.sum(axis=1), captured, SHARE)}


# Largest number of elements of second moments in memory.
_MAX_ELEMENTS = 1 << 20


def participation_ratios_without_each(centred: FloatArray, use: np.ndarray) -> FloatArray:
    """Return ``(B,)``, the participation ratio of all states but those of each sequence.

    Args:
        centred: ``(B, T, H)``, states minus their mean; 0 where none is used.
        use: ``(B, T)``, true where a state is used.
    """
    count, width = use.sum(axis=1), centred.shape[2]
    flat = centred.reshape(-1, width)
    if width > len(flat):
        return _without_each_by_products(centred, count)
    total = (flat.T @ flat).astype(np.float64)
    others = np.maximum(count.sum() - count, 1).astype(np.float64)
    first = centred.sum(axis=1, dtype=np.float64)
    mean = (first.sum(axis=0) - first) / others[:, None]
    size = (mean**2).sum(axis=1)
    # <S, S_b>, |S_b|^2 and m' S_b m of the second moments S_b of each sequence, in groups.
    inner, own, along = np.empty((3, len(count)))
    size_of_group = max(1, _MAX_ELEMENTS // width**2)
    for start in range(0, len(count), size_of_group):
        at = slice(start, start + size_of_group)
        second = centred[at].transpose(0, 2, 1) @ centred[at]
        rows = second.reshape(len(second), -1)
        inner[at] = rows @ total.ravel()
        own[at] = np.einsum("bi,bi->b", rows, rows, dtype=np.float64)
        along[at] = np.einsum("bi,bi->b", (second @ mean[at, :, None])[..., 0], mean[at])
    trace = (np.trace(total) - np.einsum("bth,bth->b", centred, centred)) / others - size
    squares = (
        (float((total**2).sum()) - 2 * inner + own) / others**2
        - 2 * (np.einsum("bi,bi->b", mean @ total, mean) - along) / others
        + size**2
    )
    return _ratio(trace, squares)


def _without_each_by_products(centred: FloatArray, count: np.ndarray) -> FloatArray:
    """Return the ratios if there are more units than samples, from the samples' scalar products."""
    batch, steps, width = centred.shape
    flat = centred.reshape(-1, width).astype(np.float64)
    gram = flat @ flat.T
    blocks = (gram**2).reshape(batch, steps, batch, steps).sum(axis=(1, 3))
    others = np.maximum(count.sum() - count, 1).astype(np.float64)
    first = centred.sum(axis=1, dtype=np.float64)
    mean = (first.sum(axis=0) - first) / others[:, None]
    size = (mean**2).sum(axis=1)
    # <S, S_b>, |S_b|^2, m' S m and m' S_b m of the second moments S and S_b.
    inner, own = blocks.sum(axis=0), np.diagonal(blocks)
    along = ((flat @ mean.T) ** 2).reshape(batch, steps, batch).sum(axis=1)
    sizes = np.diagonal(gram).reshape(batch, steps).sum(axis=1)
    trace = (sizes.sum() - sizes) / others - size
    squares = (
        (blocks.sum() - 2 * inner + own) / others**2
        - 2 * (along.sum(axis=0) - np.diagonal(along)) / others
        + size**2
    )
    return _ratio(trace, squares)


def _ratio(trace: FloatArray, squares: FloatArray) -> FloatArray:
    """Return participation ratios from traces and sums of squares of covariances."""
    ratio: FloatArray = np.divide(
        trace**2, squares, out=np.full(len(trace), np.nan), where=squares > 0
    )
    return ratio
