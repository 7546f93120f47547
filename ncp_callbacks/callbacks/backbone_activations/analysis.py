"""Measure how the units of backbone layers are used, depending on their activation function."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from ...activations import ACTIVATIONS
from ...results import Exported, FloatArray, MappingResult
from ...stats import SHARE, SIZE, Estimate, with_cis
from ...stats.estimate import sd_of_sums

__all__ = [
    "BackboneReport",
    "LayerStatistics",
    "layer_statistics",
]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LayerStatistics(MappingResult):
    """Hold statistics of the activations of one layer over all sequences and real time steps.

    Attributes:
        layer: Name of the layer: its module path.
        activation: Name of its activation function, a key of :data:`ACTIVATIONS`.
        mean: Mean activation.
        std: Standard deviation of the activations.
        sparsity: Share of activations that are off or stuck; see ``sparse_means``.
        sparse_means: The values that ``sparsity`` counts for this activation function, in words.
        dead_units: Number of units that have one value for all sequences and time steps.
        units: Number of units.
        treves_rolls: ``(mean |a|)^2 / mean a^2`` over units, averaged over samples: 1 if all units
            are equally active, ``1/units`` if one unit is; NaN if all activations are 0.
        active_fraction: ``(N,)``, share of samples in which each unit is neither off nor stuck.
        dead: ``(N,)`` bool, true for units that have one value.
        samples: Number of samples used: real time steps of all sequences.
        non_finite: Number of samples skipped because of NaN or infinity.
        estimates: ``mean``, ``std``, ``sparsity`` and ``treves_rolls`` as estimates over
            sequences, as far as they are known.
    """

    layer: str
    activation: str
    mean: float
    std: float
    sparsity: float
    sparse_means: str
    dead_units: int
    units: int
    treves_rolls: float
    active_fraction: FloatArray
    dead: BoolArray
    samples: int
    non_finite: int
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, eq=False)
class BackboneReport(Exported, Sequence[LayerStatistics]):
    """Hold the :class:`LayerStatistics` of each layer, in the order of the forward pass."""

    _plot = "plot_unit_activity"

    layers: tuple[LayerStatistics, ...]

    def _repr_png_(self) -> bytes | None:
        return super()._repr_png_() if self.layers else None

    @overload
    def __getitem__(self, index: int) -> LayerStatistics: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerStatistics]: ...
    def __getitem__(self, index: int | slice) -> LayerStatistics | Sequence[LayerStatistics]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerStatistics]:
        return iter(self.layers)


def layer_statistics(
    activations: FloatArray,
    *,
    layer: str = "layer",
    activation: str = "unknown",
    mask: np.ndarray | None = None,
) -> LayerStatistics:
    """Return statistics of the activations of one layer.

    Args:
        activations: ``(B, T, N)``.
        layer: Name of the layer.
        activation: A key of :data:`ACTIVATIONS`. It decides which values ``sparsity`` counts,
            because bounded functions like tanh are hardly ever exactly 0.
        mask: ``(B, T)``, true at real time steps; None if all are real.

    Raises:
        ValueError: If ``activation`` is unknown.

    Source: sparseness after Treves & Rolls 1991 (doi 10.1088/0954-898X_2_4_004), with ``|a|`` to
    allow activations of both signs.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is unknown: pass one of {', '.join(ACTIVATIONS)}"
        )
    kind = ACTIVATIONS[activation]
    units = activations.shape[-1]
    real = np.ones(activations.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    raw = activations.reshape(-1, units) if real.all() else activations[real]
    samples = raw.astype(np.float64)
    # The sum over units is finite exactly if all of them are: they are float32.
    finite = np.isfinite(samples.sum(axis=1))
    if not finite.all():
        raw, samples = raw[finite], samples[finite]
    if not len(samples):
        nan = float("nan")
        return LayerStatistics(
            layer=layer, activation=activation, mean=nan, std=nan, sparsity=nan,
            sparse_means=kind.sparse_means, dead_units=0, units=units, treves_rolls=nan,
            active_fraction=np.full(units, nan), dead=np.zeros(units, bool), samples=0,
            non_finite=int((~finite).sum()), estimates={},
        )  # fmt: skip
    inactive = kind.inactive(raw)
    dead = raw.max(axis=0) == raw.min(axis=0)
    size = np.abs(samples).mean(axis=1)
    power = np.einsum("mn,mn->m", samples, samples) / units
    sparseness = size[power > 0] ** 2 / power[power > 0]
    mean = float(samples.mean())
    # Around the mean, so that squares don't cancel.
    centred = np.subtract(samples, mean, out=samples)
    squares = np.einsum("mn,mn->m", centred, centred)
    return LayerStatistics(
        layer=layer,
        activation=activation,
        mean=mean,
        std=math.sqrt(float(squares.mean()) / units),
        sparsity=float(inactive.mean()),
        sparse_means=kind.sparse_means,
        dead_units=int(dead.sum()),
        units=units,
        treves_rolls=float(sparseness.mean()) if sparseness.size else float("nan"),
        active_fraction=1.0 - inactive.mean(axis=0),
        dead=dead,
        samples=len(samples),
        non_finite=int((~finite).sum()),
        estimates=_estimates(
            mean,
            centred.sum(axis=1),
            squares,
            inactive.sum(axis=1).astype(np.float64),
            power,
            size,
            units,
            np.nonzero(real)[0][finite],
            len(real),
        ),
    )


def _estimates(
    mean: float,
    centred: FloatArray,
    squares: FloatArray,
    inactive: FloatArray,
    power: FloatArray,
    size: FloatArray,
    units: int,
    sequence: npt.NDArray[np.intp],
    sequences: int,
) -> dict[str, Estimate]:
    """Return the estimates of a layer from sums over units, ``(M,)`` for ``M`` samples.

    Args:
        mean: Mean activation.
        centred: Sum over units of the activations minus ``mean``.
        squares: Sum over units of the squares of the activations minus ``mean``.
        inactive: Number of units that are off or stuck.
        power: Mean over units of the squares of the activations.
        size: Mean over units of the absolute activations.
        units: Number of units.
        sequence: Index of each sample's sequence.
        sequences: Number of sequences.
    """

    def summed(values: FloatArray) -> FloatArray:
        """Return sums over the samples of each sequence."""
        total: FloatArray = np.bincount(sequence, values, sequences).astype(np.float64)
        return total

    entries = units * np.bincount(sequence, minlength=sequences).astype(np.float64)
    shift = summed(centred)
    active = power > 0
    sparseness = np.divide(size**2, power, out=np.zeros_like(power), where=active)
    found = {
        "mean": Estimate.ratio(shift + mean * entries, entries),
        "std": Estimate.of_sums(
            sd_of_sums,
            np.stack([entries, shift, summed(squares)], axis=1),
            SIZE,
        ),
        "sparsity": Estimate.ratio(summed(inactive), entries, SHARE),
        "treves_rolls": Estimate.ratio(
            summed(sparseness), summed(active.astype(np.float64)), SHARE
        ),
    }
    return with_cis(found)
