"""Declare what an attribution method has to do, and what it returns.

A method is one class. A caller asks it for its properties, never for its name::

    @dataclass(frozen=True)
    class MyMethod(AttributionMethod):
        name: ClassVar[str] = "my_method"
        label: ClassVar[str] = "my method"

        def extra_passes(self, n_time_steps, n_features, *, takes_time):
            return PassCount(gradient=1)

        def attribute(self, evaluate, inputs, time_delta, *, baseline, time_baseline, mask):
            gradient = evaluate(inputs[None], gradient=True).input_gradient[0]
            return AttributionMaps((inputs - baseline) * gradient)

    ncp.GradientAttribution(method=MyMethod())
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate, TargetValues

__all__ = [
    "Attribution",
    "AttributionMaps",
    "AttributionMethod",
    "PassCount",
    "difference_of",
    "joined",
]


class PassCount(NamedTuple):
    """Count the passes of each sequence that a method runs beyond the shared pass."""

    forward: int = 0
    gradient: int = 0


@dataclass(frozen=True, eq=False)
class AttributionMaps:
    """Hold what a method attributes to each input and each time_delta.

    Attributes:
        inputs: ``(B, T, F)``.
        time_delta: ``(B, T)``; None where the method attributes nothing to elapsed time.
        target_at_baseline: ``(B,)``, the value that a complete method compares the target with;
            None for the target at the baseline, which is then evaluated.
    """

    inputs: FloatArray
    time_delta: FloatArray | None = None
    target_at_baseline: FloatArray | None = None


@dataclass(frozen=True)
class AttributionMethod(abc.ABC):
    """Attribute a scalar target per sequence to inputs and elapsed time.

    A subclass sets the class variables. Its settings are the fields of a frozen dataclass.

    Attributes:
        name: The method's name, in snake case.
        label: The name in running text and titles.
        is_slope: True where attributions are slopes, in units of the target per unit of the input.
            False where they are parts of the target's change, in units of the target.
        complete: True where the maps are to sum to the change of the target from the baseline. The
            completeness error, by how much they don't, is then measured and logged.
        draws_baselines: True where ``baseline`` is a set of sequences ``(N, T, F)`` to draw from,
            False where it is one baseline per sequence, ``(B, T, F)``.
        gradient_at_inputs: True where the method asks for the gradient at the inputs themselves,
            ``evaluate(gradient=True)``. The pass that all callbacks share then contains it.
        replaces_inputs: True where the method evaluates targets with some inputs at their baseline,
            and no gradients. A channel of frames, or a token, is then replaced as a whole.
        default_baseline: ``"zeros"``, ``"mean"`` of each feature over the whole held-out batch, or,
            for a method that draws, ``"held_out"``: the sequences of that batch.
        default_time_baseline: ``"mean"`` or ``"zeros"``.
        incomplete_fix: How to reduce a large completeness error, for the note that reports it.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    is_slope: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    draws_baselines: ClassVar[bool] = False
    gradient_at_inputs: ClassVar[bool] = False
    replaces_inputs: ClassVar[bool] = False
    default_baseline: ClassVar[str] = "mean"
    default_time_baseline: ClassVar[str] = "mean"
    incomplete_fix: ClassVar[str] = "Set another baseline= or another method="

    @property
    def title(self) -> str:
        """Return the label with a capital, to begin a title with."""
        return self.label[0].upper() + self.label[1:]

    @property
    def unit(self) -> str:
        """Return the unit of the attributions."""
        return f"units of the target{' per unit of the input' if self.is_slope else ''}"

    @abc.abstractmethod
    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return how many passes of each sequence the method costs.

        The passes that all callbacks share are not counted: the forward pass, and the gradient
        pass of methods with ``gradient_at_inputs``. The forward pass at the baseline, which
        measures the completeness error, is counted.

        Args:
            n_time_steps: Length of the sequences.
            n_features: Number of features.
            takes_time: True if the model takes time_delta.
        """

    @abc.abstractmethod
    def attribute(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> AttributionMaps:
        """Return the maps of the batch.

        Args:
            evaluate: Returns targets, and gradients with ``gradient=True``, of variants of the
                batch, ``(K, B, T, F)`` and ``(K, B, T)``.
            inputs: ``(B, T, F)``, float64.
            time_delta: ``(B, T)``; None where the model takes none.
            baseline: ``(B, T, F)``, equal to ``inputs`` in padding; with ``draws_baselines``
                ``(N, T, F)``.
            time_baseline: ``(B, T)`` or ``(N, T)``; None if time_delta stays as it is.
            mask: ``(B, T)``, true at real time steps; None if all are real. The caller sets maps
                to 0 in padding.
        """

    def run(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> Attribution:
        """Return the maps, with 0 in padding, and how complete they are.

        Args:
            evaluate: See :meth:`attribute`.
            inputs: ``(B, T, F)``.
            time_delta: ``(B, T)``; None where the model takes none.
            baseline: See :meth:`attribute`.
            time_baseline: See :meth:`attribute`.
            mask: ``(B, T)``, true at real time steps; None if all are real.

        Raises:
            ValueError: If the method returns maps of another shape.
        """
        evaluate = _in_single_precision(evaluate)
        x, dt, x0, dt0 = (
            None if array is None else np.asarray(array, np.float64)
            for array in (inputs, time_delta, baseline, time_baseline)
        )
        assert x is not None
        assert x0 is not None
        # A sequence with NaN or infinity has NaN in its own maps alone, and is counted later.
        with np.errstate(invalid="ignore", over="ignore"):
            maps = self.attribute(evaluate, x, dt, baseline=x0, time_baseline=dt0, mask=mask)
            self._check(maps, x)
            target_at_baseline, change, rounding = maps.target_at_baseline, None, None
            if self.complete:
                if target_at_baseline is None:
                    moved = None if dt0 is None else dt0[None]
                    target_at_baseline = evaluate(x0[None], moved).values[0]
                values = evaluate().values[0].astype(np.float64)
                change = values - target_at_baseline
                rounding = np.finfo(np.float32).eps * (np.abs(values) + np.abs(target_at_baseline))
        return Attribution(
            self,
            _zero_in_padding(maps.inputs, mask),
            None if maps.time_delta is None else _zero_in_padding(maps.time_delta, mask),
            change,
            rounding,
        )

    def _check(self, maps: AttributionMaps, inputs: FloatArray) -> None:
        for what, array, shape in (
            ("inputs", maps.inputs, inputs.shape),
            ("time_delta", maps.time_delta, inputs.shape[:2]),
            ("target_at_baseline", maps.target_at_baseline, inputs.shape[:1]),
        ):
            if array is not None and np.shape(array) != shape:
                raise ValueError(
                    f"{type(self).__name__}.attribute returned {what} of shape {np.shape(array)}: "
                    f"return shape {shape}"
                )
        if self.complete and self.draws_baselines and maps.target_at_baseline is None:
            raise ValueError(
                f"{type(self).__name__} draws its baselines and is declared complete, but returned "
                "no target_at_baseline: return the mean target at the baselines drawn, or set "
                "complete = False"
            )


def difference_of(values: FloatArray | None, baseline: FloatArray | None) -> FloatArray | None:
    """Return how far values are from their baseline; None if there are no values or they stay."""
    return None if values is None or baseline is None else values - baseline


def _in_single_precision(evaluate: Evaluate) -> Evaluate:
    """Return an ``evaluate`` that passes on float32 arrays."""

    def single(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        return evaluate(
            None if inputs is None else np.asarray(inputs, np.float32),
            None if time_delta is None else np.asarray(time_delta, np.float32),
            sequences=sequences,
            gradient=gradient,
        )

    return single


def _zero_in_padding(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> FloatArray:
    """Return ``values`` as float64, with 0 in padding."""
    values = np.asarray(values, np.float64)
    if mask is None:
        return values
    return np.where(mask if values.ndim == 2 else mask[..., None], values, 0.0)


@dataclass(frozen=True, eq=False)
class Attribution:
    """Hold how much of each sequence's target is attributed to each input and elapsed time.

    Attributes:
        method: The method that computed it.
        inputs: ``(B, T, F)``, in :attr:`AttributionMethod.unit`; 0 in padding.
        time_delta: ``(B, T)``, attributed to the elapsed time before each time step; None if
            nothing is attributed to elapsed time.
        change: ``(B,)``, target minus target at the baseline, the sum of a complete attribution;
            None for methods that are not complete.
        rounding: ``(B,)``, the rounding error of ``change`` as a difference of two float32
            numbers; None for no error.
    """

    method: AttributionMethod
    inputs: FloatArray
    time_delta: FloatArray | None = None
    change: FloatArray | None = None
    rounding: FloatArray | None = None

    @property
    def error(self) -> FloatArray | None:
        """Return ``(B,)``, ``|sum - change|`` over the RMS change of all sequences.

        The rounding error is subtracted: where a target hardly moves, like a probability near 1,
        the change itself is known no better. The error is 0 if nothing changed and nothing was
        attributed, and infinity if nothing changed but something was attributed. It is None if
        the method is not complete.
        """
        if self.change is None:
            return None
        change = self.change.astype(np.float64)
        total = self.inputs.sum(axis=(1, 2), dtype=np.float64)
        if self.time_delta is not None:
            total = total + self.time_delta.sum(axis=1, dtype=np.float64)
        gap = np.abs(total - change)
        if self.rounding is not None:
            gap = np.maximum(gap - self.rounding, 0.0)
        known = change[np.isfinite(change)]
        scale = float(np.sqrt(np.mean(known**2))) if known.size else 0.0
        error: FloatArray = (
            gap / scale
            if scale > 0
            else np.where(gap > 0, np.inf, np.where(np.isnan(gap), np.nan, 0.0))
        )
        return error

    def net_strength(self) -> tuple[FloatArray, FloatArray | None]:
        """Return what each feature, and elapsed time, contributes to each sequence's target.

        Returns:
            ``(B, F)``, absolute sums over time steps, and ``(B,)``, this of elapsed time; None if
            nothing is attributed to elapsed time.
        """
        by_time = None if self.time_delta is None else np.abs(self.time_delta.sum(axis=1))
        return np.abs(self.inputs.sum(axis=1)), by_time

    def block_strength(self, blocks: Sequence[tuple[int, int]]) -> FloatArray:
        """Return what each block of time contributes to each sequence's target, ``(B, K)``.

        It is the absolute sum of all that is attributed to inputs and elapsed times in the block.

        Args:
            blocks: First and last time step of each block.
        """
        at_each = self.inputs.sum(axis=2, dtype=np.float64)
        if self.time_delta is not None:
            at_each = at_each + self.time_delta
        return np.stack([np.abs(at_each[:, a : b + 1].sum(axis=1)) for a, b in blocks], axis=1)

    def of(self, sequences: npt.NDArray[np.intp]) -> Attribution:
        """Return the attribution of some sequences, by their indices."""
        others = (
            None if array is None else array[sequences]
            for array in (self.time_delta, self.change, self.rounding)
        )
        return Attribution(self.method, self.inputs[sequences], *others)


def joined(parts: Sequence[Attribution]) -> Attribution:
    """Return the attribution of all sequences from those of parts of the batch, by one method."""
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    names = ("inputs", "time_delta", "change", "rounding")
    return Attribution(parts[0].method, *map(column, names))
