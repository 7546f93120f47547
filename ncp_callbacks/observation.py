"""What one look at the model sees: one fused pass, shared by all callbacks that are due.

A callback declares what it needs, and reads numpy arrays::

    class MeanState(Callback):
        needs = frozenset({Need.STATES})

        def measure(self, observation):
            for cell in observation.states:
                yield Scalar(f"{self.name}/mean", float(cell.values.mean()))
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .analysis.results import FloatArray
from .held_out import HeldOutBatch, to_numpy
from .instrument import CellSite, Instrument
from .instrument.looks import looks

__all__ = ["Activations", "Need", "Observation", "Trajectory"]


class Need(enum.Enum):
    """What an observation can hold beyond outputs and target values."""

    INPUT_GRADIENT = "input_gradient"
    """Gradient of the targets with respect to the inputs."""
    TIME_GRADIENT = "time_gradient"
    """Gradient of the targets with respect to the intervals; costs nothing beside the former."""
    STATES = "states"
    """Hidden states of every recurrent cell."""
    ACTIVATIONS = "activations"
    """Activations of every backbone layer."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """States of one recurrent cell.

    Attributes:
        cell: Module path of the cell.
        values: ``(B, T, H)``; a cell with several state arrays has them side by side.
        initial: ``(B, H)``, state before the first step, or None where the model didn't give one.
        reverse: Whether the cell ran from the last step to the first.
    """

    cell: str
    values: FloatArray
    initial: FloatArray | None
    reverse: bool


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of one backbone layer.

    Attributes:
        layer: Module path of the layer.
        activation: Name of its activation function, "unknown" if it isn't recognised.
        values: ``(B, T, N)``.
    """

    layer: str
    activation: str
    values: FloatArray


class Observation:
    """The held-out batch seen through the model at one step, as float32 numpy arrays.

    Valid during ``measure`` only: some of it is computed when first asked for. Asking for what was
    not declared in ``needs`` is an error, because it would cost every user another pass.

    Attributes:
        step: The training step.
        held_out: The batch.
        inputs: ``(B, T, F)``; for tokens, what they are embedded as.
        time_delta: ``(B, T)`` or None.
        mask: ``(B, T)`` bool or None.
        outputs: ``(B, T, O)`` or ``(B, O)``.
        target_values: ``(B,)``, the scalar target of each sequence.
        no_cells: Why there are no states, with the mend; "" where there are.
        no_layers: Why there are no activations, likewise.
        target: Its name, for titles.
        target_slug: Its suffix for tags, "" for the default target.
    """

    def __init__(
        self, instrument: Instrument, step: int, needs: Iterable[Need] = frozenset()
    ) -> None:
        """Run the model once; only inside ``undisturbed(model)``."""
        self.step = step
        self.held_out: HeldOutBatch = instrument.held_out
        self.target, self.target_slug = instrument.target.name, instrument.target.slug
        sites = instrument.sites
        self.no_cells, self.no_layers = sites.no_cells, sites.no_layers
        self._instrument = instrument
        self._needs = frozenset(needs)
        self._scaled: dict[float, FloatArray] = {}
        self._looks = list(looks(instrument, {need.value: need in self._needs for need in Need}))
        self.outputs = self._array("outputs")
        self.target_values = self._array("values")
        self.inputs = self._array("sequence")
        delta = instrument.time_delta
        self.time_delta = None if delta is None else to_numpy(delta)
        self.mask: npt.NDArray[np.bool_] | None = self.held_out.mask

    @property
    def takes_time(self) -> bool:
        """Whether the intervals reach the model."""
        return self._instrument.takes_time

    def _array(self, name: str) -> FloatArray:
        return np.concatenate([look.array(name) for look in self._looks])

    def _require(self, need: Need) -> None:
        if need not in self._needs:
            raise RuntimeError(
                f"this observation holds no {need.value}: declare it in the callback, "
                f"needs = frozenset({{Need.{need.name}, ...}})"
            )

    @property
    def input_gradient(self) -> FloatArray:
        """``(B, T, F)``, gradient of each sequence's target with respect to its inputs."""
        self._require(Need.INPUT_GRADIENT)
        return self._array("input_gradient")

    @property
    def time_gradient(self) -> FloatArray | None:
        """``(B, T)``, gradient with respect to the intervals; None where the model takes none."""
        self._require(Need.TIME_GRADIENT)
        return self._array("time_gradient") if self.takes_time else None

    @functools.cached_property
    def states(self) -> Sequence[Trajectory]:
        """One trajectory per recurrent cell; empty where none was found.

        Shared by all callbacks, so the arrays can't be written to.
        """
        self._require(Need.STATES)
        found = []
        for site in self._instrument.sites.cells:
            values = np.concatenate([look.states(site) for look in self._looks])
            values.flags.writeable = False
            found.append(Trajectory(site.name, values, self._initial(site), site.reverse))
        return found

    def _initial(self, site: CellSite) -> FloatArray | None:
        parts = [look.initial(site) for look in self._looks]
        given = [part for part in parts if part is not None]
        return np.concatenate(given) if len(given) == len(parts) else None

    @property
    def activations(self) -> Sequence[Activations]:
        """One per backbone layer, in the order of the forward pass; empty where none was found."""
        self._require(Need.ACTIVATIONS)
        return [
            Activations(
                site.name,
                site.activation,
                np.concatenate([look.activations(site) for look in self._looks]),
            )
            for site in self._instrument.sites.layers
        ]

    def values_at_scales(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Targets ``(B,)`` with all intervals multiplied by each scale, one more forward pass.

        The same outputs are followed as at scale 1, whose values cost nothing.

        Raises:
            RuntimeError: If the model takes no intervals.
        """
        if not self.takes_time:
            raise RuntimeError("the model takes no intervals: check observation.takes_time first")
        self._scaled[1.0] = self.target_values
        missing = [s for s in dict.fromkeys(map(float, scales)) if s not in self._scaled]
        if missing:
            values = np.concatenate([k.values_at_scales(missing) for k in self._looks], axis=1)
            self._scaled.update(zip(missing, values, strict=True))
        return {s: self._scaled[s] for s in map(float, scales)}
