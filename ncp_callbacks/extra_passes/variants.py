"""Run the model on variants of the sequences: other inputs, other elapsed times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays import to_mlx
from ..model import ModelRunner
from ..model.batching import as_target_values
from ..model.derivatives import directional_derivatives
from ..model.ode_unfolds import doubled_ode_unfolds
from ..observation import EvaluatedBatch, Need
from ..results import FloatArray, Indices
from ..target_values import ScaledTargets, TargetValues
from .runner import PassRunner, as_mlx

__all__ = ["Variants"]


class Variants(PassRunner):
    """Run passes over variants of the sequences."""

    def evaluate(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: Indices | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Return target values of ``K`` variants of the batch.

        Each variant is evaluated at the output that was chosen for the batch itself. A pass holds
        as many sequences as memory has room for, up to eight times the held-out batch; with
        ``chunk_size``, it holds so many, and four times as many without gradients. Declare
        :attr:`Need.VARIANTS`, for gradients :attr:`Need.VARIANT_GRADIENTS`.

        Args:
            inputs: ``(K, B, T, F)``; None: the batch's own.
            time_delta: ``(K, B, T)``; None: the batch's own.
            sequences: ``(R,)``, indices of the sequences to vary, which may repeat; shapes then
                have ``R`` in place of ``B``. None: all.
            gradient: True to compute gradients.
            loss: True to compute the loss as well, see :attr:`Observation.losses`; not with
                gradients.

        Raises:
            ValueError: A shape does not fit the batch, or the batch has no ``time_delta``.
        """
        need = Need.VARIANT_GRADIENTS if gradient else Need.VARIANTS
        self._require(need)
        self._check_shapes(inputs, time_delta, sequences)
        return self._once(
            need,
            lambda: (inputs, time_delta, sequences, loss, self._source.inputs),
            lambda: self._evaluate(need, inputs, time_delta, sequences, gradient, loss),
        )

    def reevaluate(self, inputs: FloatArray) -> EvaluatedBatch:
        """Return targets and gradients of the same sequences with other inputs.

        It follows the outputs of the batch itself, and costs a gradient pass. Declare
        :attr:`Need.VARIANT_GRADIENTS`.

        Args:
            inputs: ``(B, T, F)``, used in place of the batch's own.
        """
        self._require(Need.VARIANT_GRADIENTS)
        return self._reevaluate(Need.VARIANT_GRADIENTS, inputs)

    def at_time_scales(self, scales: Sequence[float]) -> ScaledTargets:
        """Return the targets with ``time_delta`` multiplied by each scale.

        Each scale but 1 costs one forward pass. The outputs chosen at scale 1 are followed. The
        losses are computed in the same passes if :attr:`Need.LOSSES` is declared. Declare
        :attr:`Need.TIME_SCALES`.

        Args:
            scales: Factors above 0.

        Raises:
            RuntimeError: The model takes no ``time_delta``.
        """
        self._require(Need.TIME_SCALES)
        losses = self._batch._arrays.get(Need.LOSSES)
        wanted = list(dict.fromkeys(map(float, scales)))
        others = [s for s in wanted if s != 1]
        keys = {s: self._key(s, losses is not None) for s in others}
        found = {s: self._source.shared.known(Need.TIME_SCALES, keys[s]) for s in others}
        missing = [s for s in others if found[s] is None]
        scaled = self._scaled(missing)
        if missing:
            new = self._evaluate(Need.TIME_SCALES, None, scaled, loss=losses is not None)
            for i, scale in enumerate(missing):
                found[scale] = new.variant(i)
                self._source.shared.keep(Need.TIME_SCALES, keys[scale], found[scale])
        values = {1.0: self._batch.target_values, **{s: found[s].values[0] for s in others}}
        of_loss = None
        if losses is not None:
            at_scale = {1.0: losses, **{s: found[s].loss[0] for s in others}}
            of_loss = {s: at_scale[s] for s in wanted}
        return ScaledTargets({s: values[s] for s in wanted}, of_loss)

    def with_finer_solver(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Return the targets at time scales with twice the ODE sub-steps of LTC cells.

        Each scale costs a pass that takes twice as long as usual. Declare
        :attr:`Need.FINER_SOLVER`.

        Args:
            scales: Factors above 0.

        Raises:
            NotApplicable: No module of the model has ``ode_unfolds``.
            RuntimeError: The model takes no ``time_delta``.
        """
        self._require(Need.FINER_SOLVER)
        wanted = list(dict.fromkeys(map(float, scales)))
        scaled = self._scaled(wanted)
        with doubled_ode_unfolds(self._runner.model):
            # A pass of twice the sub-steps counts two.
            self._source.costs.count(Need.FINER_SOLVER.value, len(wanted))
            values = self._evaluate(Need.FINER_SOLVER, None, scaled).values
        return dict(zip(wanted, values, strict=True))

    def slopes(
        self,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        along: FloatArray,
        time_along: FloatArray | None = None,
    ) -> TargetValues:
        """Return derivatives along a direction and their gradients, the Hessian-vector products.

        Each variant costs a gradient of a gradient, which takes some five forward passes. Declare
        :attr:`Need.HESSIAN_PRODUCTS`.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.
            along: Direction in the inputs, broadcast to ``(K, B, T, F)``.
            time_along: Direction in ``time_delta``, broadcast to ``(K, B, T)``; None: zero.

        Returns:
            Target values whose ``values`` are the derivatives along the direction.
        """
        self._require(Need.HESSIAN_PRODUCTS)
        count, chosen = len(inputs), self._source.chosen
        along = np.broadcast_to(along, inputs.shape)
        delta = self._batch.time_delta
        if delta is not None:
            time_delta = np.broadcast_to(
                delta if time_delta is None else time_delta, (count, *delta.shape)
            )
            if time_along is not None:
                time_along = np.broadcast_to(time_along, time_delta.shape)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            own, own_delta = some.sequence(), some.time_delta
            x, direction = as_mlx(inputs, own, at, here), as_mlx(along, own, at, here)
            assert x is not None
            assert direction is not None
            found = directional_derivatives(
                some,
                x,
                as_mlx(time_delta, own_delta, at, here),
                direction,
                as_mlx(time_along, own_delta, at, here),
                None if chosen is None else to_mlx(chosen[here]),
            )
            return as_target_values(found)

        # It keeps some three times what a gradient does.
        size = max(1, self._source.max_sequences // 3)
        return self._in_parts(Need.HESSIAN_PRODUCTS, run, count, size)

    def _scaled(self, scales: Sequence[float]) -> FloatArray:
        """Return ``(S, B, T)``, the elapsed times multiplied by each scale."""
        delta = self._batch.time_delta
        if not self._batch.takes_time or delta is None:
            raise RuntimeError("the model takes no time_delta: check observation.takes_time first")
        return delta * np.array(scales, np.float32)[:, None, None]

    def _check_shapes(
        self,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: Indices | None,
    ) -> None:
        batch = len(self._batch.held_out) if sequences is None else len(sequences)
        for what, array, own in (
            ("inputs", inputs, self._batch.inputs),
            ("time_delta", time_delta, self._batch.time_delta),
        ):
            if array is None:
                continue
            if own is None:
                raise ValueError(
                    f"{what} can't be varied: the held-out batch has none; pass it to HeldOutBatch"
                )
            if array.shape[1:] != (batch, *own.shape[1:]):
                expected = ", ".join(map(str, (batch, *own.shape[1:])))
                raise ValueError(f"{what} has shape {array.shape}; pass (variants, {expected})")
