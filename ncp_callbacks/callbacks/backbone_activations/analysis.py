"""Backbone layers: how their units are used, by a measure that suits their activation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult, Pictured
from ...stats import SHARE, SIZE, Estimate
from ...stats.estimate import sd_of_sums

__all__ = [
    "ACTIVATIONS",
    "ActivationKind",
    "BackboneReport",
    "LayerStatistics",
    "layer_statistics",
    "recognise_activation",
]

BoolArray = npt.NDArray[np.bool_]
# Largest value of LeCun's scaled tanh, 1.7159 tanh(2x/3).
LECUN_BOUND = 1.7159


@dataclass(frozen=True)
class ActivationKind:
    """An activation function and what "switched off" or "stuck" means for its output.

    Attributes:
        name: Its usual name.
        sparse_means: What ``inactive`` counts, in words.
        inactive: From outputs to a boolean array: where the unit is off or stuck.
        function: The function itself, to recognise it by.
    """

    name: str
    sparse_means: str
    inactive: Callable[[FloatArray], BoolArray]
    function: Callable[[FloatArray], FloatArray]


def _sigmoid(x: FloatArray) -> FloatArray:
    half: FloatArray = np.tanh(0.5 * x)
    return 0.5 * (1.0 + half)


def _gelu_tanh(x: FloatArray) -> FloatArray:
    bent: FloatArray = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + bent)


def _gelu(x: FloatArray) -> FloatArray:
    from math import erf

    bent: FloatArray = np.vectorize(erf, otypes=[np.float64])(x / np.sqrt(2))
    return 0.5 * x * (1 + bent)


def _exact_zero(a: FloatArray) -> BoolArray:
    return np.equal(a, 0)


_KINDS = (
    ActivationKind("relu", "exactly 0", _exact_zero, lambda x: np.maximum(x, 0)),
    ActivationKind(
        "relu6", "exactly 0 or 6", lambda a: (a == 0) | (a == 6), lambda x: np.clip(x, 0, 6)
    ),
    ActivationKind("tanh", "|a| > 0.95", lambda a: np.abs(a) > 0.95, np.tanh),
    ActivationKind(
        "lecun_tanh", "|a| > 95 % of 1.7159", lambda a: np.abs(a) > 0.95 * LECUN_BOUND,
        lambda x: LECUN_BOUND * np.tanh(2 * x / 3),
    ),
    ActivationKind("sigmoid", "a < 0.05 or a > 0.95", lambda a: np.abs(a - 0.5) > 0.45, _sigmoid),
    ActivationKind("silu", "a <= 0 (the flat side)", lambda a: a <= 0, lambda x: x * _sigmoid(x)),
    ActivationKind("gelu", "a <= 0 (the flat side)", lambda a: a <= 0, _gelu),
    ActivationKind("gelu_tanh", "a <= 0 (the flat side)", lambda a: a <= 0, _gelu_tanh),
    ActivationKind(
        "gelu_fast", "a <= 0 (the flat side)", lambda a: a <= 0, lambda x: x * _sigmoid(1.702 * x)
    ),
    ActivationKind(
        "elu", "a < -0.95", lambda a: a < -0.95,
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    ),
    ActivationKind(
        "leaky_relu", "a <= 0 (the leaking side)", lambda a: a <= 0,
        lambda x: np.maximum(x, 0.01 * x),
    ),
    ActivationKind("softplus", "a < 0.05", lambda a: a < 0.05, lambda x: np.logaddexp(x, 0)),
    ActivationKind("identity", "exactly 0", _exact_zero, lambda x: x),
)  # fmt: skip
UNKNOWN = ActivationKind("unknown", "exactly 0", _exact_zero, lambda x: x)
ACTIVATIONS: Mapping[str, ActivationKind] = {k.name: k for k in (*_KINDS, UNKNOWN)}


def recognise_activation(before: FloatArray, after: FloatArray) -> str | None:
    """Name of the activation that turns ``before`` into ``after``, or None if it is none we know.

    The one that comes closest by value, within 1 %, so that a function, a module, a user's own
    class and a half-precision one are all recognised. Of candidates that the inputs don't tell
    apart (all positive: relu or identity) the first in :data:`ACTIVATIONS` is named.
    """
    if before.shape != after.shape or not before.size:
        return None
    x, a = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    keep = np.isfinite(x) & np.isfinite(a)
    x, a = x[keep], a[keep]
    if not x.size:
        return None
    best, name = 1e-2 * max(1e-3, float(np.abs(a).max())), None
    for kind in _KINDS:
        with np.errstate(over="ignore"):
            error = float(np.abs(kind.function(x) - a).max())
        if error < best:
            best, name = error, kind.name
    return name


@dataclass(frozen=True, eq=False)
class LayerStatistics(MappingResult):
    """Activations of one layer over all sequences and real steps.

    Attributes:
        layer: Name of the layer: its module path.
        activation: Name of its activation function, a key of :data:`ACTIVATIONS`.
        mean: Mean activation.
        std: Standard deviation of the activations.
        sparsity: Share of activations that are off or stuck, as ``sparse_means`` says.
        sparse_means: What ``sparsity`` counts for this activation.
        dead_units: Number of units that have the same value for every sequence and step.
        units: Number of units.
        treves_rolls: ``(mean |a|)^2 / mean a^2`` over units, averaged over samples: 1 when all
            units are equally active, ``1/units`` when one is; NaN where all activations are 0.
        active_fraction: ``(N,)``, per unit, share of samples that don't count as ``sparsity``.
        dead: ``(N,)`` bool.
        samples: Sequences times real steps that went in.
        non_finite: How many were left out because of NaN or infinity.
        estimates: ``mean``, ``std``, ``sparsity`` and ``treves_rolls`` with their intervals over
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
class BackboneReport(Pictured, Sequence[LayerStatistics]):
    """One :class:`LayerStatistics` per layer, in the order of the forward pass."""

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
    """Statistics of ``(B, T, N)`` activations.

    Args:
        activations: ``(B, T, N)``.
        layer: Name of the layer.
        activation: A key of :data:`ACTIVATIONS`; it decides what ``sparsity`` counts, because
            "exactly 0" never happens to tanh and its kin.
        mask: ``(B, T)``, true at real steps.

    Raises:
        ValueError: For an unknown ``activation``.

    Source: sparseness after Treves & Rolls 1991 (doi 10.1088/0954-898X_2_4_004), with ``|a|`` so
    that it holds for activations of both signs.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation={activation!r} is none of {', '.join(ACTIVATIONS)}; use 'unknown'"
        )
    kind = ACTIVATIONS[activation]
    units = activations.shape[-1]
    real = np.ones(activations.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    raw = activations.reshape(-1, units) if real.all() else activations[real]
    samples = raw.astype(np.float64)
    # Sums over units of finite float32 are finite, and none other.
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
    """From sums over units, ``(M,)`` each, and from which sequence each is.

    ``centred`` and ``squares`` are of the activations less their mean, ``power`` and ``size`` are
    means of squares and of sizes.
    """

    def summed(values: FloatArray) -> FloatArray:
        total: FloatArray = np.bincount(sequence, values, sequences).astype(np.float64)
        return total

    cells = units * np.bincount(sequence, minlength=sequences).astype(np.float64)
    shift = summed(centred)
    active = power > 0
    sparseness = np.divide(size**2, power, out=np.zeros_like(power), where=active)
    return {
        "mean": Estimate.ratio(shift + mean * cells, cells),
        "std": Estimate.of_sums(
            sd_of_sums,
            np.stack([cells, shift, summed(squares)], axis=1),
            SIZE,
        ),
        "sparsity": Estimate.ratio(summed(inactive), cells, SHARE),
        "treves_rolls": Estimate.ratio(
            summed(sparseness), summed(active.astype(np.float64)), SHARE
        ),
    }
