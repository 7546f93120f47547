"""Measure the Jacobians of cells with many units, from products with few vectors.

A Jacobian of ``H`` units takes ``H`` backward steps to compute and about ``25 H^3`` operations for
its eigenvalues. Its products with a few vectors take one step for each vector::

    leading_exponents(products, count=3)          # as lyapunov_exponents
    estimated_memory(products, directions=64)     # as memory_horizon
    leading_gains(products)                       # as jacobian_gains
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...extra_passes.jacobian_products import JacobianProducts
from ...results import FloatArray
from .analysis import (
    SMALLEST,
    Memory,
    elapsed_within,
    exponents_of,
    log_singular_values,
    log_spectral_radius,
    memory_of,
    real_steps,
)

__all__ = [
    "estimated_memory",
    "estimated_stability",
    "leading_exponents",
    "leading_gains",
]

# Additional directions in a frame, with which the leading ones converge sooner.
_OVERSAMPLING = 5
# Products are in float32.
_TOLERANCE = 1e-3
# Time steps, vectors in a block and blocks of Krylov spaces.
_TIME_STEPS, _BLOCK, _RADIUS_BLOCKS, _NORM_BLOCKS = 4, 8, 10, 5


def leading_exponents(
    products: JacobianProducts,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    count: int = 3,
) -> FloatArray:
    """Return Lyapunov exponents as :func:`~.analysis.lyapunov_exponents` does.

    A frame of ``count + 5`` directions is carried through the products and their transposes. The
    leading ones are exact up to rounding in float32 once they have converged.

    Args:
        products: Products of the cell.
        time_delta: See :func:`~.analysis.lyapunov_exponents`.
        mask: See :func:`~.analysis.lyapunov_exponents`.
        count: Number of exponents.

    Returns:
        ``(S, min(count, H))``.
    """
    width = min(count, products.units)

    def carried(t: int, frame: FloatArray, forward: bool) -> FloatArray:
        return products.forward(t, frame) if forward else products.backward(t, frame)

    def logs(valid: npt.NDArray[np.bool_]) -> FloatArray:
        return log_singular_values(
            carried,
            valid,
            products.units,
            min(width + _OVERSAMPLING, products.units),
            tolerance=_TOLERANCE,
            needed=width,
        )[:, :width]

    return exponents_of(logs, products.shape, time_delta, mask, width)


def estimated_stability(
    products: JacobianProducts,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    directions: int = 8,
) -> FloatArray:
    """Return stability exponents as :func:`~.analysis.stability_exponents`, from few directions.

    They are exact once the leading directions have converged, and else too small.

    Args:
        products: Products of the cell.
        time_delta: See :func:`~.analysis.stability_exponents`.
        mask: See :func:`~.analysis.stability_exponents`.
        directions: Number of directions that are carried through the product, three times.

    Returns:
        ``(S,)``.
    """
    count = min(directions, products.units)

    def logs(valid: npt.NDArray[np.bool_]) -> FloatArray:
        radius = log_spectral_radius(products.forward, valid, products.units, count, passes=3)
        return radius[:, None]

    return exponents_of(logs, products.shape, time_delta, mask, 1)[:, 0]


def estimated_memory(
    products: JacobianProducts,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    directions: int = 64,
) -> Memory:
    """Return the memory of :func:`~.analysis.memory_horizon`, from few directions of the state.

    For ``m`` random orthonormal directions ``q`` of each sequence, the mean of ``||P' q||^2`` is an
    unbiased estimate of ``||P||_F^2 / H``. Its relative standard error is at most ``sqrt(2 / m)``
    in the square for one sequence, where a single direction of the state is remembered.

    Args:
        products: Products of the cell.
        time_delta: See :func:`~.analysis.memory_horizon`.
        mask: See :func:`~.analysis.memory_horizon`.
        directions: ``m``.

    Source: Hutchinson 1990 (doi 10.1080/03610919008812866).
    """
    sequences, steps, units = products.sequences, products.steps, products.units
    real, valid = real_steps(mask, products.shape)
    dt, last = elapsed_within(time_delta, real)
    count = min(directions, units)
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((sequences, units, count)))[0]
    norms, elapsed = np.full((2, sequences, steps + 1), np.nan)
    alive = real.any(axis=1)
    norms[alive, 0], elapsed[alive, 0] = 0.0, 0.0
    bad = np.zeros(sequences, bool)
    log_scale, ago = np.zeros(sequences), np.zeros(sequences)
    for t in range(steps - 1, -1, -1):
        started = alive & (t < last)
        alive = alive & (~started | valid[:, t])
        who = np.flatnonzero(started & alive & ~bad)
        if not who.size:
            continue
        moved = products.backward(t, vectors)[who]
        size = np.linalg.norm(moved, axis=(1, 2)) / math.sqrt(count)
        broken = ~np.isfinite(size)
        bad[who[broken]] = True
        who, moved, size = who[~broken], moved[~broken], np.maximum(size[~broken], SMALLEST)
        vectors[who] = moved / size[:, None, None]
        log_scale[who] += np.log(size)
        ago[who] += dt[who, t + 1]
        back = last[who] - t
        norms[who, back], elapsed[who, back] = log_scale[who], ago[who]
    norms[bad], elapsed[bad] = np.nan, np.nan
    return memory_of(norms, elapsed, int(bad.sum()))


def leading_gains(
    products: JacobianProducts, *, mask: np.ndarray | None = None
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """Return spectral radius and operator norm of steps, and the sequence of each step.

    They come from block Krylov spaces of at most four time steps, spread over the sequences. The
    norm is a lower bound, with random matrices of 600 units about 1 % too small. The radius is
    exact where few eigenvalues are far from the others, and with random matrices several percent
    too small.

    Args:
        products: Products of the cell.
        mask: ``(S, T)``, true at real time steps.

    Returns:
        ``(N,)`` three times, without steps that hold NaN or infinity.

    Source: block Krylov methods, Musco & Musco 2015 (arXiv:1504.05477); Arnoldi's for the radius.
    """
    _, valid = real_steps(mask, products.shape)
    times = np.flatnonzero(valid.any(axis=0))
    if not times.size:
        return np.empty(0), np.empty(0), np.empty(0, np.intp)
    places = np.linspace(0, len(times) - 1, min(_TIME_STEPS, len(times))).round().astype(int)
    found: list[tuple[FloatArray, FloatArray]] = []
    owner: list[npt.NDArray[np.intp]] = []
    for t in times[places]:
        radius, norm = _gains(products, int(t))
        use = valid[:, t] & np.isfinite(radius) & np.isfinite(norm)
        found.append((radius[use], norm[use]))
        owner.append(np.flatnonzero(use))
    radii, norms = zip(*found, strict=True)
    return np.concatenate(radii), np.concatenate(norms), np.concatenate(owner)


def _gains(products: JacobianProducts, t: int) -> tuple[FloatArray, FloatArray]:
    """Return radius and norm, ``(S,)`` each, at one time step."""
    space, image = _krylov(products, lambda v: products.backward(t, v), _RADIUS_BLOCKS)
    finite = np.asarray(np.isfinite(image).all(axis=(1, 2)))
    small = space.transpose(0, 2, 1) @ np.where(finite[:, None, None], image, 0.0)
    # Eigenvalues of the transpose are those of the Jacobian.
    radius = np.abs(np.linalg.eigvals(small)).max(axis=1)
    space, _ = _krylov(
        products, lambda v: products.backward(t, products.forward(t, v)), _NORM_BLOCKS
    )
    image = products.forward(t, space)
    finite &= np.isfinite(image).all(axis=(1, 2))
    norm = np.linalg.norm(np.where(finite[:, None, None], image, 0.0), 2, axis=(1, 2))
    return np.where(finite, radius, np.nan), np.where(finite, norm, np.nan)


def _krylov(
    products: JacobianProducts, apply: Callable[[FloatArray], FloatArray], blocks: int
) -> tuple[FloatArray, FloatArray]:
    """Return an orthonormal basis ``(S, H, d)`` and its image; NaN where that is not finite."""
    shape = (products.sequences, products.units, _BLOCK)
    block = np.linalg.qr(np.random.default_rng(0).standard_normal(shape))[0]
    basis, image = block, apply(block)
    for _ in range(min(blocks, products.units // _BLOCK) - 1):
        new = np.nan_to_num(image[..., -_BLOCK:], posinf=0.0, neginf=0.0)
        # Twice, which keeps the basis orthonormal to rounding.
        for _ in range(2):
            new = new - basis @ (basis.transpose(0, 2, 1) @ new)
            new = np.linalg.qr(new)[0]
        basis = np.concatenate([basis, new], axis=2)
        image = np.concatenate([image, apply(new)], axis=2)
    return basis, image
