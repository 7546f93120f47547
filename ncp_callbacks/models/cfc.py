"""Closed-form continuous-time networks (CfC), plain or wired.

::

    model = CfC(input_size=4, units_or_wiring=32, proj_size=2)
    outputs, state = model(x, time_delta)  # (B, T, 4), (B, T) -> (B, T, 2), (B, 32)

    from ncps.wirings import AutoNCP

    wired = CfC(4, AutoNCP(units=16, output_size=2))  # sparse: inter, command and motor layers

Hasani et al., "Closed-form continuous-time neural networks", Nature Machine Intelligence 4, 2022.
The parametrisation is that of ``ncps.torch``, so its weights can be carried over one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ncp_callbacks.models._base import (
    Cell,
    Module,
    RecurrentModel,
    check_choice,
    check_size,
    hold_constant,
    set_untrained,
)
from ncp_callbacks.models.wiring import Wiring, as_wiring, build_wiring

__all__ = ["CfC", "CfCCell", "LeCunTanh", "WiredCfCCell"]

_MODES = ("default", "pure", "no_gate")


class LeCunTanh(Module):
    """Return ``1.7159 tanh(0.666 x)``.

    Source: LeCun et al. 1998, with the slope 2/3 rounded as in ``ncps``.
    """

    def __call__(self, x: mx.array) -> mx.array:
        return 1.7159 * mx.tanh(0.666 * x)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "lecun_tanh": LeCunTanh,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class MaskedLinear(nn.Linear):
    """Apply a linear layer with some of its weights held at zero.

    Args:
        mask: ``(input, output)``, nonzero where there is a connection.
    """

    def __init__(self, mask: npt.ArrayLike) -> None:
        mask = np.asarray(mask)
        super().__init__(*mask.shape)
        hold_constant(self, "mask", mask.T)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bias, x, mx.where(self.mask, self.weight, 0).T)


class CfCCell(Cell):
    """Run one time step of a CfC.

    With ``u`` the backbone's output, or ``[x, h]`` without a backbone, and ``dt`` the elapsed time:

    * ``default``: ``z = sigmoid(time_a(u) dt + time_b(u))``,
      ``h' = (1 - z) tanh(ff1(u)) + z tanh(ff2(u))``
    * ``no_gate``: ``h' = tanh(ff1(u)) + z tanh(ff2(u))``
    * ``pure``: ``h' = A - A exp(-dt (|w_tau| + |ff1(u)|)) ff1(u)``

    Args:
        input_size: Features of ``x``.
        units: Size of the state, which is also the output.
        mode: ``"default"``, ``"pure"`` or ``"no_gate"``.
        backbone_units, backbone_layers: Width and depth of the shared layers; 0 layers for none.
        backbone_dropout: Share dropped after each backbone layer while training.
        activation: ``"lecun_tanh"``, ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.
        mask: ``(input_size + units, units)``, nonzero where ``ff1`` and ``ff2`` may connect; only
            without a backbone.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        mode: str = "default",
        backbone_units: int = 128,
        backbone_layers: int = 1,
        backbone_dropout: float = 0.0,
        activation: str = "lecun_tanh",
        mask: npt.ArrayLike | None = None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, _MODES)
        check_choice("activation", activation, _ACTIVATIONS)
        self.input_size = check_size("input_size", input_size)
        self.units = self.output_size = check_size("units", units)
        self.mode = mode
        if not 0 <= backbone_dropout < 1:
            raise ValueError(
                f"backbone_dropout={backbone_dropout}: pass a number from 0 to below 1"
            )
        width = input_size + units
        layers: list[nn.Module] = []
        for _ in range(check_size("backbone_layers", backbone_layers, minimum=0)):
            check_size("backbone_units", backbone_units)
            layers += [_linear(width, backbone_units), _ACTIVATIONS[activation]()]
            if backbone_dropout > 0:
                layers.append(nn.Dropout(backbone_dropout))
            width = backbone_units
        self.backbone: nn.Sequential | None = None
        if layers:
            self.backbone = nn.Sequential(*layers)  # type: ignore[no-untyped-call]
        if mask is not None:
            if layers:
                raise ValueError(
                    f"mask can't be kept with backbone_layers={backbone_layers}, because a "
                    "backbone mixes all inputs: pass backbone_layers=0, or no mask"
                )
            if np.shape(mask) != (width, units):
                raise ValueError(
                    f"mask has shape {np.shape(mask)}: pass (input_size + units, units) = "
                    f"{(width, units)}"
                )

        self.ff1 = _linear(width, units, mask)
        if mode == "pure":
            # Not zeros: |w_tau| has no gradient there.
            self.w_tau = nn.init.glorot_uniform()(mx.zeros((1, units)), 1.0)
            self.A = nn.init.glorot_uniform()(mx.zeros((1, units)), 1.0)
        else:
            self.ff2 = _linear(width, units, mask)
            self.time_a = _linear(width, units)
            self.time_b = _linear(width, units)

    def _extra_repr(self) -> str:
        return f"input_size={self.input_size}, units={self.units}, mode={self.mode!r}"

    def __call__(
        self, x: mx.array, state: mx.array, time_delta: mx.array | float = 1.0
    ) -> tuple[mx.array, mx.array]:
        """Return the new state ``(B, units)`` as output and as state.

        Args:
            x: ``(B, input_size)``.
            state: ``(B, units)``.
            time_delta: Elapsed time, ``(B, 1)`` or one number.
        """
        shared = mx.concatenate([x, state], axis=-1)
        if self.backbone is not None:
            shared = self.backbone(shared)
        early = self.ff1(shared)
        if self.mode == "pure":
            decay = mx.exp(-time_delta * (mx.abs(self.w_tau) + mx.abs(early)))
            new_state = self.A - self.A * decay.astype(early.dtype) * early
        else:
            gate = mx.sigmoid(self.time_a(shared) * time_delta + self.time_b(shared))
            gate = gate.astype(early.dtype)
            early, late = mx.tanh(early), mx.tanh(self.ff2(shared))
            if self.mode == "default":
                early = (1 - gate) * early
            new_state = early + gate * late
        return new_state, new_state


class WiredCfCCell(Cell):
    """Run one time step of a CfC whose layers follow a wiring.

    Each layer of the wiring is a :class:`CfCCell` without a backbone, fed by the previous one. The
    wiring masks ``ff1`` and ``ff2`` between layers; ``time_a``, ``time_b`` and the recurrence
    within a layer are dense, as in ``ncps``.

    Args:
        input_size: Features of ``x``.
        wiring: An object with the interface of :class:`~ncp_callbacks.models.Wiring`, such as one
            of ``ncps.wirings``. It is built in place if it isn't yet.
        mode: ``"default"``, ``"pure"`` or ``"no_gate"``.

    Raises:
        TypeError: The wiring lacks an attribute or a method.
        ValueError: An argument is out of its range, or the wiring was built for another
            ``input_size``.
    """

    wiring: Wiring

    def __init__(self, input_size: int, wiring: Wiring, *, mode: str = "default") -> None:
        super().__init__()
        self.input_size = check_size("input_size", input_size)
        set_untrained(self, "wiring", build_wiring(wiring, input_size))
        self.units = wiring.units
        between = np.asarray(wiring.adjacency_matrix)
        from_inputs = np.asarray(wiring.sensory_adjacency_matrix)
        self.layers: list[CfCCell] = []
        sources: list[int] | None = None
        for neurons in self._neurons_by_layer():
            if sources is None:
                incoming = from_inputs[:, neurons]
            else:
                incoming = between[np.ix_(sources, neurons)]
            within = np.ones((len(neurons), len(neurons)))
            mask = np.concatenate([incoming, within])
            cell = CfCCell(len(incoming), len(neurons), mode=mode, backbone_layers=0, mask=mask)
            self.layers.append(cell)
            sources = neurons
        self.output_size = self.layers[-1].units

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Return the number of neurons of each layer, from the inputs to the outputs."""
        return tuple(layer.units for layer in self.layers)

    @property
    def neuron_ids(self) -> tuple[int, ...]:
        """Return the wiring's neuron of each state column: layer by layer, motor neurons last."""
        return tuple(neuron for neurons in self._neurons_by_layer() for neuron in neurons)

    def _neurons_by_layer(self) -> list[list[int]]:
        wiring = self.wiring
        return [list(wiring.get_neurons_of_layer(i)) for i in range(wiring.num_layers)]

    def __call__(
        self, x: mx.array, state: mx.array, time_delta: mx.array | float = 1.0
    ) -> tuple[mx.array, mx.array]:
        """Return the states of the motor neurons and of all neurons, in the order of the layers.

        Args:
            x: ``(B, input_size)``.
            state: ``(B, units)``.
            time_delta: Elapsed time, ``(B, 1)`` or one number.
        """
        ends = np.cumsum(self.layer_sizes)[:-1].tolist()
        new_states = []
        for layer, old in zip(self.layers, state.split(ends, axis=-1), strict=True):
            x, new = layer(x, old, time_delta)
            new_states.append(new)
        return x, mx.concatenate(new_states, axis=-1)


class CfC(RecurrentModel):
    """Run a CfC network over sequences with irregular sampling.

    Args:
        input_size: Features per step.
        units_or_wiring: Number of units, or a wiring (an object with the interface of
            :class:`~ncp_callbacks.models.Wiring`, such as ``ncps.wirings.AutoNCP(16, 2)``) for a
            layered, sparse network without a backbone, whose outputs are the motor neurons.
        mode, backbone_units, backbone_layers, backbone_dropout, activation: See :class:`CfCCell`.
        return_sequences: Return the outputs of all time steps, not of the last one only.
        proj_size: Size of a final linear layer; ``None`` for none.

    Raises:
        TypeError: ``units_or_wiring`` is neither a number nor a wiring.
        ValueError: An argument is out of its range, or a backbone is set together with a wiring.
    """

    cell: CfCCell | WiredCfCCell

    def __init__(
        self,
        input_size: int,
        units_or_wiring: int | Wiring,
        *,
        mode: str = "default",
        backbone_units: int = 128,
        backbone_layers: int = 1,
        backbone_dropout: float = 0.0,
        activation: str = "lecun_tanh",
        return_sequences: bool = True,
        proj_size: int | None = None,
    ) -> None:
        super().__init__()
        units: Any = units_or_wiring
        wiring = as_wiring(units_or_wiring)
        if wiring is not None:
            no_backbone_settings = (
                backbone_units == 128
                and backbone_layers in (0, 1)
                and backbone_dropout == 0
                and activation == "lecun_tanh"
            )
            if not no_backbone_settings:
                raise ValueError(
                    "a CfC with a wiring has no backbone: pass none of backbone_units, "
                    "backbone_layers, backbone_dropout and activation, or pass a number of units "
                    "in place of the wiring"
                )
            self.cell = WiredCfCCell(input_size, wiring, mode=mode)
        else:
            self.cell = CfCCell(
                input_size,
                units,
                mode=mode,
                backbone_units=backbone_units,
                backbone_layers=backbone_layers,
                backbone_dropout=backbone_dropout,
                activation=activation,
            )
        self.input_size = self.cell.input_size
        self.units = self.cell.units
        self.return_sequences = return_sequences
        self.output_size = self.cell.output_size
        self.projection: nn.Linear | None = None
        if proj_size is not None:
            self.projection = nn.Linear(self.output_size, check_size("proj_size", proj_size))
            self.output_size = proj_size

    def _read_out(self, outputs: mx.array) -> mx.array:
        return outputs if self.projection is None else self.projection(outputs)


def _linear(inputs: int, outputs: int, mask: npt.ArrayLike | None = None) -> nn.Linear:
    """Return a linear layer with the Glorot weights that ``ncps`` starts from."""
    layer = nn.Linear(inputs, outputs) if mask is None else MaskedLinear(mask)
    layer.weight = nn.init.glorot_uniform()(layer.weight, 1.0)
    return layer
