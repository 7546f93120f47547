"""Liquid time-constant networks (LTC), fully connected or wired.

::

    model = LTC(input_size=4, units_or_wiring=16)
    outputs, state = model(x, time_delta)  # (B, T, 4), (B, T) -> (B, T, 16), (B, 16)

    from ncps.wirings import AutoNCP

    ncp = LTC(4, AutoNCP(units=16, output_size=2))  # a neural circuit policy with 2 outputs

Hasani et al., "Liquid time-constant networks", AAAI 2021; Lechner et al., "Neural circuit policies
enabling auditable autonomy", Nature Machine Intelligence 2, 2020. Parameters are named as in
``ncps.torch``, so its weights can be carried over one to one.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ncp_callbacks.models._base import (
    Cell,
    RecurrentModel,
    check_choice,
    check_size,
    hold_constant,
    set_untrained,
)
from ncp_callbacks.models.wiring import FullyConnected, Wiring, as_wiring, build_wiring

__all__ = ["LTC", "LTCCell"]

_MAPPINGS = ("affine", "linear", None)


class LTCCell(Cell):
    """Run one time step of an LTC, by sub-steps of the semi-implicit (fused) Euler method.

    Neuron ``i`` is a leaky membrane with conductance-based synapses::

        cm_i dv_i/dt = gleak_i (vleak_i - v_i) + sum_j c_ji (erev_ji - v_i)
        c_ji = w_ji sigmoid(sigma_ji (v_j - mu_ji))

    summed over neurons and inputs ``j`` that the wiring connects to ``i``. A sub-step of length
    ``d`` holds the conductances fixed::

        v_i <- (cm_i v_i + d (gleak_i vleak_i + sum_j c_ji erev_ji))
               / (cm_i + d (gleak_i + sum_j c_ji))

    Parameters have shape ``(units,)``, ``(source, units)`` for synapses. The state's columns are
    the wiring's neuron ids (motor neurons first); outputs are the motor neurons.

    Args:
        input_size: Features of ``x``.
        wiring: An object with the interface of :class:`~ncp_callbacks.models.Wiring`, such as one
            of ``ncps.wirings``. It is built in place if it isn't yet.
        ode_unfolds: Sub-steps per time step.
        epsilon: Added to the total conductance of each neuron.
        implicit_param_constraints: Keep ``w``, ``sensory_w``, ``cm`` and ``gleak`` positive by a
            softplus. Otherwise call :meth:`apply_weight_constraints` after each optimiser step.
        input_mapping, output_mapping: ``"affine"``, ``"linear"`` (no offset) or ``None``.

    Raises:
        TypeError: The wiring lacks an attribute or a method.
        ValueError: An argument is out of its range, or the wiring was built for another
            ``input_size``.
    """

    wiring: Wiring

    def __init__(
        self,
        input_size: int,
        wiring: Wiring,
        *,
        ode_unfolds: int = 6,
        epsilon: float = 1e-8,
        implicit_param_constraints: bool = True,
        input_mapping: str | None = "affine",
        output_mapping: str | None = "affine",
    ) -> None:
        super().__init__()
        check_choice("input_mapping", input_mapping, _MAPPINGS)
        check_choice("output_mapping", output_mapping, _MAPPINGS)
        if not epsilon >= 0:
            raise ValueError(f"epsilon={epsilon}: pass a number of at least 0")
        self.input_size = inputs = check_size("input_size", input_size)
        set_untrained(self, "wiring", build_wiring(wiring, input_size))
        self.units = units = wiring.units
        self.output_size = check_size("wiring.output_dim", wiring.output_dim)
        self.ode_unfolds = check_size("ode_unfolds", ode_unfolds)
        self.epsilon = epsilon
        self.implicit_param_constraints = implicit_param_constraints

        self.gleak = mx.random.uniform(0.001, 1.0, (units,))
        self.vleak = mx.random.uniform(-0.2, 0.2, (units,))
        self.cm = mx.random.uniform(0.4, 0.6, (units,))
        self.w = mx.random.uniform(0.001, 1.0, (units, units))
        self.sigma = mx.random.uniform(3, 8, (units, units))
        self.mu = mx.random.uniform(0.3, 0.8, (units, units))
        self.erev = mx.array(np.asarray(wiring.erev_initializer()), dtype=mx.float32)
        self.sensory_w = mx.random.uniform(0.001, 1.0, (inputs, units))
        self.sensory_sigma = mx.random.uniform(3, 8, (inputs, units))
        self.sensory_mu = mx.random.uniform(0.3, 0.8, (inputs, units))
        self.sensory_erev = mx.array(
            np.asarray(wiring.sensory_erev_initializer()), dtype=mx.float32
        )
        hold_constant(self, "sparsity_mask", wiring.adjacency_matrix)
        hold_constant(self, "sensory_sparsity_mask", wiring.sensory_adjacency_matrix)
        if input_mapping is not None:
            self.input_w = mx.ones((inputs,))
        if input_mapping == "affine":
            self.input_b = mx.zeros((inputs,))
        if output_mapping is not None:
            self.output_w = mx.ones((self.output_size,))
        if output_mapping == "affine":
            self.output_b = mx.zeros((self.output_size,))

    def _extra_repr(self) -> str:
        return f"input_size={self.input_size}, units={self.units}, ode_unfolds={self.ode_unfolds}"

    def __call__(
        self, x: mx.array, state: mx.array, time_delta: mx.array | float = 1.0
    ) -> tuple[mx.array, mx.array]:
        """Return the outputs ``(B, output_size)`` and the new state ``(B, units)``.

        Args:
            x: ``(B, input_size)``.
            state: ``(B, units)``.
            time_delta: Elapsed time, ``(B, 1)`` or one number.
        """
        if "input_w" in self:
            x = x * self.input_w
        if "input_b" in self:
            x = x + self.input_b
        # Nothing but the neurons' own conductances changes between sub-steps.
        cm, gleak = self._positive(self.cm), self._positive(self.gleak)
        sensory_w = mx.where(self.sensory_sparsity_mask, self._positive(self.sensory_w), 0)
        w = mx.where(self.sparsity_mask, self._positive(self.w), 0)
        w_erev = w * self.erev
        sensory = sensory_w * _open_fraction(x, self.sensory_mu, self.sensory_sigma)
        fixed_conductance = gleak + self.epsilon + sensory.sum(axis=-2)
        fixed_drive = gleak * self.vleak + (sensory * self.sensory_erev).sum(axis=-2)
        dtype = fixed_drive.dtype

        sub_step = time_delta / self.ode_unfolds
        v = state
        for _ in range(self.ode_unfolds):
            fraction = _open_fraction(v, self.mu, self.sigma)
            drive = fixed_drive + (w_erev * fraction).sum(axis=-2)
            conductance = fixed_conductance + (w * fraction).sum(axis=-2)
            # Both sides of the quotient are scaled by the sub-step, so that it may be zero.
            v = (cm * v + sub_step * drive) / (cm + sub_step * conductance)
        v = v.astype(dtype)

        output = v[:, : self.output_size]
        if "output_w" in self:
            output = output * self.output_w
        if "output_b" in self:
            output = output + self.output_b
        return output, v

    def apply_weight_constraints(self) -> None:
        """Clip conductances and capacitances at zero; nothing to do with implicit constraints."""
        if not self.implicit_param_constraints:
            for name in ("w", "sensory_w", "cm", "gleak"):
                self[name] = mx.maximum(self[name], 0)

    def _positive(self, parameter: mx.array) -> mx.array:
        return nn.softplus(parameter) if self.implicit_param_constraints else parameter


class LTC(RecurrentModel):
    """An LTC network over sequences with irregular sampling.

    Args:
        input_size: Features per step.
        units_or_wiring: Number of fully connected units, all of them outputs, or a wiring:
            an object with the interface of :class:`~ncp_callbacks.models.Wiring`, such as
            ``ncps.wirings.AutoNCP(16, 2)``.
        ode_unfolds, epsilon, implicit_param_constraints, input_mapping, output_mapping: See
            :class:`LTCCell`.
        return_sequences: Whether to return the outputs of all steps or of the last one.

    Raises:
        TypeError: The wiring lacks an attribute or a method.
        ValueError: An argument is out of its range, or the wiring was built for another
            ``input_size``.
    """

    cell: LTCCell

    def __init__(
        self,
        input_size: int,
        units_or_wiring: int | Wiring,
        *,
        ode_unfolds: int = 6,
        epsilon: float = 1e-8,
        implicit_param_constraints: bool = True,
        input_mapping: str | None = "affine",
        output_mapping: str | None = "affine",
        return_sequences: bool = True,
    ) -> None:
        super().__init__()
        wiring = as_wiring(units_or_wiring)
        if wiring is None:
            wiring = FullyConnected(check_size("units_or_wiring", units_or_wiring))
        self.cell = LTCCell(
            input_size,
            wiring,
            ode_unfolds=ode_unfolds,
            epsilon=epsilon,
            implicit_param_constraints=implicit_param_constraints,
            input_mapping=input_mapping,
            output_mapping=output_mapping,
        )
        self.input_size = self.cell.input_size
        self.units = self.cell.units
        self.output_size = self.cell.output_size
        self.return_sequences = return_sequences

    def apply_weight_constraints(self) -> None:
        """Apply :meth:`LTCCell.apply_weight_constraints` to the cell."""
        self.cell.apply_weight_constraints()


def _open_fraction(v: mx.array, mu: mx.array, sigma: mx.array) -> mx.array:
    """Return how far each synapse is open, ``(B, source, target)``, in [0, 1]."""
    return mx.sigmoid(sigma * (v[..., None] - mu))
