"""Hold the data of one snapshot, which the callbacks that are due share.

A callback declares what it needs, and reads numpy arrays::

    class MeanState(Callback):
        needs = frozenset({Need.STATES})

        def measure(self, observation):
            for cell in observation.states:
                yield Scalar(f"{self.name}/mean", float(cell.values.mean()))

A callback that needs more passes of the model declares their kinds, too, and asks
``observation.extra_passes`` for them::

    class Doubled(Callback):
        needs = frozenset({Need.VARIANTS})

        def measure(self, observation):
            twice = observation.extra_passes.evaluate(2 * observation.inputs[None])
            yield Scalar(f"{self.name}/mean", float(twice.values.mean()))
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .arrays import read_only
from .held_out import HeldOutBatch
from .model.errors import NotApplicable
from .results import FloatArray

if TYPE_CHECKING:
    from .extra_passes.extra_passes import ExtraPasses
    from .extra_passes.source import PassSource

_Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["Activations", "EvaluatedBatch", "Need", "Observation", "Trajectory"]


class Need(enum.Enum):
    """List what a callback can declare: arrays of the shared pass, and kinds of extra passes.

    One pass computes the arrays for all callbacks that are due. Outputs and target values are
    always among them. Extra passes are run when :attr:`Observation.extra_passes` is asked for them.
    """

    INPUT_GRADIENT = "input_gradient"
    """Array: gradient of the targets with respect to the inputs."""
    TIME_GRADIENT = "time_gradient"
    """Array: gradient with respect to ``time_delta``; free with :attr:`INPUT_GRADIENT`."""
    STATES = "states"
    """Array: hidden states of every recurrent cell."""
    ACTIVATIONS = "activations"
    """Array: activations of every backbone layer."""
    LOSSES = "losses"
    """Array: values of ``target="loss"`` beside those of another target; costs no pass."""
    HITS = "hits"
    """Array: which classes are predicted right; costs no pass."""
    CLASSES = "classes"
    """Array: the true and the predicted class of each sequence; costs no pass."""
    PARAMETERS = "parameters"
    """Arrays: the trainable parameters, by name; costs no pass."""
    VARIANTS = "variants"
    """Extra passes: :meth:`.ExtraPasses.evaluate`, a forward pass for each variant."""
    VARIANT_GRADIENTS = "variant_gradients"
    """Extra passes: ``evaluate(gradient=True)`` and :meth:`.ExtraPasses.reevaluate`."""
    REMOVALS = "removals"
    """Extra passes: :meth:`.ExtraPasses.removed`, a forward pass for each feature and block."""
    TIME_SCALES = "time_scales"
    """Extra passes: :meth:`.ExtraPasses.at_time_scales`, a forward pass for each scale but 1."""
    FINER_SOLVER = "finer_solver"
    """Extra passes: :meth:`.ExtraPasses.with_finer_solver`, two forward passes for each scale."""
    HESSIAN_PRODUCTS = "hessian_products"
    """Extra passes: :meth:`.ExtraPasses.slopes`, about five forward passes for each variant."""
    OUTPUT_STEPS = "output_steps"
    """Extra passes: :meth:`.ExtraPasses.at_steps` and :meth:`.ExtraPasses.at_own_steps`."""
    CELL_STEPS = "cell_steps"
    """Extra passes: single steps of a recurrent cell, and their Jacobians."""
    STATE_GRADIENT = "state_gradient"
    """Extra passes: :meth:`.ExtraPasses.state_x_gradient`, a forward and a gradient pass."""
    STATE_CHANGES = "state_changes"
    """Extra passes: :meth:`.ExtraPasses.clamped` and others that change or differentiate states."""
    FEWER_STEPS = "fewer_steps"
    """Extra passes: :meth:`.ExtraPasses.with_fewer_steps`, a forward pass of shorter sequences."""
    RANDOMISED = "randomised"
    """Extra passes: :meth:`.ExtraPasses.randomised`, a gradient pass for each stage."""

    @property
    def is_extra_pass(self) -> bool:
        """Return false for the arrays of the pass that all callbacks share."""
        return self not in _ARRAYS


_ARRAYS = frozenset(
    {
        Need.INPUT_GRADIENT,
        Need.TIME_GRADIENT,
        Need.STATES,
        Need.ACTIVATIONS,
        Need.LOSSES,
        Need.HITS,
        Need.CLASSES,
        Need.PARAMETERS,
    }
)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Hold the states of one recurrent cell.

    Attributes:
        cell: Module path of the cell.
        values: ``(B, T, H)``; several state arrays of a cell are concatenated.
        initial: ``(B, H)``, state before the first time step; None if the model passes none.
        reverse: True if the cell runs from the last time step to the first.
    """

    cell: str
    values: FloatArray
    initial: FloatArray | None
    reverse: bool

    def as_run(self, values: npt.NDArray[_Scalar] | None) -> npt.NDArray[_Scalar] | None:
        """Return ``(B, T, ...)`` values in the order in which the cell runs; None for None."""
        return values[:, ::-1] if values is not None and self.reverse else values


@dataclass(frozen=True, eq=False)
class Activations:
    """Hold the activations of one backbone layer.

    Attributes:
        layer: Module path of the layer.
        activation: Name of its activation function, "unknown" if it is not recognised.
        values: ``(B, T, N)``.
    """

    layer: str
    activation: str
    values: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluatedBatch:
    """Hold some sequences, their targets and gradients, as read-only float32 numpy arrays.

    It is all that an attribution needs. :meth:`.ExtraPasses.reevaluate` makes one of other inputs,
    or of changed parameters.

    Attributes:
        held_out: The sequences analysed.
        indices: ``(B,)``, their indices in the whole held-out batch.
        inputs: ``(B, T, F)``; for tokens, their embeddings; for frames, their columns, see
            :attr:`HeldOutBatch.columns`.
        time_delta: ``(B, T)`` or None.
        target_values: ``(B,)``, the scalar target of each sequence.
        target: Name of the target, for titles.
        target_slug: Suffix of the target for tags, "" for the default target.
        takes_time: True if ``time_delta`` reaches the model.
        has_time_gradient: True if targets have a gradient by ``time_delta``.
        no_input_gradient: Reason why targets have no gradient by the inputs, with the fix; "" if
            they have one.
        categorical: ``(F,)``, true for features that the model uses as indices, as it does tokens.
        whole_batch: Number of sequences in the whole held-out batch.
        whole_inputs: ``(N, T, F)``, the inputs of the whole held-out batch.
        whole_time_delta: ``(N, T)``; None if the batch has none.
        whole_mask: ``(N, T)``, true at real time steps; None if all are.
        needs: What is declared. Reading another array, or asking for another extra pass, is an
            error, because it would cost what is not declared.
    """

    held_out: HeldOutBatch
    indices: npt.NDArray[np.intp]
    inputs: FloatArray
    time_delta: FloatArray | None
    target_values: FloatArray
    target: str
    target_slug: str
    takes_time: bool
    has_time_gradient: bool
    no_input_gradient: str
    categorical: npt.NDArray[np.bool_]
    whole_batch: int
    whole_inputs: FloatArray
    whole_time_delta: FloatArray | None
    whole_mask: npt.NDArray[np.bool_] | None
    needs: frozenset[Need]
    _arrays: Mapping[Need, Any]
    _source: PassSource

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Return the mask ``(B, T)``, true at real time steps; None if all are."""
        return self.held_out.mask

    @property
    def input_gradient(self) -> FloatArray:
        """Return the gradient ``(B, T, F)`` of each sequence's target by its inputs.

        Raises:
            NotApplicable: There is none: the inputs are indices, or an operation has no derivative.
        """
        gradient: FloatArray | None = self._array(Need.INPUT_GRADIENT)
        if gradient is None:
            raise NotApplicable(self.no_input_gradient)
        return gradient

    @property
    def time_gradient(self) -> FloatArray | None:
        """Return the gradient ``(B, T)`` by ``time_delta``; None if there is none."""
        gradient: FloatArray | None = self._array(Need.TIME_GRADIENT)
        return gradient

    @property
    def extra_passes(self) -> ExtraPasses:
        """Return the object that runs extra passes over these sequences, during ``measure`` only.

        It runs the kinds that ``needs`` declares, and raises a RuntimeError for others.
        """
        return self._source.passes_of(self)

    def _array(self, need: Need) -> Any:
        if need not in self._arrays or need not in self.needs:
            raise RuntimeError(
                f"this observation holds no {need.value}: declare it in the callback, "
                f"needs = frozenset({{Need.{need.name}, ...}})"
            )
        return self._arrays[need]


@dataclass(frozen=True, eq=False, kw_only=True)
class Observation(EvaluatedBatch):
    """Hold what the model makes of the held-out batch at one step, as float32 numpy arrays.

    All callbacks share the arrays, so they are read-only: work on a copy, ``x = x - x.mean()``.
    It is data: only :attr:`extra_passes`, for callbacks that declare any, runs the model.

    Attributes:
        step: The training step.
        outputs: ``(B, T, O)``, of a forecast ``(B, H, O)``, or ``(B, O)``.
        every_step: Name of the target at every time step, and its suffix for tags. None for a model
            with one output per sequence, and for a callable target.
        horizon: Number of steps of the model's forecast; None if it returns no forecast.
        no_cells: Reason why there are no states, with the fix; "" if there are states.
        no_layers: Reason why there are no activations, with the fix; "" if there are some.
    """

    step: int
    outputs: FloatArray
    every_step: tuple[str, str] | None
    horizon: int | None
    no_cells: str
    no_layers: str

    @property
    def states(self) -> Sequence[Trajectory]:
        """Return one trajectory per recurrent cell; empty if none was found."""
        states: Sequence[Trajectory] = self._array(Need.STATES)
        return states

    @property
    def activations(self) -> Sequence[Activations]:
        """Return one entry per backbone layer in forward order; empty if none was found."""
        activations: Sequence[Activations] = self._array(Need.ACTIVATIONS)
        return activations

    @property
    def losses(self) -> FloatArray | None:
        """Return the values ``(B,)`` of ``target="loss"`` if another target is set.

        They are None if the loss is the target itself, if the batch has no targets, or if its
        targets fit only a loss function of the user's own.
        """
        losses: FloatArray | None = self._array(Need.LOSSES)
        return losses

    @property
    def hits(self) -> FloatArray | None:
        """Return for each sequence ``(B,)`` the share of its classes that are predicted right.

        It is 0 or 1 for one class at the time step of the target. It is None where
        :attr:`losses` would be for a target other than the loss, or if the targets are no classes.
        """
        hits: FloatArray | None = self._array(Need.HITS)
        return hits

    @property
    def classes(self) -> npt.NDArray[np.int64] | None:
        """Return the true and the predicted class ``(B, 2)`` at the time step of the target.

        Of one output, class 1 is predicted where it is above 0. They are None where a sequence has
        no single class: without integer targets that fit, with labels of several outputs, and with
        a mean over classes of each time step.
        """
        classes: npt.NDArray[np.int64] | None = self._array(Need.CLASSES)
        return classes

    @property
    def parameters(self) -> Mapping[str, FloatArray]:
        """Return the model's trainable floating parameters by name, as in ``"rnn.cell.weight"``."""
        parameters: Mapping[str, FloatArray] = self._array(Need.PARAMETERS)
        return parameters

    def declaring(self, needs: Collection[Need]) -> Observation:
        """Return the observation for a callback with these needs, which holds nothing else."""
        arrays = {need: array for need, array in self._arrays.items() if need in needs}
        return replace(self, needs=frozenset(needs), _arrays=arrays)

    def limited(self, max_sequences: int | None) -> Observation:
        """Return an observation of fewer sequences, spread over the batch, without another pass.

        It has all sequences if the model or the target takes the whole batch only.

        Args:
            max_sequences: Largest number of sequences; None: all.
        """
        here = len(self.held_out)
        if max_sequences is None or max_sequences >= here or not self._source.divisible:
            return self
        # The choice depends on the whole batch alone, so that all callbacks agree on it.
        indices = self._source.spread(max_sequences)
        places = np.searchsorted(self.indices, indices)
        source = self._source.take(places)
        return replace(
            self,
            held_out=source.held_out,
            indices=indices,
            inputs=_taken(self.inputs, places),
            time_delta=_taken(self.time_delta, places),
            target_values=_taken(self.target_values, places),
            outputs=_taken(self.outputs, places),
            _arrays={need: _taken(array, places) for need, array in self._arrays.items()},
            _source=source,
        )


def _taken(value: Any, places: npt.NDArray[np.intp]) -> Any:
    """Return the part of an array, or of the cells or layers, that belongs to some sequences."""
    if value is None or isinstance(value, Mapping):  # Parameters belong to no sequence.
        return value
    if isinstance(value, tuple):
        return tuple(_taken(each, places) for each in value)
    if isinstance(value, Trajectory):
        initial = _taken(value.initial, places)
        return replace(value, values=_taken(value.values, places), initial=initial)
    if isinstance(value, Activations):
        return replace(value, values=_taken(value.values, places))
    return read_only(value[places])
